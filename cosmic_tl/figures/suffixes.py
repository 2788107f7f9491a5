"""Figures of the suffix analysis (Arditi et al. 2024, figures 5 and 6): tables in, `go.Figure` out."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from cosmic_tl.figures.style import COLOURS, LINE, finish
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, HARMLESS, RANDOM, REGIONS
from cosmic_tl.suffixes.heads import top_heads

LOOKS = {
    HARMFUL: (COLOURS["positive"], "solid", "circle"),
    RANDOM: (COLOURS["random suffix"], "dash", "circle-open"),
    ADVERSARIAL: (COLOURS["adversarial suffix"], "solid", "square"),
    HARMLESS: (COLOURS["negative"], "dot", "diamond-open"),
}
"""Colour, dash and symbol of each group: lines can be told apart without colour."""
OTHER = (COLOURS["other"], "solid", "circle")
REGION_COLOURS = dict(
    zip(REGIONS, (COLOURS["positive"], COLOURS["adversarial suffix"], COLOURS["random"]), strict=True)
)
SHORT = {RANDOM: "rnd", ADVERSARIAL: "adv"}


def plot_suffix_cosines(cosines: pd.DataFrame) -> go.Figure:
    """Cosine with the direction at the last token by layer: mean over prompts, and a band of one SD.

    Args:
        cosines: From `suffix_cosines`.

    Example:
        >>> columns = {"group": ["harmful"] * 2, "layer": [0, 1], "mean": [0.1, 0.2], "sd": [0.1, 0.1], "n": [4, 4]}
        >>> len(plot_suffix_cosines(pd.DataFrame(columns)).data)
        2
    """
    figure = go.Figure()
    groups = list(dict.fromkeys(cosines.group))
    for group in groups:
        some = cosines[cosines.group == group]
        edge = pd.concat([some["mean"] + some.sd, (some["mean"] - some.sd)[::-1]])
        figure.add_scatter(
            x=pd.concat([some.layer, some.layer[::-1]]),
            y=edge,
            mode="lines",
            fill="toself",
            fillcolor=LOOKS.get(group, OTHER)[0],
            opacity=0.16,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
    for group in groups:
        some = cosines[cosines.group == group]
        colour, dash, symbol = LOOKS.get(group, OTHER)
        figure.add_scatter(
            x=some.layer,
            y=some["mean"],
            name=escape(group),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 7},
            customdata=some[["sd", "n"]],
            hovertemplate="layer %{x}: %{y:.3f} ± %{customdata[0]:.3f} (SD, n = %{customdata[1]})",
        )
    figure.add_hline(y=0, line={"color": LINE, "width": 1}, layer="below")
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="cosine with r̂")
    return finish(figure, "The direction at the last token", "mean ± SD over prompts", span=cosines.layer.nunique())


def plot_head_contributions(contributions: pd.DataFrame, n: int = 8) -> go.Figure:
    """What the strongest heads write along the direction at the last token, by group, with one SD.

    Args:
        contributions: From `head_contributions`.
        n: How many heads, ranked on harmful prompts with a random suffix. Default 8.

    Example:
        >>> columns = {"group": [RANDOM], "layer": [4], "head": [1], "mean": [0.1], "sd": [0.1], "n": [4]}
        >>> plot_head_contributions(pd.DataFrame(columns)).data[0].x
        ('4.1',)
    """
    heads = top_heads(contributions, n=n)
    table = contributions.set_index(["group", "layer", "head"])
    figure = go.Figure()
    for group in dict.fromkeys(contributions.group):
        some = table.loc[[(group, *head) for head in heads]]
        figure.add_bar(
            x=[f"{layer}.{head}" for layer, head in heads],
            y=some["mean"],
            error_y={"type": "data", "array": some.sd, "thickness": 1, "width": 2},
            name=escape(group),
            marker={"color": LOOKS.get(group, OTHER)[0]},
            customdata=some[["sd", "n"]],
            hovertemplate="head %{x}: %{y:.3f} ± %{customdata[0]:.3f} (SD, n = %{customdata[1]})",
        )
    figure.update_xaxes(title_text="head (layer.head), strongest first", type="category")
    figure.update_yaxes(title_text="output along r̂ (activation units)", zeroline=True, zerolinecolor=LINE)
    figure.update_layout(barmode="group", bargap=0.25)
    return finish(figure, "What the strongest heads write along the direction", "mean ± SD over prompts")


def plot_head_attention(attention: pd.DataFrame) -> go.Figure:
    """Where the strongest heads look from the last token, with a random and with the adversarial suffix.

    Args:
        attention: From `head_attention`.

    Example:
        >>> columns = {"group": RANDOM, "layer": 4, "head": 1, "region": REGIONS, "mean": [0.5, 0.2, 0.3], "sd": 0.1}
        >>> [bar.name for bar in plot_head_attention(pd.DataFrame({**columns, "n": 4})).data]
        ['instruction', 'suffix', 'template']
    """
    figure = go.Figure()
    names = attention.layer.astype(str) + "." + attention["head"].astype(str)
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    groups = {group: i for i, group in enumerate(dict.fromkeys(attention.group))}
    keyed = attention.assign(name=names, rank=names.map(order), side=attention.group.map(groups))
    keyed = keyed.sort_values(["rank", "side"], kind="stable")
    for region in REGIONS:
        some = keyed[keyed.region == region]
        figure.add_bar(
            x=[some["name"], some.group.map(lambda group: SHORT.get(group, group))],
            y=some["mean"],
            name=region,
            marker={"color": REGION_COLOURS[region]},
            customdata=some[["sd", "n", "group"]],
            hovertemplate="%{customdata[2]}<br>head %{x}: %{y:.1%} ± %{customdata[0]:.1%} (SD, n = %{customdata[1]})",
        )
    figure.update_xaxes(title_text="head (layer.head), strongest first", tickangle=-90)
    figure.update_yaxes(title_text="share of the attention", tickformat=".0%", range=[0, 1])
    figure.update_layout(barmode="stack", bargap=0.2, legend={"traceorder": "normal"})
    subtitle = "rnd: harmful prompts with a random suffix; adv: with the adversarial suffix"
    return finish(figure, "Where the strongest heads look from the last token", subtitle, tick_lines=3.6)
