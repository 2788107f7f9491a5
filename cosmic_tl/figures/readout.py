"""The figure of what a direction says."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import BLUE, LINE, VERMILION, finish, token_label
from cosmic_tl.metrics.readout import LENSES, Readout

TITLES = {"+": "promoted", "-": "suppressed"}


@checked
def plot_readout(readout: Readout) -> go.Figure:
    """The tokens that a direction promotes and suppresses most, in standard deviations of random directions.

    Args:
        readout: From `read_tokens`.

    Example:
        >>> import pandas as pd, torch
        >>> from cosmic_tl import Direction
        >>> rows = {"sign": ["+", "-"], "token": ["a", "b"], "id": [1, 2], "logit": 1.0, "z": 5.0, "beyond_chance": True}
        >>> figure = plot_readout(Readout(pd.DataFrame(rows), 4.0, Direction(torch.ones(4), None, 3, -1)))
        >>> [trace.name for trace in figure.data]
        ['promoted', 'suppressed']
    """
    figure = make_subplots(1, 2)
    for column, (sign, colour) in enumerate((("+", VERMILION), ("-", BLUE)), 1):
        some = readout.table[readout.table.sign == sign]
        rows = list(range(len(some)))
        figure.add_scatter(
            x=some.z,
            y=rows,
            mode="markers",
            name=TITLES[sign],
            marker={"color": colour, "size": 9},
            customdata=some[["token", "logit"]].assign(token=some.token.map(token_label)),
            hovertemplate="%{customdata[0]}: z %{x:.2f}, logit %{customdata[1]:.2f}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_vline(readout.chance, line={"color": LINE, "dash": "dash"}, row=1, col=column)
        figure.add_annotation(name=f"panel {column - 1}", text=TITLES[sign], showarrow=False)
        figure.update_yaxes(
            tickvals=rows,
            ticktext=some.token.map(token_label).tolist(),
            range=[len(rows) - 0.5, -0.5],
            row=1,
            col=column,
        )
    figure.update_xaxes(title_text="z", rangemode="tozero")
    d = readout.direction
    return finish(
        figure,
        "What the direction says",
        f"layer {d.layer}, position {d.position}, {LENSES[readout.lens]}; z: logit in standard deviations of random directions; "
        "dashed: exceeded by the best token of one random direction in twenty",
        columns=2,
        height=max(5.0, 1.3 * len(readout.table) / 2),
        own_labels=True,
    )
