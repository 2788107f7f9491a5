"""Figures of the heads and neurons that write and read a direction."""

from collections.abc import Mapping
from math import ceil

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import BLUE, LINE, VERMILION, colour_scale, finish
from cosmic_tl.metrics.readers import NEURONS, Readers
from cosmic_tl.metrics.writers import Writers

MOST_BARS = 10
"""Neurons that are shown."""
MOST_TICKS = 6
HEADS = {"query": "queries", "key": "keys", "value": "values"}


@checked
def plot_writers(writers: Writers, position: int | None = None) -> go.Figure:
    """What neurons and heads add along the direction on positive prompts beyond what they add on negative ones.

    Args:
        writers: From `find_writers`.
        position: Default the direction's own, or the last one.

    Raises:
        CosmicError: If that position was not measured.

    Example:
        >>> import torch
        >>> from cosmic_tl import Direction, Positions
        >>> rows = {"part": ["head", "neuron"], "layer": [0, 1], "index": [1, 7], "position": -1, "difference": [0.5, -0.2]}
        >>> table = pd.DataFrame(rows).assign(weight_z=3.0, se=0.1)
        >>> figure = plot_writers(Writers(table, {}, Direction(torch.ones(4), None, 1, -1), Positions(("a",)), (8, 8)))
        >>> [trace.type for trace in figure.data]
        ['bar', 'heatmap']
    """
    position = writers.place if position is None else position
    shown = writers.strongest(len(writers.table), position)
    every = writers.table[writers.table.position == position]
    (n, m), layer = writers.n_prompts, writers.direction.layer
    return _drawn(
        shown[shown.part == "neuron"],
        {"heads": every[every.part == "head"]},
        "difference",
        layer,
        "What writes the direction",
        f"added along r̂ at position {position}: mean over {n} positive minus mean over {m} negative prompts, bars with standard "
        f"errors; the layers below {layer} (dashed), whose neurons are shown, make the direction",
    )


@checked
def plot_readers(readers: Readers) -> go.Figure:
    """How far heads' queries, keys and values and neurons' input weights look along the direction, beside random directions.

    Args:
        readers: From `find_readers`.

    Example:
        >>> import torch
        >>> from cosmic_tl import Direction
        >>> rows = {"part": ["query", "gate"], "layer": [0, 1], "index": [1, 7], "weight": 0.1, "z": [3.0, -4.0]}
        >>> figure = plot_readers(Readers(pd.DataFrame(rows), {"query": 2.0, "gate": 5.0}, Direction(torch.ones(4), None, 0, -1)))
        >>> [trace.type for trace in figure.data]
        ['bar', 'heatmap']
    """
    table, shown = readers.table, readers.strongest(len(readers.table))
    chance = ", ".join(f"{part} {value:.1f}" for part, value in readers.chance.items())
    return _drawn(
        shown[shown.part.isin(NEURONS)],
        {name: table[table.part == part] for part, name in HEADS.items() if part in readers.chance},
        "z",
        readers.direction.layer,
        "What reads the direction",
        f"weights along r̂ in standard deviations of random directions; what the best reaches by chance: {chance}",
    )


def _drawn(
    neurons: pd.DataFrame, heads: Mapping[str, pd.DataFrame], column: str, layer: int, title: str, subtitle: str
) -> go.Figure:
    """A panel with a bar per neuron, strongest first, and heatmaps of heads by layer."""
    figure = make_subplots(1, 1 + len(heads))
    shown = neurons.head(MOST_BARS)
    names = [
        f"{one.layer}.{one.index}" + (" gate" if one.part == "gate" else "")
        for one in shown[["layer", "index", "part"]].itertuples(index=False, name="Place")
    ]
    figure.add_bar(
        x=shown[column],
        y=list(range(len(shown))),
        orientation="h",
        error_x={"type": "data", "array": shown.se} if "se" in shown else None,
        marker={"color": [VERMILION if value > 0 else BLUE for value in shown[column]]},
        customdata=names,
        hovertemplate="neuron %{customdata}: %{x:.3f}<extra></extra>",
        showlegend=False,
    )
    figure.add_annotation(name="panel 0", text=f"neurons (layer.neuron): {column}", showarrow=False)
    figure.add_vline(0, line={"color": LINE, "width": 1}, row=1, col=1)
    figure.update_yaxes(tickvals=list(range(len(shown))), ticktext=names, range=[len(shown) - 0.5, -0.5], row=1, col=1)
    scale = colour_scale(pd.concat(list(heads.values()))[column].to_numpy(float), signed=True)
    for k, (name, some) in enumerate(heads.items(), 1):
        grid = some.pivot(index="index", columns="layer", values=column)
        figure.add_trace(
            go.Heatmap(
                z=grid.to_numpy(float),
                x=grid.columns.tolist(),
                y=grid.index.tolist(),
                hovertemplate=f"{name} %{{x}}.%{{y}}: %{{z:.3f}}<extra></extra>",
                xgap=1,
                ygap=1,
                showscale=k == len(heads),
                colorbar={"title": {"text": column}},
                **scale,
            ),
            1,
            k + 1,
        )
        figure.add_annotation(name=f"panel {k}", text=f"{name} (head × layer)", showarrow=False)
        if layer > grid.columns[0]:
            figure.add_vline(layer - 0.5, line={"color": "#000000", "dash": "dash", "width": 1.5}, row=1, col=k + 1)
        (n_heads, n_layers), edge = grid.shape, grid.columns[0] - 0.5
        figure.update_xaxes(dtick=ceil(n_layers / MOST_TICKS), range=[edge, edge + n_layers], row=1, col=k + 1)
        figure.update_yaxes(dtick=ceil(n_heads / MOST_TICKS), range=[n_heads - 0.5, -0.5], row=1, col=k + 1)
    return finish(
        figure,
        title,
        subtitle,
        columns=min(2, 1 + len(heads)),
        height=max(8.0, 1.3 * len(shown)),
        own_labels=True,
    )
