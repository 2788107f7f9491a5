"""The figure of a conversation, token by token."""

from math import ceil

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.conversation import COMPLETION, REACH, Conversation
from cosmic_tl.figures.style import DIVERGING, finish, token_label
from cosmic_tl.figures.text import as_text

MOST_LABELS = 120
"""Maximum number of tokens that are all labelled."""


@checked
def plot_conversation(conversation: Conversation) -> go.Figure:
    """Each token's projection on the direction, by layer: a panel per condition, on one colour scale centred between the classes.

    Args:
        conversation: From `follow_conversation`.

    Example:
        >>> import torch
        >>> from cosmic_tl import Direction, load_model
        >>> from cosmic_tl.experiments import follow_conversation
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = follow_conversation(load_model("demo", device="cpu"), "Rob a clerk.", direction, max_new_tokens=4)
        >>> figure = plot_conversation(found)
        >>> figure.layout.annotations[0].text, len(figure.data[0].z)  # a template of 8 tokens, a prompt of 4, and its answer
        ('baseline', 18)
    """
    found = conversation
    centre, marks = found.scale
    first, last = found.layers[0], found.layers[-1]
    figure = make_subplots(1, len(found.completions))
    most = int(found.table["index"].max()) + 1
    for k, (name, some) in enumerate(found.table.groupby("condition", sort=False), 1):
        values = some.pivot(index="index", columns="layer", values="projection").reindex(columns=range(first, last + 1))
        tokens = some.drop_duplicates("index")
        labels, n_tokens = [token_label(token) for token in tokens.token], len(tokens)
        figure.add_trace(
            go.Heatmap(
                z=values.to_numpy(),
                x=list(values.columns),
                y=list(range(n_tokens)),
                customdata=np.repeat(np.array([labels, tokens.part], dtype=object).T[:, None], values.shape[1], axis=1),
                hovertemplate="layer %{x}, token %{y}: %{customdata[0]} (%{customdata[1]})<br>%{z:.3f}<extra></extra>",
                hoverongaps=False,
                xgap=1,
                ygap=1,
                colorscale=DIVERGING,
                zmin=centre - REACH,
                zmax=centre + REACH,
                colorbar={"title": {"text": "projection"}},
                showscale=k == len(found.completions),
            ),
            1,
            k,
        )
        every = list(range(n_tokens))[:: ceil(most / MOST_LABELS)]
        figure.update_xaxes(range=[first - 0.5, last + 0.5], row=1, col=k)
        figure.update_yaxes(range=[most - 0.5, -0.5], tickvals=every, ticktext=[labels[i] for i in every], row=1, col=k)
        begins = int((tokens.part != COMPLETION).sum()) - 0.5
        lines = [{"x0": first - 0.5, "x1": last + 0.5, "y0": begins, "y1": begins}]
        if first <= found.direction.layer <= last:
            sides = (found.direction.layer - 0.5, found.direction.layer + 0.5)
            lines += [{"x0": x, "x1": x, "y0": -0.5, "y1": n_tokens - 0.5} for x in sides]
        for colour, dash in (("#ffffff", "solid"), ("#000000", "dot")):  # seen on any colour
            for line in lines:
                figure.add_shape(type="line", line={"color": colour, "width": 1.5, "dash": dash}, **line, row=1, col=k)
        figure.add_annotation(name=f"panel {k - 1}", text=as_text(str(name)), showarrow=False)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="token")
    meant = ", ".join(f"{value:g}: {name}" for name, value in marks.items())
    return finish(
        figure,
        "The direction in each token of a conversation",
        f"projection on the direction ({meant}); dotted: the direction's own layer, and where the answer begins",
        columns=3,
        span=last + 1 - first,
        height=max(8.0, 1.2 * min(most, MOST_LABELS)),
        own_labels=True,
    )
