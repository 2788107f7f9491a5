"""Figures of a prompt's projection on a direction, and of both classes along their principal components."""

from collections.abc import Mapping, Sequence
from math import ceil
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.errors import CosmicError
from cosmic_tl.figures.style import COLOURS, SYMBOLS, colour_scale, finish, token_label
from cosmic_tl.figures.text import as_text
from cosmic_tl.metrics.pca import NO_EDIT, ClassPca
from cosmic_tl.metrics.projection import Projection

MOST_LABELS = 60
"""Maximum number of tokens that are all labelled."""


@checked
def plot_projection(projection: Projection | Mapping[str, Projection]) -> go.Figure:
    """A prompt's projection on a direction, by token and layer; several are shown side by side on one colour scale.

    Args:
        projection: From `project`; or several by the name to show, such as without and with an edit.

    Raises:
        CosmicError: If there is none, or projections and cosines are mixed.

    Example:
        >>> from cosmic_tl import Direction, load_model, project
        >>> import torch
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> figure = plot_projection(project(load_model("demo", device="cpu"), "Rob a clerk.", direction))
        >>> figure.layout.yaxis.ticktext[-1]
        '\\\\n'
    """
    shown = {"": projection} if isinstance(projection, Projection) else dict(projection)
    if not shown:
        raise CosmicError("projection: found none; give at least one")
    if len(measures := {one.measure for one in shown.values()}) > 1:
        raise CosmicError(f"projection: found {' and '.join(sorted(measures))}; give one measure")
    figure = make_subplots(1, len(shown))
    scale = colour_scale(np.concatenate([one.values.numpy().ravel() for one in shown.values()]), signed=True)
    of = "y·r̂" if measures == {"projection"} else "cosine with r̂"
    for k, (name, one) in enumerate(shown.items(), 1):
        n_layers, n_tokens = one.values.shape
        labels = [token_label(token) for token in one.tokens]
        figure.add_trace(
            go.Heatmap(
                z=one.values.numpy().T,
                x=list(range(n_layers)),
                y=list(range(n_tokens)),
                customdata=np.repeat(np.array(labels, dtype=object)[:, None], n_layers, axis=1),
                hovertemplate="layer %{x}, token %{y}: %{customdata}<br>" + f"{of} = %{{z:.4f}}<extra></extra>",
                xgap=1,
                ygap=1,
                colorbar={"title": {"text": of}},
                showscale=k == len(shown),
                **scale,
            ),
            1,
            k,
        )
        every = list(range(n_tokens))[:: ceil(n_tokens / MOST_LABELS)]
        figure.update_xaxes(range=[-0.5, n_layers - 0.5], row=1, col=k)
        figure.update_yaxes(
            range=[n_tokens - 0.5, -0.5], tickvals=every, ticktext=[labels[i] for i in every], row=1, col=k
        )
        for colour, dash in (("#ffffff", "solid"), ("#000000", "dot")):  # seen on any colour
            line = {"color": colour, "width": 2, "dash": dash}
            figure.add_vline(one.direction.layer - 0.5, line=line, row=1, col=k)
        if name:
            figure.add_annotation(name=f"panel {k - 1}", text=as_text(name), showarrow=False)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="token")
    most = max(len(one.tokens) for one in shown.values())
    return finish(
        figure,
        "Projection on the direction by token and layer",
        "dotted line: the layer where the direction was found",
        columns=3,
        span=max(len(one.values) for one in shown.values()),
        height=max(8.0, 1.35 * min(most, MOST_LABELS)),
        own_labels=len({one.tokens for one in shown.values()}) > 1,
    )


@checked
def plot_pca(pca: ClassPca, layer: int | None = None, edit: str = NO_EDIT, side_by_side: bool = False) -> go.Figure:
    """Both classes along their first two principal components, with sliders for layers and edits.

    Crosses mark the class means without an edit. Each layer has the same axes for all edits.

    Args:
        pca: From `pca_of_classes`.
        layer: The layer to start with. Defaults to the one where the unedited classes are farthest apart.
        edit: The edit to start with. Defaults to no edit.
        side_by_side: Show all edits side by side at that layer, without sliders, for print. Defaults to False.

    Raises:
        CosmicError: If there is no such layer or edit.

    Example:
        >>> from cosmic_tl import load_model, pca_of_classes
        >>> model = load_model("demo", device="cpu")
        >>> figure = plot_pca(pca_of_classes(model, (["Rob a clerk.", "Poison a dog."], ["Bake a pie.", "Paint a fence."])))
        >>> len(figure.layout.sliders[0].steps), [trace.name for trace in figure.data]
        (8, ['positive', 'negative', 'positive mean, no edit', 'negative mean, no edit'])
    """
    if layer is None:
        apart = pca.table.query("edit == @NO_EDIT")
        layer = int(apart.layer.iloc[int(apart.separation.fillna(0).argmax())])
    if not 0 <= layer < len(pca.explained):
        raise CosmicError(f"layer: found {layer}, and the layers are 0 to {len(pca.explained) - 1}")
    if edit not in pca.edits:
        raise CosmicError(f"edit: unknown {edit!r}; there are {', '.join(pca.edits)}")
    planes = {int(number): some for number, some in pca.points.groupby("layer")}
    if side_by_side:
        return _panels(pca, planes[layer], layer)
    figure = go.Figure(_traces(pca, planes[layer], layer), _axes(pca, planes[layer], layer))
    for trace, shown in zip(figure.data, _shown(pca.edits, edit), strict=False):
        trace.visible = shown
    sliders = [_layer_slider(pca, planes, layer)] + [_edit_slider(pca.edits, edit)] * (len(pca.edits) > 1)
    figure.update_layout(sliders=sliders)
    return finish(figure, _TITLE, controls=6 * len(sliders))


