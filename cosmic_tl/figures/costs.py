"""Figures of what an edit costs: likelihoods, benchmarks, and the passes of a selection."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.capability import Capability
from cosmic_tl.experiments.cost import Cost
from cosmic_tl.figures.style import BLUE, LINE, ORANGE, PALE, condition_colour, finish
from cosmic_tl.figures.text import as_text
from cosmic_tl.selection.plan import Plan

STATUS_COLOURS = {"pass": BLUE, "lazy": ORANGE, "skipped": PALE}
"""Of a measure in a plan; what is known without a pass costs nothing."""


@checked
def plot_cost(cost: Cost) -> go.Figure:
    """Difference from the baseline by edit and measure, in nats per token, with bootstrapped 95 % intervals.

    Args:
        cost: From `measure_cost`.

    Example:
        >>> row = {"condition": "removal", "measure": "texts", "tokens": 2, "baseline": 2.0, "edited": 3.0}
        >>> documents = pd.DataFrame([{**row, "document": i} for i in range(3)])
        >>> plot_cost(Cost(documents)).data[0].y.tolist()
        [0.5]
    """
    table = cost.table
    panels = {as_text(str(measure)): some for measure, some in table.groupby("measure", sort=False)}
    figure = _bars(panels, "difference", (table.high - table.difference, table.difference - table.low))
    figure.update_yaxes(title_text="difference (nats per token)")
    return finish(
        figure,
        "What each edit costs against the unedited model",
        "cross-entropy, or KL divergence from the unedited model; lines: 95 % intervals over documents",
        columns=len(panels),
        tick_lines=2.4,
        own_labels=True,
    )


@checked
def plot_capability(capability: Capability) -> go.Figure:
    """Scores of the unedited model and of each edit by task and metric, with standard errors.

    Args:
        capability: From `measure_capability`.

    Example:
        >>> row = {"condition": "baseline", "task": "arc", "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 10}
        >>> plot_capability(Capability(pd.DataFrame([row]))).layout.annotations[0].text
        'arc, acc'
    """
    table = capability.table
    groups = table.groupby(["task", "metric"], sort=False)
    panels = {as_text(f"{task}, {metric}"): some for (task, metric), some in groups}
    figure = _bars(panels, "value", (table.stderr, table.stderr))
    return finish(
        figure,
        "Benchmarks under each edit",
        "lines: standard errors",
        columns=min(3, len(panels)),
        tick_lines=2.4,
        own_labels=True,
    )


def _bars(panels: Mapping[str, pd.DataFrame], value: str, error: tuple[pd.Series, pd.Series]) -> go.Figure:
    """A panel of bars for each table, a bar per condition."""
    figure = make_subplots(1, len(panels))
    for k, (title, some) in enumerate(panels.items()):
        above, below = (side[some.index] for side in error)
        figure.add_bar(
            x=[as_text(name).replace(" ", "<br>") for name in some.condition],
            y=some[value],
            error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below},
            marker_color=[condition_colour(name) for name in some.condition],
            customdata=some[["n"]],
            hovertemplate="%{x}: %{y:.4f}, n = %{customdata[0]}<extra></extra>",
            showlegend=False,
            row=1,
            col=k + 1,
        )
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    figure.update_yaxes(zeroline=True, zerolinecolor=LINE, showgrid=True)
    figure.update_xaxes(tickangle=0)
    return figure


@checked
def plot_plan(plan: Plan) -> go.Figure:
    """Multiply-adds of a selection by measure, and what of them is made, made if needed, and skipped.

    Args:
        plan: From `plan_selection`.

    Example:
        >>> columns = {"measure": ["kl"], "status": ["lazy"], "reason": ["filter"], "macs": [2_000_000_000]}
        >>> [trace.name for trace in plot_plan(Plan(pd.DataFrame(columns), 2, 170, (3,), (4, 4), 0)).data]
        ['made if the choice needs it']
    """
    names = {"pass": "made", "lazy": "made if the choice needs it", "skipped": "skipped"}
    table = plan.table.groupby(["measure", "status"], sort=False)[["candidates", "gmacs"]].sum().reset_index()
    figure = go.Figure()
    for status, name in names.items():
        some = table[table.status == status]
        if len(some):
            figure.add_bar(
                y=_upright(some.measure),
                x=some.gmacs,
                name=name,
                orientation="h",
                marker_color=STATUS_COLOURS[status],
                customdata=some[["candidates"]],
                hovertemplate="%{y}: %{x:,.1f} GMACs, %{customdata[0]} candidates",
                showlegend=True,
            )
    figure.update_layout(barmode="stack", legend_traceorder="normal", yaxis={"autorange": "reversed"})
    figure.update_xaxes(title_text="GMACs")
    return finish(
        figure, "What the selection computes", "of the passes with edits", height=2.2 * table.measure.nunique()
    )


def _upright(measures: Iterable[str]) -> Sequence[str]:
    labels = {"s_comply": "S<sub>comply</sub>", "s_refuse": "S<sub>refuse</sub>", "kl": "KL"}
    return [labels.get(measure, as_text(measure)) for measure in measures]
