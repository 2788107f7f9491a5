"""The figure of the texts that carry most and least of a direction."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import BLUE, VERMILION, finish, token_label
from cosmic_tl.metrics.strongest import StrongestActivations

COLOURS = {"largest": VERMILION, "smallest": BLUE}
BEFORE = 20
"""Characters of the text before the token; those after it play no part in what it carries."""


@checked
def plot_strongest_activations(strongest: StrongestActivations) -> go.Figure:
    """The largest and the smallest activations along a direction, each with its token in its text.

    Args:
        strongest: From `strongest_activations`.

    Example:
        >>> import pandas as pd, torch
        >>> from cosmic_tl import Direction
        >>> rows = {"end": ["largest", "smallest"], "rank": 1, "value": [2.0, -1.0], "text": [0, 1], "index": 3, "token": "b"}
        >>> table = pd.DataFrame(rows).assign(before="a", after="c")
        >>> direction = Direction(torch.ones(4), None, 3, -1)
        >>> figure = plot_strongest_activations(StrongestActivations(table, 2, 9, "projection", direction))
        >>> figure.layout.yaxis.ticktext
        ('a<b>b</b>',)
    """
    figure = make_subplots(1, 2)
    for column, (end, colour) in enumerate(COLOURS.items(), 1):
        some = strongest.table[strongest.table.end == end]
        labels = [f"{token_label(one.before[-BEFORE:])}<b>{token_label(one.token)}</b>" for one in some.itertuples()]
        rows = list(range(len(some)))
        figure.add_scatter(
            x=some.value,
            y=rows,
            mode="markers",
            marker={"color": colour, "size": 9},
            customdata=some[["text", "index"]],
            hovertemplate="text %{customdata[0]}, token %{customdata[1]}: %{x:.3f}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_annotation(name=f"panel {column - 1}", text=end, showarrow=False)
        figure.update_yaxes(tickvals=rows, ticktext=labels, range=[len(rows) - 0.5, -0.5], row=1, col=column)
    figure.update_xaxes(title_text="x·r̂" if strongest.measure == "projection" else "cosine with r̂")
    d = strongest.direction
    return finish(
        figure,
        "Where the direction is strongest",
        f"at the input of layer {d.layer}; {strongest.n_texts} texts, {strongest.n_tokens} tokens; each text at one token (bold)",
        columns=2,
        height=max(5.0, 1.3 * len(strongest.table) / 2),
        own_labels=True,
    )
