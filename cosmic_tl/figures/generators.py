"""The figure of what several generators choose."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import BLUE, LINE, ORANGE, VERMILION, finish, whiskers
from cosmic_tl.selection.generators import GeneratorChoices


@checked
def plot_generators(choices: GeneratorChoices) -> go.Figure:
    """How often each generator's choice is the best of all, and how far it lies behind, with 95 % intervals.

    Args:
        choices: `Selection.generators`.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"generator": ["pca", "dim"], "layer": [3, 4], "position": [-1, -2], "wins": [0.7, 0.3]})
        >>> table = table.assign(behind=[0.0, 0.1], behind_low=[0.0, -0.1], behind_high=[0.0, 0.2], failure="")
        >>> plot_generators(GeneratorChoices(table)).data[0].x.tolist()
        [0.7, 0.3]
    """
    table = choices.table[choices.table.failure == ""]
    names = [f"{row.generator} (layer {row.layer}, position {row.position})" for row in table.itertuples()]
    tied = table.behind_low <= 0
    colours = [VERMILION if k == 0 else ORANGE if one else BLUE for k, one in enumerate(tied)]
    titles = ["score behind the best"]
    if table.wins.notna().all():
        titles.insert(0, "share of wins")
    figure = make_subplots(1, len(titles), shared_yaxes=True)
    if len(titles) > 1:
        figure.add_bar(
            x=table.wins,
            y=names,
            orientation="h",
            marker_color=colours,
            hovertemplate="%{y}: %{x:.1%} of the resamples<extra></extra>",
            showlegend=False,
            row=1,
            col=1,
        )
        figure.update_xaxes(range=[0, 1.1], tickvals=[0, 0.5, 1], row=1, col=1)
    figure.add_scatter(
        x=table.behind,
        y=names,
        error_x=whiskers(table.behind, table.behind_low, table.behind_high),
        mode="markers",
        marker={"color": colours, "size": 8},
        customdata=table[["behind_low", "behind_high"]],
        hovertemplate="%{y}: %{x:.4f} [%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra></extra>",
        showlegend=False,
        row=1,
        col=len(titles),
    )
    figure.add_vline(0, line={"color": LINE, "dash": "dash"}, row=1, col=len(titles))
    for k, title in enumerate(titles):
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    figure.update_xaxes(nticks=4, tickangle=0)
    figure.update_yaxes(autorange="reversed")
    return finish(
        figure,
        "What each way to make directions chooses",
        "red: the highest score; orange: it cannot be told apart from that. Lines: 95 % intervals, simultaneous, on resampled "
        "validation prompts",
        columns=len(titles),
        flow=False,
        height=1.9 * len(table),
    )
