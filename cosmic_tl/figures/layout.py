"""Lays out the parts of a figure for a given width.

Sizes are in pixels, not in fractions of the plot, so that text, gaps and colour bars keep their size from the screen down to
one column of a paper. Panels that would become too narrow are arranged in fewer columns.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil
from typing import Any

import plotly.graph_objects as go
from plotly.graph_objects import Figure as Figure

from cosmic_tl.figures.text import text_width, wrapped

LINE_HEIGHT = 1.3
"""In em, the size of the text."""
BAR = 4.6
"""Width of a colour bar with its labels, in em; they may be as long as 1.5e−4."""
NARROWEST_PANEL = 8.0
"""Width under which a panel is too narrow, in em."""
NARROWEST_LAYER = 6.0
"""Width under which a layer is too narrow, in pixels."""
LAYER_STEPS = (1, 2, 4, 5, 8, 10, 20, 40, 80)
"""From one labelled layer to the next."""
META = "panels"
"""Where a figure keeps its `PanelLayout`: a key of `layout.meta`."""


@dataclass(frozen=True)
class Size:
    """Width and text size of a figure."""

    width: int
    """In CSS pixels, 96 per inch."""
    font: float
    """In CSS pixels, 4/3 per point."""


SIZES = {"screen": Size(760, 13.0), "page": Size(672, 11.0), "column": Size(317, 11.0)}
"""A notebook or page on screen; two columns of a paper (7 in), and one (3.3 in), with text of 8¼ points."""


@dataclass(frozen=True)
class PanelLayout:
    """How a figure's panels want to be laid out. Lengths are in em."""

    columns: int = 1
    """Maximum number of columns."""
    flow: bool = True
    """Panels may go into fewer columns. If not, rows share their vertical and columns their horizontal axis."""
    height: int | float | None = None
    """Height of a panel. By default it follows from the width."""
    square: bool = False
    """Panels are as high as wide."""
    span: int | float = 0
    """Length of the horizontal axis in its own units, such as layers. 0 leaves its labels to Plotly."""
    steps: Sequence[int | float] = LAYER_STEPS
    """Distances between labels of that axis to choose from: the first at which they do not crowd."""
    own_labels: bool = False
    """Every panel labels its vertical axis, not only those on the left."""
    tick_lines: int | float = 1
    """Number of lines that the labels of the horizontal axis take."""
    controls: int | float = 0
    """Room for sliders under the panels."""


def lay_out(figure: go.Figure, size: Size, asked: PanelLayout | None = None, controls: bool = True) -> go.Figure:
    """Lay out a figure for a width.

    Args:
        figure: Changed in place, and returned. Panel titles are annotations named "panel 0", "panel 1", …
        size: Width and text size.
        asked: What the panels ask for. Defaults to what the figure was laid out with before.
        controls: Keep room for sliders. Defaults to True.

    Example:
        >>> from plotly.subplots import make_subplots
        >>> figure = lay_out(make_subplots(1, 2), SIZES["column"], PanelLayout(columns=2, span=30))
        >>> figure.layout.xaxis.domain == figure.layout.xaxis2.domain  # one below the other
        True
    """
    asked = asked or PanelLayout(**figure.layout.meta[META])
    placing = _Placing(figure, size, asked, controls)
    placing.apply()
    # At once, since Plotly takes a millisecond for every property that is set in a figure.
    figure.layout = placing.layout
    return figure


def _text(title: dict[str, Any] | None) -> str:
    return (title or {}).get("text") or ""


def _set(node: dict[str, Any], **changes: Any) -> None:
    """Set entries of a dict and of those in it; None removes one."""
    for name, value in changes.items():
        if value is None:
            node.pop(name, None)
        elif isinstance(value, dict):
            _set(node.setdefault(name, {}), **value)
        else:
            node[name] = value


