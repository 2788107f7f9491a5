"""Files for papers, made with a real browser."""

import re
import struct
import sys
import zlib
from html import unescape

import plotly.graph_objects as go
import pytest
import torch

from cosmic_tl import CosmicError, Positions, save_figure
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.figures import plot_similarity, restyle, save_figures

POINTS = {"column": 3.3 * 72, "page": 7 * 72}


@pytest.fixture(scope="module")
def figure():
    """Several panels, long labels, signs that are escaped, a Greek letter and one with a hat."""
    values = torch.linspace(-1, 1, 8 * 3, dtype=torch.float64).reshape(8, 3)
    figure = plot_similarity(LayerSimilarity(values, -values, values**2, Positions(("<|im_end|>", "\n", "a&b"))))
    figure.update_layout(title_text="α and r̂ &lt;b&gt;")
    return figure


@pytest.fixture(scope="module")
def folder(figure, chromium, tmp_path_factory):
    """Every kind of file, made once: each takes seconds to start a browser."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BROWSER_PATH", chromium)
        save_figure(figure, folder / "column.pdf", width="column", title=False)
        save_figure(figure, folder / "page.pdf", width="page", title=False)
        save_figure(figure, folder / "dark.svg", width="page", theme="dark")
        other = go.Figure(go.Scatter(y=[1, 2]))
        again = {"dark-again.svg": figure, "other.svg": other, "dark-once-more.svg": figure}
        save_figures({folder / name: one for name, one in again.items()}, width="page", theme="dark")
        save_figures({folder / "other.pdf": other, folder / "column-again.pdf": figure}, width="column", title=False)
        save_figure(figure, folder / "column.PNG", width="column")
        save_figure(figure, folder / "page.png", width="page", scale=1)
    return folder


def unpacked(pdf):
    """A PDF with what is in its compressed streams."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, flags=re.DOTALL)
    return pdf + b"".join(zlib.decompress(packed) for packed in streams if packed[:1] == b"\x78")


@pytest.mark.parametrize("width", POINTS)
def test_pdf_has_the_papers_width_and_its_fonts(figure, folder, width):
    pdf = (folder / f"{width}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")
    boxes = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert len(boxes) == 1  # one page
    height = restyle(figure, width=width, title=False).layout.height
    assert list(map(float, boxes[0])) == pytest.approx([POINTS[width], height * 0.75], abs=1)
    content = unpacked(pdf)
    fonts = re.findall(rb"/Type ?/FontDescriptor.*?>>", content, flags=re.DOTALL)
    assert fonts and all(re.search(rb"/FontFile[23]? \d+ 0 R", font) for font in fonts)
    assert content.count(b"/ToUnicode") >= len(fonts)  # so that text can be searched and copied


def test_pdf_is_drawn_at_its_own_size_without_margins(folder):
    content = unpacked((folder / "column.pdf").read_bytes())
    scales = re.findall(rb"(?<=[\s])([\d.]+) 0 0 -?[\d.]+ ([\d.]+) [\d.]+ cm", content)[:2]
    assert float(scales[0][0]) * float(scales[1][0]) == pytest.approx(0.75, abs=0.002)  # points a pixel
    assert float(scales[0][1]) == float(scales[1][1]) == 0  # from the left edge


def test_heatmaps_are_vector_graphics(folder):
    assert b"/Subtype /Image" not in unpacked((folder / "column.pdf").read_bytes())
    svg = (folder / "dark.svg").read_text()
    assert "<image" not in svg
    cells = set(re.findall(r'<path data-index="\d+".*?fill: (rgb\([^)]*\))', svg))
    assert {"rgb(23, 28, 66)", "rgb(60, 9, 17)"} <= cells  # −1 and 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("column.pdf", "column-again.pdf"), ("dark.svg", "dark-again.svg"), ("dark.svg", "dark-once-more.svg")],
)
def test_the_same_bytes_twice(folder, one, other):
    first, second = ((folder / name).read_bytes() for name in (one, other))
    assert first == second and len(first) > 5000


def test_svg_keeps_text_and_theme(folder):
    svg = (folder / "dark.svg").read_text()
    assert svg.startswith("<svg") and 'width="672"' in svg and "rgb(20, 23, 28)" in svg
    texts = [unescape(text) for text in re.findall(r">([^<>]+)</t", svg)]
    assert {"<|im_end|> (-3)", "a&b (-1)", "\\n (-2)", "α and r̂ <b>", "cosine", "7"} <= set(texts)


@pytest.mark.parametrize(("name", "pixels"), [("column.PNG", 317 * 300 / 96), ("page.png", 672)])
def test_png_has_the_asked_for_pixels(figure, folder, name, pixels):
    png = (folder / name).read_bytes()
    assert png.startswith(b"\x89PNG")
    wide, high = struct.unpack(">II", png[16:24])
    layout = restyle(figure, width=name.partition(".")[0]).layout
    assert wide == pytest.approx(pixels, abs=1) and high == pytest.approx(pixels * layout.height / layout.width, abs=2)


def test_nothing_else_is_left_in_the_folder(folder):
    assert not list(folder.glob("*.part")) and len(list(folder.iterdir())) == 10


def test_html_is_one_page_that_asks_nothing_of_the_network(figure, tmp_path):
    page = save_figure(figure, tmp_path / "a.html", theme="dark").read_text()
    assert page.startswith("<!doctype html>") and "<title>α and r̂ &lt;b&gt;</title>" in page
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", page) and '"showSendToCloud": false' in page
    assert "background: #14171c" in page and 3e6 < len(page) < 6e6
    again = save_figure(figure, tmp_path / "b.html", theme="dark").read_text()
    assert again == page


def test_several_are_written_or_none(figure, tmp_path):
    with pytest.raises(CosmicError, match=r"found 'b.gif'"):
        save_figures({tmp_path / "a.html": figure, tmp_path / "b.gif": figure})
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_left_alone(figure, tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("before")

    def fails(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fails)
        with pytest.raises(CosmicError, match=r"file: cannot write .*a\.html' \(no space left on device\)"):
            save_figure(figure, path)
    assert path.read_text() == "before" and [one.name for one in tmp_path.iterdir()] == ["a.html"]
    save_figure(figure, path)
    assert path.read_text().startswith("<!doctype html>") and len(list(tmp_path.iterdir())) == 1


def test_a_missing_browser_is_said_in_one_line(figure, tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(CosmicError, match=r"path: 'a\.pdf' takes a Chrome or Chromium.*BROWSER_PATH") as error:
        save_figure(figure, tmp_path / "a.pdf")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_browser_that_does_not_start_is_said_in_one_line(figure, tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    with pytest.raises(CosmicError, match="Chrome or Chromium"):
        save_figure(figure, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["browser"]


def test_missing_kaleido_is_said_in_one_line(figure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(CosmicError, match=r"path: 'a\.svg' takes kaleido; pip install 'cosmic_tl\[figures\]'"):
        save_figure(figure, tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.gif", {}, r"path: found 'a.gif'; let it end in .pdf, .svg, .png or .html"),
        ("a", {}, "path: found 'a'"),
        ("nowhere/a.pdf", {}, "path: no folder"),
        ("a.png", {"scale": 0.0}, "scale: must be positive, found 0.0"),
    ],
)
def test_bad_input_is_named(figure, tmp_path, name, options, message):
    with pytest.raises(CosmicError, match=message):
        save_figure(figure, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())
