"""Panels of layer × position heatmaps, which the figures of selections share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl.figures.style import UNKNOWN, colour_scale, position_labels, token_label
from cosmic_tl.selection.result import Selection

ROW = 1.5
"""Height of a heatmap's row, in em."""
MOST_COLUMNS = 12
"""Labels below a panel, if its columns have any."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One heatmap."""

    title: str
    """May contain markup: escape untrusted text."""
    values: np.ndarray
    """`[layer, position]`; NaN is shown in grey."""
    labels: Sequence[str]
    """Labels of the positions, top to bottom."""
    notes: np.ndarray | None = None
    """Additional hover text, `[layer, position]`."""
    signed: bool = False
    """Whether the sign of the values is meaningful."""
    columns: Sequence[str] | None = None
    """Labels of the columns; default the numbers of the layers, from 0."""


def heatmaps(
    panels: Sequence[Panel], shared: bool = False, bar_title: str = "", column_title: str = "layer"
) -> go.Figure:
    """Heatmaps in panels, with layers from left to right and positions from top to bottom.

    Args:
        panels: In order.
        shared: Use one colour scale for all panels. By default each has its own.
        bar_title: Title of the colour bar. Defaults to none.
        column_title: Title of the columns.

    Example:
        >>> figure = heatmaps([Panel("a", np.ones((8, 1)), ["x"]), Panel("b", np.zeros((8, 1)), ["x"])], shared=True)
        >>> figure.data[0].zmin == figure.data[1].zmin
        True
    """
    figure = make_subplots(1, len(panels))
    every = np.concatenate([panel.values.ravel() for panel in panels])
    for k, panel in enumerate(panels):
        scale: dict[str, Any] = colour_scale(every if shared else panel.values, panel.signed)
        column = "%{x}" if panel.columns is None else "%{text}"
        lines = [f"{column_title} {column}, %{{y}}", "%{z:.4f}"] + (
            ["%{customdata}"] if panel.notes is not None else []
        )
        figure.add_trace(
            go.Heatmap(
                z=panel.values.T,
                x=list(range(len(panel.values))),
                y=list(panel.labels),
                text=None if panel.columns is None else [list(panel.columns)] * len(panel.labels),
                customdata=None if panel.notes is None else panel.notes.T,
                hovertemplate="<br>".join(lines) + "<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
                showscale=not shared or k == len(panels) - 1,
                colorbar={"title": {"text": bar_title}},
                **scale,
            ),
            1,
            k + 1,
        )
        if panel.title:
            figure.add_annotation(name=f"panel {k}", text=panel.title, showarrow=False)
        n_layers, n_positions = panel.values.shape
        figure.update_xaxes(range=[-0.5, n_layers - 0.5], row=1, col=k + 1)
        if panel.columns is not None:
            shown = list(range(0, n_layers, -(-n_layers // MOST_COLUMNS)))
            figure.update_xaxes(tickvals=shown, ticktext=[panel.columns[i] for i in shown], row=1, col=k + 1)
        figure.update_yaxes(range=[n_positions - 0.5, -0.5], row=1, col=k + 1)
    if np.isnan(every).any():
        figure.update_layout(plot_bgcolor=UNKNOWN)
    figure.update_xaxes(title_text=column_title)
    figure.update_yaxes(title_text="token (position)")
    return figure


def candidate_labels(selection: Selection) -> list[str]:
    """What the rows of a selection's heatmaps are called: token and position, or the names of directions that were given.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> candidate_labels(select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options))
        ['\\\\n (-1)']
    """
    names = selection.candidates.names
    return [token_label(name) for name in names] if names else position_labels(selection.positions)


def score_panel(selection: Selection, column: str, title: str) -> Panel:
    """One column of a selection's table as a panel, with the reason why each candidate was dropped.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> score_panel(selection, "score", "sum").values.shape
        (8, 1)
    """

    def grid(name: str) -> pd.DataFrame:
        return selection.table.pivot(index="layer", columns="position", values=name)

    reasons = grid("reason").replace("", "kept")
    reasons.loc[selection.direction.layer, selection.direction.position] = "chosen"
    values, labels = grid(column).to_numpy(float), candidate_labels(selection)
    signed = column in selection.clean  # refusal scores: above 0 the model refuses
    return Panel(title, values, labels, reasons.to_numpy().astype(str), signed)


def unknown_cells(selections: Iterable[Selection]) -> str:
    """What grey cells mean.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, max_kl=10.0)
        >>> unknown_cells([select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)])
        'grey: undefined, as the classes do not differ there, or not needed for the choice'
    """
    tables = [selection.table for selection in selections]
    undefined = any(table.reason.str.contains("undefined").any() for table in tables)
    not_needed = any(table.not_needed.any() for table in tables)
    meanings = ["undefined, as the classes do not differ there"] * undefined + [
        "not needed for the choice"
    ] * not_needed
    return f"grey: {', or '.join(meanings)}" if meanings else ""


def height_of(panels: Sequence[Panel]) -> float:
    """Height of a figure of heatmaps, in em.

    Example:
        >>> height_of([Panel("a", np.ones((8, 5)), list("abcde"))])
        7.5
    """
    return max(4.5, ROW * max(len(panel.labels) for panel in panels))


def mark_cell(figure: go.Figure, k: int, layer: int, row: int) -> None:
    """Frame a cell in panel `k`.

    Example:
        >>> figure = heatmaps([Panel("a", np.ones((8, 1)), ["x"])])
        >>> mark_cell(figure, 0, layer=3, row=0)
        >>> len(figure.layout.shapes)
        2
    """
    axis = str(k + 1) if k else ""
    for colour, width in (("#ffffff", 4.5), ("#000000", 2)):  # one of the two is visible on any colour
        figure.add_shape(
            type="rect",
            name="chosen",
            **{"xref": f"x{axis}", "x0": layer - 0.5, "x1": layer + 0.5},
            **{"yref": f"y{axis}", "y0": row - 0.5, "y1": row + 0.5},
            line={"color": colour, "width": width},
        )


def mark_choice(figure: go.Figure, k: int, selection: Selection) -> None:
    """Frame the chosen cell in panel `k`, and cross out those that a filter dropped.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> figure = heatmaps([score_panel(selection, "score", "sum")])
        >>> mark_choice(figure, 0, selection)
        >>> [trace.name for trace in figure.data[1:]]
        ['filtered', 'chosen']
    """
    labels = dict(zip(selection.positions.indices, candidate_labels(selection), strict=True))
    chosen = selection.direction
    mark_cells(figure, k, labels, selection.table[~selection.table.kept], (chosen.layer, chosen.position))


def mark_cells(
    figure: go.Figure, k: int, labels: Mapping[int, str], dropped: pd.DataFrame, chosen: tuple[int, int]
) -> None:
    """Frame and star one cell in panel `k`, and cross out others.

    Args:
        figure: Changed in place.
        k: Number of the panel.
        labels: Position to the label of its row, in order.
        dropped: Layers and positions of cells to cross out.
        chosen: Layer and position of the cell to frame.

    Example:
        >>> figure = heatmaps([Panel("a", np.ones((8, 1)), ["x"])])
        >>> mark_cells(figure, 0, {-1: "x"}, pd.DataFrame({"layer": [2], "position": [-1]}), (3, -1))
        >>> [list(trace.x) for trace in figure.data[1:]]
        [[2], [3]]
    """
    mark_cell(figure, k, chosen[0], chosen[1] + len(labels))
    axis = str(k + 1) if k else ""
    for layers, positions, symbol, name in (
        (dropped.layer, dropped.position, "x", "filtered"),
        ([chosen[0]], [chosen[1]], "star", "chosen"),
    ):
        figure.add_trace(
            go.Scatter(
                x=list(layers),
                y=[labels[p] for p in positions],
                mode="markers",
                marker={"symbol": symbol, "size": 8, "color": "#ffffff", "line": {"width": 1, "color": "#000000"}},
                meta="cell",
                name=name,
                legendgroup=name,
                showlegend=k == 0,
                hoverinfo="skip",
                **{"xaxis": f"x{axis}", "yaxis": f"y{axis}"},
            )
        )