@dataclass(frozen=True)
class _Box:
    """A rectangle in pixels, from the figure's upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def across(self, x: float) -> float:
        """A place in Plotly's "paper" coordinates, whose box this is."""
        return (x - self.x) / self.width

    def up(self, y: float) -> float:
        return 1 - (y - self.y) / self.height


class _Placing:
    """One figure while it is being laid out."""

    def __init__(self, figure: go.Figure, size: Size, asked: PanelLayout, controls: bool) -> None:
        self.figure, self.asked = figure, asked
        self.layout: dict[str, Any] = figure.layout.to_plotly_json()
        self.layout["meta"] = self.layout.get("meta", {}) | {META: asdict(asked)}
        self.width, self.em = size.width, size.font
        self.controls = asked.controls * self.em if controls else 0.0
        axes = [name for name in self.layout if re.fullmatch(r"xaxis\d*", name)]
        self.axes = [name.removeprefix("xaxis") for name in sorted(axes, key=lambda name: (len(name), name))] or [""]
        self.bars = [trace for trace in figure.data if trace.type == "heatmap" and trace.showscale is not False]
        self.own_bars = len(self.bars) == len(self.axes)
        self.notes = {note["name"]: note for note in self.layout.get("annotations", ()) if note.get("name")}
        self.labels = max(map(self._label_width, self.axes))
        self.columns = self._columns()
        self.rows = ceil(len(self.axes) / self.columns)

    def _label_width(self, axis: str) -> float:
        """Of the widest label of a vertical axis, with its tick."""
        found = list(self.layout.get(f"yaxis{axis}", {}).get("ticktext", ()))
        for trace in self.figure.data:
            if not found and (trace.yaxis or "y") == f"y{axis}" and trace.y is not None:
                found = [value for value in trace.y if isinstance(value, str)]
        return 6 + max((text_width(label, 0.92 * self.em) for label in found), default=2.7 * self.em)

    def _sides(self, columns: int) -> tuple[list[float], list[float]]:
        """Room to the left and to the right of each column's panels."""
        em, bar = self.em, BAR * self.em
        if any(trace.colorbar.title.text for trace in self.bars):
            bar += 1.4 * em
        first = self.labels + (1.6 * em if any(self._titles("y", self.axes)) else 0.3 * em)
        left = [first, *[self.labels + 0.3 * em if self.asked.own_labels else 0.5 * em] * (columns - 1)]
        right = [bar if self.own_bars else 0.6 * em] * columns
        right[-1] = bar if self.bars else right[-1]
        return left, right

    def _panel_width(self, columns: int) -> float:
        left, right = self._sides(columns)
        return (self.width - sum(left) - sum(right)) / columns

    def _columns(self) -> int:
        """As many as leave the panels wide enough, in rows that are filled evenly."""
        n, least = len(self.axes), max(NARROWEST_PANEL * self.em, NARROWEST_LAYER * self.asked.span)
        if not self.asked.flow:
            return self.asked.columns
        most = next((c for c in range(min(self.asked.columns, n), 1, -1) if self._panel_width(c) >= least), 1)
        return ceil(n / ceil(n / most))

    def _row(self, row: int) -> list[int]:
        return list(range(len(self.axes)))[row * self.columns : (row + 1) * self.columns]

    def _lowest(self, panel: int) -> bool:
        """Whether no panel stands below."""
        return panel + self.columns >= len(self.axes)

    def _titles(self, letter: str, axes: Sequence[str]) -> list[str]:
        return [text for axis in axes if (text := _text(self.layout.get(f"{letter}axis{axis}", {}).get("title")))]

    def apply(self) -> None:
        title, legend = self._title_lines()
        boxes, bottom = self._boxes(legend + self._legend_rows() * max(1.5 * self.em, 19) + 0.3 * self.em)
        inner = _Box(
            boxes[0].x,
            boxes[0].y,
            boxes[self.columns - 1].x + boxes[0].width - boxes[0].x,
            boxes[-1].y + boxes[0].height - boxes[0].y,
        )
        height = round(bottom + 0.3 * self.em + self.controls)
        _set(
            self.layout,
            width=self.width,
            height=height,
            font={"size": self.em},
            hoverlabel={"font": {"size": self.em}},
            margin={"l": inner.x, "r": self.width - inner.x - inner.width, "t": inner.y, "pad": 0}
            | {"b": height - inner.y - inner.height},
            title={"yref": "container", "y": 1 - title / height, "yanchor": "bottom"},
            # Only a legend that begins left of the plot and above it may be wider than the plot.
            legend={"x": inner.across(0.3 * self.em), "xanchor": "left", "y": inner.up(legend), "yanchor": "top"},
        )
        across, up = self._axis_titles(boxes[0].width)
        if self.asked.span:
            step = self._step(boxes[0].width)
            for axis, letter in product(self.axes, "xy" if self.asked.square else "x"):
                _set(self.layout, **{f"{letter}axis{axis}": {"dtick": step}})
        for panel, axis in enumerate(self.axes):
            row, column = divmod(panel, self.columns)
            box, low = boxes[panel], self._lowest(panel)
            ends = [inner.across(box.x), inner.across(box.x + box.width)]
            self._axis(f"xaxis{axis}", ends, across if low else "", low or self.asked.flow)
            ends = [inner.up(box.y + box.height), inner.up(box.y)]
            self._axis(f"yaxis{axis}", ends, up[row] if column == 0 else "", column == 0 or self.asked.own_labels)
            if (note := self.notes.get(f"panel {panel}")) is not None:
                _set(note, xref="paper", x=inner.across(box.x + box.width / 2), xanchor="center", align="center")
                _set(note, yref="paper", y=inner.up(box.y), yanchor="bottom", showarrow=False, font={"size": self.em})
            if self.own_bars:
                self._bar(panel, inner, box)
        if self.bars and not self.own_bars:
            self._bar(-1, inner, inner)
        self._markers(boxes[0])
        for number, slider in enumerate(self.layout.get("sliders", ())):
            top = inner.up(bottom + (0.5 + 6 * number) * self.em)
            _set(slider, x=0, len=1, y=top, yanchor="top", pad={"t": 0, "b": 0}, font={"size": 0.92 * self.em})

    def _title_lines(self) -> tuple[float, float]:
        """Break title and subtitle into lines; returns where the first line stands and where all end."""
        title, em = self.layout.get("title", {}), self.em
        if not _text(title):
            return 0.0, 0.3 * em
        lines = wrapped(_text(title), self.width - em, 1.2 * em)
        under = wrapped(_text(title.get("subtitle")), self.width - em, 0.95 * em)
        _set(title, text="<br>".join(lines), font={"size": 1.2 * em})
        _set(title, xref="container", x=0.5 * em / self.width, xanchor="left")
        _set(title, subtitle={"text": "<br>".join(under), "font": {"size": 0.95 * em}})
        first, more = 1.5 * em, LINE_HEIGHT * 1.2 * em * (len(lines) - 1)
        return first, first + more + (0.7 + LINE_HEIGHT * 0.95 * len(under)) * em

    def _note_lines(self, name: str, width: float) -> int:
        """Break an annotation into lines; returns how many."""
        if (note := self.notes.get(name)) is None:
            return 0
        lines = wrapped(_text(note), width, self.em)
        note["text"] = "<br>".join(lines)
        return len(lines)

    def _legend_rows(self) -> int:
        """Set how the legend's entries stand; returns how many rows they take."""
        named = [trace for trace in self.figure.data if trace.name and trace.showlegend is not False]
        widths = {t.legendgroup or t.name: text_width(t.name, 0.95 * self.em) + 50 for t in named}.values()
        if self.layout.get("showlegend") is False or (len(widths) < 2 and not any(trace.showlegend for trace in named)):
            return 0
        room = self.width - self.em
        across = len(widths) if sum(widths) <= room else max(1, int(room // max(widths)))
        entry = None if across == len(widths) else max(widths) - 45
        _set(self.layout, legend={"orientation": "h", "font": {"size": 0.95 * self.em}, "entrywidth": entry})
        return ceil(len(widths) / across)

    def _boxes(self, top: float) -> tuple[list[_Box], float]:
        """The panels' boxes, and where the last row with its labels ends."""
        em, (left, right) = self.em, self._sides(self.columns)
        wide, high = self._panel_width(self.columns), self.asked.height and self.asked.height * self.em
        centred = 0.0
        if self.asked.square:
            high = min(wide, 28 * em)
            centred, wide = (wide - high) / 2, high
        high = high or min(max(0.62 * wide, 11 * em), 18 * em)
        boxes: list[_Box] = []
        for row in range(self.rows):
            panels = self._row(row)
            top += 0.5 * em + LINE_HEIGHT * em * max(self._note_lines(f"panel {k}", wide) for k in panels)
            boxes += [
                _Box(centred + sum(left[: c + 1]) + sum(right[:c]) + c * wide, top, wide, high)
                for c in range(len(panels))
            ]
            lowest = any(map(self._lowest, panels))
            top += high + 0.4 * em
            top += LINE_HEIGHT * em * len(wrapped("".join(self._titles("x", self.axes)[:1]), wide, em)) * lowest
            top += (LINE_HEIGHT * self.asked.tick_lines * em + 5) * (lowest or self.asked.flow)
        return boxes, top

    def _step(self, wide: float) -> int | float:
        """From one label of the horizontal axis to the next, so that they do not crowd."""
        for step in self.asked.steps:
            label = (1 + 0.57 * len(f"{self.asked.span - step:g}")) * self.em
            if self.asked.span / step * label <= wide:
                return step
        return self.asked.steps[-1]

    def _axis_titles(self, wide: float) -> tuple[str, list[str]]:
        """The horizontal title, and the vertical one of each row; those that were hidden come back."""
        rows = [self.axes if self.asked.flow else [self.axes[k] for k in self._row(row)] for row in range(self.rows)]
        across = wrapped("".join(self._titles("x", self.axes)[:1]), wide, self.em)
        return "<br>".join(across), ["".join(self._titles("y", row)[:1]) for row in rows]

    def _axis(self, name: str, domain: list[float], title: str, labelled: bool) -> None:
        axis = {
            "domain": [min(1.0, max(0.0, end)) for end in domain],  # which rounding may have left
            "title": {"text": title, "font": {"size": self.em}},
            "tickfont": {"size": 0.92 * self.em},
            "showticklabels": labelled,
        }
        _set(self.layout, **{name: axis})

    def _bar(self, number: int, inner: _Box, box: _Box) -> None:
        """Put a colour bar beside a box."""
        bar = self.bars[number].colorbar.to_plotly_json()
        _set(
            bar,
            **{"x": inner.across(box.x + box.width + 0.5 * self.em), "xanchor": "left", "xpad": 0, "ypad": 0},
            **{"y": inner.up(box.y + box.height / 2), "yanchor": "middle", "len": box.height / inner.height},
            **{"lenmode": "fraction", "thickness": 0.8 * self.em, "thicknessmode": "pixels"},
            tickfont={"size": 0.85 * self.em},
            title={"side": "right", "font": {"size": 0.92 * self.em}},
        )
        self.bars[number].colorbar = bar

    def _markers(self, box: _Box) -> None:
        """Make markers that stand in a heatmap's cells fit into them."""
        for trace in self.figure.data:
            if trace.meta == "cell":
                rows = max(len(other.y) for other in self.figure.data if other.type == "heatmap")
                cell = min(box.height / rows, box.width / max(1, self.asked.span))
                trace.marker.size = min(max(3.5, 0.45 * cell), 9.0)
