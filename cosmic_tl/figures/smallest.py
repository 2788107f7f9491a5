"""The figure of how few places do it."""

import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.smallest import SmallestEdit
from cosmic_tl.figures.style import BLUE, LINE, PALE, finish, whiskers


@checked
def plot_smallest_edit(smallest: SmallestEdit) -> go.Figure:
    """Effect against the number of places, beside its placebo and the effect of all places.

    Args:
        smallest: From `smallest_edit`.

    Example:
        >>> import pandas as pd
        >>> rows = {"n": [1, 40], "layer": pd.array([3, None], "Int64"), "position": pd.array([-1, None], "Int64")}
        >>> table = pd.DataFrame(rows).assign(effect=[2.0, 2.5], low=1.0, high=3.0, share=0.8, kl=0.1, placebo=0.0)
        >>> [trace.name for trace in plot_smallest_edit(SmallestEdit(table, "positive", "block", 8)).data]
        ['direction', 'placebo']
    """
    some, every = smallest.table.iloc[:-1], smallest.table.iloc[-1]
    names = [f"{layer}, {position}" for layer, position in smallest.places]
    figure = go.Figure(
        go.Scatter(
            x=some.n,
            y=some.effect,
            error_y=whiskers(some.effect, some.low, some.high),
            mode="lines+markers",
            name="direction",
            line={"color": BLUE},
            customdata=[[name, share, kl] for name, share, kl in zip(names, some.share, some.kl, strict=True)],
            hovertemplate="+ %{customdata[0]}: %{y:.3f}, share %{customdata[1]:.0%}, KL %{customdata[2]:.3g}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=some.n, y=some.placebo, mode="lines+markers", name="placebo", line={"color": PALE}, hovertemplate="%{y:.3f}"
    )
    figure.add_hline(every.effect, line={"color": LINE, "dash": "dash"})
    figure.update_xaxes(
        title_text="added place: layer, position", tickvals=some.n.tolist(), ticktext=names, tickangle=0
    )
    figure.update_yaxes(title_text="log-odds towards the other class")
    return finish(
        figure,
        "How few places do it",
        f"{smallest.side} prompts ({smallest.n_prompts} held-out ones); dashed: all {int(every.n)} places",
    )
