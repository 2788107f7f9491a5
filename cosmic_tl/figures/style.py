"""The look of all figures: palette, light and dark templates, colour scales, and labels."""

from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.colors import cmocean, hex_to_rgb

from cosmic_tl.figures.layout import SIZES, PanelLayout, lay_out
from cosmic_tl.figures.text import as_text
from cosmic_tl.model.positions import Positions

Theme = Literal["light", "dark"]
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
BLUE, VERMILION, ORANGE, GREEN, GREY, PALE = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#8a8a8a", "#c0c0c0"
COLOURS = {
    "positive": VERMILION,
    "negative": BLUE,
    "baseline": GREY,
    "removal": BLUE,
    "induction": VERMILION,
    "random": PALE,
    "random suffix": ORANGE,
    "adversarial suffix": GREEN,
    "other": GREY,
}
"""Okabe-Ito colours, safe for colour-blind readers, by meaning. An edit that pushes towards a class has its colour."""
SYMBOLS = {"positive": "circle", "negative": "diamond"}
"""Markers of the two sides, so that they can be told apart without colour."""
LINE = "rgba(128, 128, 128, 0.7)"
"""Colour of zero lines, baselines and other guides; translucent grey, which works in both themes."""
SHADE = "rgba(128, 128, 128, 0.16)"
UNKNOWN = "rgba(128, 128, 128, 0.3)"
"""Colour of heatmap cells without a value."""
SEQUENTIAL, DIVERGING = "Cividis", cmocean.balance


def template(ink: str, paper: str, grid: str) -> go.layout.Template:
    """A theme as a Plotly template.

    Args:
        ink: Colour of text and axes.
        paper: Colour of the background.
        grid: Colour of grid lines.

    Example:
        >>> template("black", "white", "grey").layout.font.color
        'black'
    """
    axis = {
        "showgrid": False,
        "zeroline": False,
        "gridcolor": grid,
        "linecolor": ink,
        "tickcolor": ink,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "title": {"standoff": 5},
        "exponentformat": "e",
    }
    bar = {"outlinewidth": 0, "ticks": "outside", "ticklen": 3, "tickcolor": ink, "nticks": 5, "exponentformat": "e"}
    error = {"color": ink, "thickness": 1.2, "width": 3}
    control = {"bgcolor": paper, "bordercolor": ink, "borderwidth": 1}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "color": ink},
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "colorway": [BLUE, VERMILION, GREEN, ORANGE, "#cc79a7", "#56b4e9", GREY],
            "colorscale": {"sequential": SEQUENTIAL, "diverging": DIVERGING},
            "hoverlabel": {"font": {"family": FONT}, "align": "left"},
            "hovermode": "closest",
            "legend": {"bgcolor": "rgba(0, 0, 0, 0)", "tracegroupgap": 0},
            "sliderdefaults": {**control, "activebgcolor": GREY, "tickcolor": ink},
            "updatemenudefaults": control,
            "xaxis": axis,
            "yaxis": axis,
        },
        data={
            "heatmap": [{"colorbar": bar}],
            "bar": [{"error_x": error, "error_y": error, "marker": {"line": {"width": 0}}}],
        },
    )


TEMPLATES: dict[Theme, go.layout.Template] = {
    "light": template("#1a1a1a", "#ffffff", "#e6e6e6"),
    "dark": template("#e8e8e8", "#14171c", "#333a44"),
}
"""Registered with Plotly as "cosmic_tl" and "cosmic_tl_dark", for figures of your own."""
pio.templates["cosmic_tl"], pio.templates["cosmic_tl_dark"] = TEMPLATES["light"], TEMPLATES["dark"]


def token_label(token: str) -> str:
    """A token as an axis label: escaped, with visible line breaks and spaces.

    Example:
        >>> token_label("\\n<b>")
        '\\\\n&lt;b&gt;'
    """
    return as_text(token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r").replace(" ", "·"))


def position_labels(positions: Positions) -> list[str]:
    """Positions as axis labels: the token, and its index counted from the end.

    Example:
        >>> position_labels(Positions(("<end>", "\\n")))
        ['&lt;end&gt; (-2)', '\\\\n (-1)']
    """
    return [f"{token_label(t)} ({i})" for t, i in zip(positions.labels, positions.indices, strict=True)]


def condition_colour(condition: str) -> str:
    """The colour of a condition, by its first word: "removal, COSMIC" has that of removal.

    Example:
        >>> condition_colour("removal, COSMIC") == COLOURS["removal"]
        True
    """
    return COLOURS.get(condition.replace(",", " ").partition(" ")[0], COLOURS["other"])


def translucent(colour: str, opacity: float) -> str:
    """A translucent version of a palette colour.

    Example:
        >>> translucent("#0072b2", 0.2)
        'rgba(0, 114, 178, 0.2)'
    """
    return "rgba({}, {}, {}, {})".format(*hex_to_rgb(colour), opacity)


def colour_scale(values: np.ndarray, signed: bool = False) -> dict[str, object]:
    """A colour scale for some values: diverging around 0 if they are signed, else sequential; both perceptually uniform.

    Args:
        values: The values to show; NaN is ignored.
        signed: Whether the sign is meaningful even if no value is negative. Defaults to False; negative values imply it.

    Example:
        >>> scale = colour_scale(np.array([-0.2, 0.5]))
        >>> scale["zmin"], scale["zmax"]
        (-0.5, 0.5)
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if signed or low < 0:
        limit = max(abs(low), abs(high)) or 1.0
        return {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit}
    if high == low:  # a single value: its scale starts at 0
        low, high = 0.0, high or 1.0
    return {"colorscale": SEQUENTIAL, "zmin": low, "zmax": high}


def whiskers(values: Any, low: Any, high: Any) -> dict[str, Any]:
    """Error bars of intervals, as Plotly takes them.

    Args:
        values: Numbers, as a series or an array.
        low: Lower ends of their intervals.
        high: Upper ends.

    Example:
        >>> found = whiskers(np.array([0.5]), np.array([0.25]), np.array([1.0]))
        >>> found["array"].tolist(), found["arrayminus"].tolist()
        ([0.5], [0.25])
    """
    ends = {"array": high - values, "arrayminus": values - low}
    return {"type": "data", "symmetric": False, "color": LINE, "thickness": 1.5, "width": 3, **ends}


def finish(figure: go.Figure, title: str, subtitle: str = "", **layout: Any) -> go.Figure:
    """Give a figure the toolkit's template, a title and a layout, at screen size.

    Args:
        figure: Changed in place, and returned.
        title: What the figure shows.
        subtitle: How to read it. Defaults to none.
        **layout: Fields of `PanelLayout`, which is kept with the figure so that it can be laid out again at another width.

    Example:
        >>> figure = finish(go.Figure(go.Scatter(y=[1, 2])), "A title", height=10)
        >>> figure.layout.width, figure.layout.title.text
        (760, 'A title')
    """
    figure.update_layout(template=TEMPLATES["light"], title={"text": title, "subtitle": {"text": subtitle}})
    return lay_out(figure, SIZES["screen"], PanelLayout(**layout))
