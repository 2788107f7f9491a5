"""The figure of effect against cost."""

from math import log10, nan

import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.cost_curves import CostCurves
from cosmic_tl.figures.style import LINE, finish
from cosmic_tl.figures.text import as_text

COSTS = {"kl_mean": "mean KL (nats per token)", "kl_p95": "95th percentile of KL (nats per token)"}

SMALLEST = 1e-3
"""Nats below which a cost is not drawn."""


@checked
def plot_cost_curves(curves: CostCurves) -> go.Figure:
    """Effect against cost, one line per edit, with a mark per strength; without scores the cost against α.

    Args:
        curves: From `calibrate`.

    Example:
        >>> import pandas as pd
        >>> points = pd.DataFrame({"edit": ["addition"] * 2, "alpha": [0.5, 1.0], "kl_p95": [0.2, 1.0]})
        >>> points = points.assign(kl_mean=[0.0, 0.5], score=[-2.0, 3.0])
        >>> plot_cost_curves(CostCurves(points, "kl_p95", 1.0, 4)).data[0].y.tolist()
        [-2.0, 3.0]
    """
    cost = curves.measure if curves.measure in COSTS else "kl_p95"
    scored = bool(curves.points.score.notna().any())
    x, y = (cost, "score") if scored else ("alpha", cost)
    figure = go.Figure()
    leaves = dict(zip(curves.quadratic.edit, curves.quadratic.leaves, strict=True))
    points = curves.points
    if scored:
        points = points[points[cost] >= SMALLEST]  # a logarithm has no place for 0
    for edit, some in points.groupby("edit", sort=False):
        some = some.sort_values("alpha")
        beyond = some.alpha >= leaves.get(edit, nan)
        figure.add_scatter(
            x=some[x],
            y=some[y],
            mode="lines+markers",
            name=as_text(str(edit)),
            marker={"size": 7, "symbol": ["circle-open" if one else "circle" for one in beyond]},
            customdata=some.alpha,
            hovertemplate=f"{as_text(str(edit))}, α = %{{customdata:.3g}}: %{{x:.3g}}, %{{y:.3g}}<extra></extra>",
        )
    across = figure.add_hline if (curves.measure == "score" or not scored) else figure.add_vline
    across(curves.target, line={"color": LINE, "dash": "dash"})
    figure.update_xaxes(title_text=COSTS[cost] if scored else "α")
    if scored and len(points):
        ends = (
            log10(points[cost].min() / 1.5),
            log10(1.5 * max(points[cost].max(), curves.target if curves.measure == cost else 0.0)),
        )
        figure.update_xaxes(type="log", dtick=1, range=ends)
    figure.update_yaxes(title_text="refusal score (log-odds)" if scored else COSTS[cost])
    return finish(
        figure,
        "Effect against cost" if scored else "Cost against strength",
        "marks: strengths that were tried, open where the mean KL has left its growth with α²; dashed: the target"
        + ("; strengths that cost less than 0.001 nats are left out" if scored else ""),
    )
