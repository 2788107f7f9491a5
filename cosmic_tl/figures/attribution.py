"""The figure of an attribution map."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.attribution import KINDS, AttributionMap
from cosmic_tl.figures.style import BLUE, LINE, PALE, finish
from cosmic_tl.figures.text import as_text

CHOSEN = {"random": ("random places", PALE, "circle"), "top": ("largest estimates", BLUE, "diamond")}


@checked
def plot_attribution(attribution: AttributionMap) -> go.Figure:
    """Exact effects against estimated ones, for heads and neurons; on the line the two agree.

    Args:
        attribution: From `attribution_map`.

    Example:
        >>> import pandas as pd
        >>> import torch
        >>> from cosmic_tl import Positions
        >>> row = {"side": "positive", "kind": "head", "chosen": "top", "layer": 1, "position": -1, "index": 0}
        >>> table, empty = pd.DataFrame([{**row, "estimate": 1.0, "exact": 0.5}]), torch.zeros(2, 1, 1, 1)
        >>> len(plot_attribution(AttributionMap(table, empty, empty, Positions(("a",)), (1, 1))).data)
        2
    """
    found = attribution.table
    panels = [(side, kind) for side in SIDES for kind in KINDS if ((found.side == side) & (found.kind == kind)).any()]
    figure = make_subplots(1, len(panels))
    for k, (side, kind) in enumerate(panels):
        own = found[(found.side == side) & (found.kind == kind)]
        ends = [min(own.estimate.min(), own.exact.min(), 0.0), max(own.estimate.max(), own.exact.max(), 0.0)]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": LINE, "dash": "dash"},
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=k + 1,
        )
        for chosen, (name, colour, symbol) in CHOSEN.items():
            some = own[own.chosen == chosen]
            if some.empty:
                continue
            figure.add_scatter(
                x=some.estimate,
                y=some.exact,
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=k == 0,
                marker={"color": colour, "symbol": symbol, "size": 7, "line": {"width": 0.5, "color": LINE}},
                customdata=some[["layer", "position", "index"]],
                hovertemplate=f"layer %{{customdata[0]}}, position %{{customdata[1]}}, {kind} %{{customdata[2]}}: "
                "%{y:.3f}, estimated %{x:.3f}<extra></extra>",
                row=1,
                col=k + 1,
            )
        title = f"{as_text(attribution.terms.sides[side])} prompts: {kind}s"
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    figure.update_xaxes(title_text="estimated effect", nticks=4, tickangle=0)
    figure.update_yaxes(title_text="exact effect (log-odds)", col=1)
    n, m = attribution.n_prompts
    return finish(
        figure,
        "Estimated and exact effects of single heads and neurons",
        f"change of the refusal score towards the other class; {n} + {m} prompts",
        columns=2,
        own_labels=True,
    )
