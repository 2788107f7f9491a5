"""The figure of a choice beside directions without the concept."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import BLUE, LINE, VERMILION, finish, translucent
from cosmic_tl.selection.null import Null


@checked
def plot_null(null: Null) -> go.Figure:
    """What the chosen candidate reaches beside every null direction, one panel per measure.

    Args:
        null: From `measure_null`.

    Example:
        >>> import pandas as pd
        >>> row = {"measure": "score", "null": "random", "observed": 1.9, "n": 2, "margin": 4.0, "p_value": 0.33}
        >>> values = pd.DataFrame({"measure": "score", "null": "random", "number": [0, 1], "value": [1.0, 1.1]})
        >>> figure = plot_null(Null(pd.DataFrame([row]), values, 3, -1, (16, 16), {"score": "sum"}))
        >>> [float(trace.x[0]) for trace in figure.data]
        [1.0, 1.9]
    """
    measures = list(null.labels)
    figure = make_subplots(1, len(measures))
    kinds = null.table.null.unique().tolist()
    for k, measure in enumerate(measures, 1):
        rows = null.table[null.table.measure == measure]
        for row in rows.itertuples():
            some = null.values[(null.values.measure == measure) & (null.values.null == row.null)]
            figure.add_box(
                x=some.value,
                y=[kinds.index(row.null)] * len(some),
                orientation="h",
                boxpoints="all",
                jitter=0.7,
                pointpos=0,
                fillcolor="rgba(0,0,0,0)",
                line={"color": "rgba(0,0,0,0)"},
                marker={"color": translucent(BLUE, 0.5), "size": 4},
                hovertemplate=f"{row.null}: %{{x:.4f}}<extra></extra>",
                showlegend=False,
                row=1,
                col=k,
            )
        figure.add_scatter(
            x=rows.observed,
            y=[kinds.index(name) for name in rows.null],
            mode="markers",
            marker={"color": VERMILION, "size": 11, "symbol": "diamond", "line": {"color": LINE, "width": 1}},
            customdata=rows[["margin", "p_value"]],
            hovertemplate="real: %{x:.4f}, margin %{customdata[0]:.1f}, p = %{customdata[1]:.2g}<extra></extra>",
            showlegend=False,
            row=1,
            col=k,
        )
        figure.add_annotation(name=f"panel {k - 1}", text=null.labels[measure], showarrow=False)
    names = [f"{name} ({n})" for name, n in null.table.groupby("null", sort=False).n.max().items()]
    figure.update_yaxes(tickvals=list(range(len(kinds))), ticktext=names, range=[len(kinds) - 0.5, -0.5])
    figure.update_xaxes(nticks=4, tickangle=0)
    return finish(
        figure,
        "The choice beside directions without the concept",
        f"red: layer {null.layer}, position {null.position}, chosen on half of the prompts; blue: null directions; on the other "
        f"half ({null.n_prompts[0]} + {null.n_prompts[1]} validation prompts)",
        columns=len(measures),
        flow=False,
        height=3.2 * len(kinds) + 1,
    )
