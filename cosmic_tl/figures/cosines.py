"""Figures of cosines: between directions, and of both classes with one direction by layer."""

from collections.abc import Mapping
from itertools import product

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.directions.cosines import Cosines
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.layer_cosines import LayerCosines
from cosmic_tl.figures.layout import LINE_HEIGHT
from cosmic_tl.figures.style import COLOURS, DIVERGING, LINE, SYMBOLS, finish, translucent
from cosmic_tl.figures.text import as_text, text_width

MOST_NUMBERS = 6
"""Maximum number of directions whose cosines are written into the cells."""


@checked
def plot_cosines(cosines: Cosines) -> go.Figure:
    """Cosines between all pairs of directions; between subspaces, that of the smallest angle.

    Args:
        cosines: From `compare_directions`.

    Example:
        >>> row = {"first": ["a"], "second": ["b"], "angle": 1, "cosine": 0.5}
        >>> plot_cosines(Cosines(pd.DataFrame(row), ("a", "b"), 8)).data[0].z.tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    values = cosines.matrix.to_numpy()
    names, places = [as_text(name) for name in cosines.names], list(range(len(values)))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=places,
            y=places,
            customdata=[[f"{one} and {other}" for other in names] for one in names],
            colorscale=DIVERGING,
            zmin=-1,
            zmax=1,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "cosine"}},
            hovertemplate="%{customdata}: %{z:.3f}<extra></extra>",
        )
    )
    for row, column in product(places, places) if len(places) <= MOST_NUMBERS else ():
        value = float(values[row, column])
        colour = "#ffffff" if abs(value) > 0.5 else "#000000"
        figure.add_annotation(x=column, y=row, text=f"{value:.2f}", showarrow=False, font={"color": colour})
    axes = {"tickvals": places, "ticktext": names}
    figure.update_xaxes(**axes, tickangle=-90, range=[-0.5, len(names) - 0.5])
    figure.update_yaxes(**axes, range=[len(names) - 0.5, -0.5])
    return finish(
        figure,
        "Cosines between directions",
        f"two random directions of width {cosines.width} stay below ±{cosines.chance:.2f} in 95 % of the cases",
        square=True,
        tick_lines=max(text_width(name, 1) for name in names) / LINE_HEIGHT,
    )


@checked
def plot_layer_cosines(cosines: LayerCosines | Mapping[str, LayerCosines], position: int = -1) -> go.Figure:
    """Both classes' cosines with a direction by layer, with 95 % intervals; of several models side by side.

    Args:
        cosines: From `cosines_by_layer`; or several by the name to show, such as those of a chat model and its base model.
        position: Which of the positions that were read. Default −1.

    Raises:
        CosmicError: If there is none, or the position was not read.

    Example:
        >>> import torch
        >>> from cosmic_tl import Direction, Positions
        >>> rows = {"side": ["positive", "negative"], "position": -1, "layer": 0, "cosine": 0.5, "low": 0.4, "high": 0.6}
        >>> direction = Direction(torch.ones(4), None, 3, -1)
        >>> one = LayerCosines(pd.DataFrame(rows), pd.DataFrame(), direction, "demo", Positions(("a",)), (8, 8))
        >>> [trace.name for trace in plot_layer_cosines(one).data if trace.name]
        ['harmful', 'harmless']
    """
    shown = {cosines.model: cosines} if isinstance(cosines, LayerCosines) else dict(cosines)
    if not shown:
        raise CosmicError("cosines: found none; give at least one")
    figure = make_subplots(1, len(shown))
    for column, (name, one) in enumerate(shown.items(), 1):
        if position not in one.positions.indices:
            raise CosmicError(f"position: found {position}; it has {', '.join(map(str, one.positions.indices))}")
        own = one.table[one.table.position == position]
        for side in SIDES:
            some, colour = own[own.side == side], COLOURS[side]
            figure.add_scatter(
                x=pd.concat([some.layer, some.layer[::-1]]),
                y=pd.concat([some.high, some.low[::-1]]),
                mode="lines",
                fill="toself",
                fillcolor=translucent(colour, 0.2),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=column,
            )
            label = as_text(one.terms.sides[side])
            figure.add_scatter(
                x=some.layer,
                y=some.cosine,
                mode="lines+markers",
                name=label,
                legendgroup=side,
                showlegend=column == 1,
                line={"color": colour, "width": 2},
                marker={"symbol": SYMBOLS[side], "size": 6},
                customdata=some[["low", "high"]],
                hovertemplate=f"{label}, layer %{{x}}: %{{y:.3f}} "
                "[%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_hline(0, line={"color": LINE, "width": 1}, row=1, col=column)
        figure.add_vline(one.direction.layer, line={"color": LINE, "dash": "dot"}, row=1, col=column)
        figure.add_annotation(name=f"panel {column - 1}", text=as_text(name), showarrow=False)
    ends = pd.concat([one.table[["low", "high"]] for one in shown.values()])
    margin = 0.05 * float(ends.high.max() - ends.low.min()) or 0.1
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="cosine with r̂", range=[ends.low.min() - margin, ends.high.max() + margin])
    return finish(
        figure,
        "Both classes along the direction, by layer",
        f"position {position}; bands: 95 % intervals over prompts; dotted: the layer where the direction was found",
        columns=3,
        span=max(int(one.table.layer.max()) for one in shown.values()) + 1,
    )
