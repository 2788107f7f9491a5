"""Figures for papers: laid out for a column or a page, and written to files."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from html import escape, unescape
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import write_atomically
from cosmic_tl.errors import CosmicError, first_line, one_of
from cosmic_tl.figures.layout import META, SIZES, lay_out
from cosmic_tl.figures.style import TEMPLATES, Theme

Width = Literal["column", "page"]
STATIC = (".pdf", ".svg", ".png")
PRINT = 300 / 96
"""Pixels of a PNG per pixel of the layout, for 300 per printed inch."""
HALF_CELL = 0.48
"""Half the width of a heatmap cell, in layers or positions; a gap remains between cells."""
OUT_OF_SIGHT = 100_000
MOST_SHAPES = 10_000
"""Maximum number of cells of a heatmap that are drawn as vector shapes; larger ones stay a bitmap."""


@checked
def restyle(figure: go.Figure, *, width: Width | None = None, theme: Theme = "light", title: bool = True) -> go.Figure:
    """A copy of a figure at another width, in another theme, or without its title.

    Args:
        figure: From one of the `plot_…` functions. Of any other figure, only width, text size and colours change.
        width: "column" is 3.3 in and "page" 7 in wide, both with text of 8¼ points and without sliders and buttons. Defaults
            to None: 760 pixels with text of 13 pixels.
        theme: "light" or "dark". Defaults to "light".
        title: Keep the title, which a paper has in the caption. Defaults to True.

    Raises:
        CosmicError: If the width or the theme is unknown.

    Example:
        >>> from cosmic_tl.figures.style import finish
        >>> figure = finish(go.Figure(go.Scatter(y=[1, 2])), "A title")
        >>> restyle(figure, width="column", title=False).layout.width
        317
    """
    if width not in (None, "column", "page"):
        raise CosmicError(f"width: unknown {width!r}; use 'column', 'page' or None")
    one_of("theme", theme, get_args(Theme))
    figure = go.Figure(figure)
    figure.update_layout(template=TEMPLATES[theme])
    if not title:
        figure.layout.title = None
    if width is not None:
        figure.layout.sliders, figure.layout.updatemenus = (), ()
    size = SIZES[width or "screen"]
    if isinstance(figure.layout.meta, dict) and META in figure.layout.meta:
        return lay_out(figure, size, controls=width is None)
    shape = (figure.layout.height or 450) / (figure.layout.width or 700)
    return figure.update_layout(width=size.width, height=round(shape * size.width), font={"size": size.font})


@checked
def save_figure(
    figure: go.Figure,
    path: str | Path,
    *,
    width: Width | None = None,
    theme: Theme = "light",
    title: bool = True,
    scale: int | float | None = None,
) -> Path:
    """Write a figure to a file, atomically; the same figure gives the same bytes.

    PDF and SVG are vector graphics; a PDF includes its fonts. They and PNG need the extra `figures` (kaleido) and an installed
    Chrome or Chromium. HTML is a single page that works offline, with hover and controls.

    Args:
        figure: From one of the `plot_…` functions, or any other.
        path: Ends in .pdf, .svg, .png or .html.
        width: "column" (3.3 in), "page" (7 in) or None for the screen, as in `restyle`. Defaults to None.
        theme: "light" or "dark". Defaults to "light".
        title: Keep the title, which a paper has in the caption. Defaults to True.
        scale: Pixels of a PNG per pixel of the layout. Defaults to 2 for the screen, and to 300 per inch for a paper.

    Returns:
        The path.

    Raises:
        CosmicError: If the suffix is unknown, the folder, kaleido or a browser is missing, the scale is not positive, or as
            `restyle`.

    Example:
        >>> import tempfile
        >>> from cosmic_tl.figures.style import finish
        >>> figure = finish(go.Figure(go.Scatter(y=[1, 2])), "A title")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "<title>A title</title>" in save_figure(figure, f"{folder}/a.html").read_text()
        True
    """
    return save_figures({path: figure}, width=width, theme=theme, title=title, scale=scale)[0]


@checked
def save_figures(
    figures: Mapping[str, go.Figure] | Mapping[Path, go.Figure] | Mapping[str | Path, go.Figure],
    *,
    width: Width | None = None,
    theme: Theme = "light",
    title: bool = True,
    scale: int | float | None = None,
) -> list[Path]:
    """Write several figures to files, as `save_figure` does, with one browser, whose start takes seconds.

    Args:
        figures: Figures by the path to write to.
        width: As in `save_figure`, for all figures, like the other options.
        theme: "light" or "dark". Defaults to "light".
        title: Keep the title. Defaults to True.
        scale: Pixels of a PNG per pixel of the layout. Defaults as in `save_figure`.

    Returns:
        The paths.

    Raises:
        CosmicError: As `save_figure`, before anything is written.

    Example:
        >>> import tempfile
        >>> from cosmic_tl.figures.style import finish
        >>> figure = finish(go.Figure(go.Scatter(y=[1, 2])), "A title")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save_figures({f"{folder}/a.html": figure, f"{folder}/b.html": figure})]
        ['a.html', 'b.html']
    """
    if scale is not None and not scale > 0:
        raise CosmicError(f"scale: must be positive, found {scale}")
    pages: dict[Path, bytes] = {}
    drawn: dict[Path, go.Figure] = {}
    for path, figure in ((Path(name), figure) for name, figure in figures.items()):
        if path.suffix.lower() not in (*STATIC, ".html"):
            raise CosmicError(f"path: found {path.name!r}; let it end in {', '.join(STATIC)} or .html")
        if not path.parent.is_dir():
            raise CosmicError(f"path: no folder {str(path.parent)!r}; make it first")
        styled = restyle(figure, width=width, theme=theme, title=title)
        if path.suffix.lower() == ".html":
            pages[path] = offline_page([styled], figure.layout.title.text or "Figure").encode()
        else:
            drawn[path] = styled
    if drawn:
        pages |= _static(drawn, scale or (2.0 if width is None else PRINT))
    for path, content in pages.items():
        write_atomically(path, content)
    return [Path(name) for name in figures]


def offline_page(figures: Sequence[go.Figure], title: str) -> str:
    """Figures one below the other in an HTML page that works offline.

    Args:
        figures: At least one; the page has the background of the first.
        title: Plain text, or the title of a figure.

    Example:
        >>> "<title>Two of them</title>" in offline_page([go.Figure(), go.Figure()], "Two <b>of them</b>")
        True
    """
    config = {"displaylogo": False, "showSendToCloud": False}  # a figure's data stays in its page
    shown = "".join(
        figure.to_html(full_html=False, include_plotlyjs=number == 0, div_id=f"figure-{number}", config=config)
        for number, figure in enumerate(figures)
    )
    name = " ".join(escape(unescape(re.sub(r"<[^>]*>", " ", title))).split())
    style = f"body {{ margin: 0; background: {figures[0].layout.template.layout.paper_bgcolor}; }}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{style}</style></head><body>{shown}</body></html>"
    )


def _static(figures: Mapping[Path, go.Figure], scale: int | float) -> dict[Path, bytes]:
    try:
        from kaleido import Kaleido, PageGenerator
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError as error:
        message = f"path: {next(iter(figures)).name!r} takes kaleido; pip install 'cosmic_tl[figures]', or write .html"
        raise CosmicError(message) from error

    page = PageGenerator(mathjax=False)  # which would be fetched from the network
    page.header += "<style>@page { margin: 0 } img { display: block }</style>"  # the page is the figure, no more

    async def draw() -> dict[Path, bytes]:
        found = {}
        async with Kaleido(n=1, page_generator=page) as browser:
            for path, figure in figures.items():
                kind, figure = path.suffix.lower()[1:], _vector_cells(figure)
                for number, trace in enumerate(figure.data):
                    trace.uid = str(number)  # else it is random, and in an SVG's ids
                options = {"format": kind, "width": figure.layout.width, "height": figure.layout.height}
                options["scale"] = scale if kind == "png" else 1.0  # of vector graphics it would change the size
                found[path] = _same_each_time(await browser.calc_fig(figure.to_dict(), options), kind)
        return found

    try:
        with ThreadPoolExecutor(1) as thread:  # Jupyter's own loop is running in this one
            return thread.submit(asyncio.run, draw()).result()
    except (BrowserClosedError, BrowserFailedError, ChromeNotFoundError, OSError) as error:  # or its pipe breaks
        raise CosmicError(
            f"path: {next(iter(figures)).name!r} takes a Chrome or Chromium, and none that starts was found "
            f"({first_line(error)}); install one, set BROWSER_PATH to it, or write .html"
        ) from error


def _vector_cells(figure: go.Figure) -> go.Figure:
    """A copy with heatmap cells as shapes: Plotly draws them as a bitmap of 96 dots per inch, which is blurred in print."""
    figure = go.Figure(figure)
    cells: list[dict[str, Any]] = []
    for trace in figure.data:
        if trace.type != "heatmap" or trace.z is None or np.size(trace.z) > MOST_SHAPES:
            continue
        z = np.array(trace.z, dtype=float)
        known = np.isfinite(z)
        shares = np.clip((z[known] - trace.zmin) / (trace.zmax - trace.zmin), 0, 1)
        colours = sample_colorscale([list(stop) for stop in trace.colorscale], shares.tolist())
        for colour, (row, column) in zip(colours, np.argwhere(known).tolist(), strict=True):
            across, up = trace.x[column], row if isinstance(trace.y[row], str) else trace.y[row]
            cells.append(
                {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": colour}
                | {"xref": trace.xaxis or "x", "x0": across - HALF_CELL, "x1": across + HALF_CELL}
                | {"yref": trace.yaxis or "y", "y0": up - HALF_CELL, "y1": up + HALF_CELL}
            )
        trace.x = [across - OUT_OF_SIGHT for across in trace.x]  # what is left of it is the colour bar
    figure.layout.shapes = [*cells, *figure.layout.shapes]
    return figure


def _same_each_time(drawn: bytes, kind: str) -> bytes:
    """Remove what differs each time: the dates in a PDF, and the random name in the ids of an SVG."""
    if kind == "pdf":
        return re.sub(rb"(?<=Date \(D:)\d{14}", b"20000101000000", drawn)
    if kind == "svg" and (found := re.search(rb'id="defs-([0-9a-f]{6})"', drawn)):
        bare = drawn.replace(found[1], b"")
        # From the content, so that several figures in one page keep their ids apart.
        return drawn.replace(found[1], sha256(bare).hexdigest()[:6].encode())
    return drawn


def plotly_js() -> str:
    """The source of plotly.js, for a page that works offline.

    Example:
        >>> "plotly" in plotly_js()[:300]
        True
    """
    return str(get_plotlyjs())


def figure_json(content: Any) -> str:
    """Figures, or mappings of them, as JSON for a page's script.

    Example:
        >>> figure_json({"a": go.Figure()})[:20]
        '{"a":{"data":[],"lay'
    """
    return str(to_json_plotly(content))