_TITLE = "Principal components of both classes at the last position"


def _traces(pca: ClassPca, points: pd.DataFrame, layer: int) -> list[go.Scatter]:
    """Two traces per edit, and one for each unedited mean."""
    found = []
    labels = dict(zip(SIDES, map(as_text, pca.labels), strict=True))
    for edit in pca.edits:
        for side in SIDES:
            some = points[(points.edit == edit) & (points.side == side)]
            found.append(
                go.Scatter(
                    x=_rounded(some.pc1),
                    y=_rounded(some.pc2),
                    meta=layer,
                    mode="markers",
                    name=labels[side],
                    legendgroup=side,
                    marker={"color": COLOURS[side], "symbol": SYMBOLS[side], "size": 7, "opacity": 0.65},
                    customdata=[as_text(shorten(prompt, 90)) for prompt in some.prompt],
                    hovertemplate=f"{as_text(edit)}, layer %{{meta}}<br>PC 1: %{{x}}, PC 2: %{{y}}<br>%{{customdata}}"
                    f"<extra>{labels[side]}</extra>",
                )
            )
    for side in SIDES:
        means = points[(points.edit == NO_EDIT) & (points.side == side)][["pc1", "pc2"]].mean()
        found.append(
            go.Scatter(
                x=_rounded(means[:1]),
                y=_rounded(means[1:]),
                meta=layer,
                mode="markers",
                name=f"{labels[side]} mean, no edit",
                legendgroup=f"{side} mean",
                marker={"symbol": "x", "size": 12, "color": COLOURS[side], "line": {"color": "#ffffff", "width": 1.5}},
                hovertemplate=f"layer %{{meta}}<br>PC 1: %{{x}}, PC 2: %{{y}}<extra>{labels[side]} mean</extra>",
            )
        )
    return found


def _rounded(values: pd.Series) -> list[float]:
    return [float(f"{value:.4g}") for value in values]  # a page holds all layers and edits


def _axes(pca: ClassPca, points: pd.DataFrame, layer: int) -> dict[str, Any]:
    """Axis titles and ranges of one layer, wide enough for every edit."""
    axes: dict[str, Any] = {}
    for number, (axis, column) in enumerate((("xaxis", "pc1"), ("yaxis", "pc2"))):
        low, high = float(points[column].min()), float(points[column].max())
        margin = 0.08 * (high - low) or 1.0
        title = f"PC {number + 1} ({float(pca.explained[layer, number]):.0%} of variance)"
        axes[axis] = {"title": {"text": title}, "range": [low - margin, high + margin]}
    return axes


def _layer_slider(pca: ClassPca, planes: Mapping[int, pd.DataFrame], layer: int) -> dict[str, Any]:
    """Moves all points, shown or not, so that it works together with the other slider."""
    steps = []
    for number, points in planes.items():
        traces, axes = _traces(pca, points, number), _axes(pca, points, number)
        data = {"x": [t.x for t in traces], "y": [t.y for t in traces], "meta": [number] * len(traces)}
        layout = {f"{axis}.title.text": setting["title"]["text"] for axis, setting in axes.items()}
        layout |= {f"{axis}.range": setting["range"] for axis, setting in axes.items()}
        steps.append({"label": str(number), "method": "update", "args": [data, layout]})
    return {"active": layer, "currentvalue": {"prefix": "layer "}, "steps": steps}


def _edit_slider(edits: Sequence[str], edit: str) -> dict[str, Any]:
    """Shows the points of one edit."""
    steps = [
        {
            "label": as_text(one),
            "method": "restyle",
            "args": [{"visible": _shown(edits, one)}, list(range(len(SIDES) * len(edits)))],
        }
        for one in edits
    ]
    return {"active": list(edits).index(edit), "currentvalue": {"prefix": "edit: "}, "steps": steps}


def _shown(edits: Sequence[str], edit: str) -> list[bool]:
    return [one == edit for one in edits for _ in SIDES]


def _panels(pca: ClassPca, points: pd.DataFrame, layer: int) -> go.Figure:
    figure = make_subplots(1, len(pca.edits))
    axes = _axes(pca, points, layer)
    traces = _traces(pca, points, layer)
    means = traces[-len(SIDES) :]
    for k, edit in enumerate(pca.edits, 1):
        of_edit = [trace for trace, shown in zip(traces, _shown(pca.edits, edit), strict=False) if shown]
        for trace in of_edit + means:
            figure.add_trace(trace.update(showlegend=k == 1), 1, k)
        figure.add_annotation(name=f"panel {k - 1}", text=as_text(edit), showarrow=False)
    figure.update_xaxes(axes["xaxis"])
    figure.update_yaxes(axes["yaxis"])
    return finish(figure, f"{_TITLE}, layer {layer}", columns=4)
