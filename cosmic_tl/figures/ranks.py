"""The figure of scores against the number of directions."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.ranks import Ranks
from cosmic_tl.figures.style import LINE, PALE, VERMILION, finish

TITLES = {"s_comply": "S<sub>comply</sub>", "s_refuse": "S<sub>refuse</sub>", "kl": "KL of removal (nats)"}


@checked
def plot_ranks(ranks: Ranks) -> go.Figure:
    """Scores and KL against the number of directions, beside random subspaces of equal rank.

    Args:
        ranks: From `measure_ranks`.

    Example:
        >>> import pandas as pd
        >>> rows = {"rank": [1, 1], "kind": ["subspace", "random"], "seed": [-1, 0], "s_comply": [0.9, 0.5], "kl": [0.1, 0.0]}
        >>> figure = plot_ranks(Ranks(pd.DataFrame(rows).assign(s_refuse=float("nan")), 0.5, "linear", "pca"))
        >>> [trace.name for trace in figure.data][:2]
        ['random subspaces', 'subspace']
    """
    table = ranks.table
    measures = [name for name in TITLES if table[name].notna().any()]
    figure = make_subplots(1, len(measures))
    for column, measure in enumerate(measures, 1):
        for kind, name, colour in (("random", "random subspaces", PALE), ("subspace", "subspace", VERMILION)):
            some = table[table.kind == kind]
            figure.add_scatter(
                x=some["rank"],
                y=some[measure],
                mode="markers" if kind == "random" else "lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": colour, "size": 7},
                line={"color": colour},
                hovertemplate=f"{name}, rank %{{x}}: %{{y:.4f}}<extra></extra>",
                row=1,
                col=column,
            )
        if measure != "kl":
            figure.add_hline(ranks.clean, line={"color": LINE, "dash": "dash"}, row=1, col=column)
        figure.add_annotation(name=f"panel {column - 1}", text=TITLES[measure], showarrow=False)
    figure.update_xaxes(title_text="directions", dtick=1, tickangle=0)
    return finish(
        figure,
        "What several directions do",
        f"{ranks.method}, {ranks.mode} mode; dashed: no intervention",
        columns=len(measures),
        own_labels=True,
    )
