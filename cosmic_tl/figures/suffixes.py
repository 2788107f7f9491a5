"""Figures of what an adversarial suffix does inside the model (Arditi et al. 2024, figures 5 and 6)."""

import pandas as pd
import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import BLUE, COLOURS, LINE, finish
from cosmic_tl.figures.text import as_text
from cosmic_tl.suffixes.analysis import SuffixAnalysis
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, HARMLESS, RANDOM, REGIONS
from cosmic_tl.suffixes.heads import top_heads
from cosmic_tl.suffixes.suffix import Suffix

GROUP_LOOKS = {
    HARMFUL: (COLOURS["positive"], "solid", "circle"),
    RANDOM: (COLOURS["random suffix"], "dash", "circle-open"),
    ADVERSARIAL: (COLOURS["adversarial suffix"], "solid", "square"),
    HARMLESS: (COLOURS["negative"], "dot", "diamond-open"),
}
"""Colour, dash and symbol of each group, so that lines can be told apart without colour."""
OTHER = (COLOURS["other"], "solid", "circle")
REGION_COLOURS = dict(
    zip(REGIONS, (COLOURS["positive"], COLOURS["adversarial suffix"], COLOURS["random"]), strict=True)
)
SHORT = {RANDOM: "rnd", ADVERSARIAL: "adv"}
"""Groups on an axis with little room."""


@checked
def plot_suffix_cosines(analysis: SuffixAnalysis) -> go.Figure:
    """Cosine between the last token's residual stream and the direction, by layer: mean and one SD over prompts.

    Args:
        analysis: From `analyse_suffix`, whose `cosines` are shown.

    Example:
        >>> cosines = pd.DataFrame({"group": "harmful", "layer": [0, 1], "mean": [0.1, 0.2], "sd": 0.1, "n": 4})
        >>> none = pd.DataFrame()
        >>> len(plot_suffix_cosines(SuffixAnalysis(none, cosines, none, none)).data)
        2
    """
    figure, cosines = go.Figure(), analysis.cosines
    groups = list(dict.fromkeys(cosines.group))
    for group in groups:
        some = cosines[cosines.group == group]
        edge = pd.concat([some["mean"] + some.sd, (some["mean"] - some.sd)[::-1]])
        figure.add_scatter(
            x=pd.concat([some.layer, some.layer[::-1]]),
            y=edge,
            mode="lines",
            fill="toself",
            fillcolor=GROUP_LOOKS.get(group, OTHER)[0],
            opacity=0.16,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
    for group in groups:
        some = cosines[cosines.group == group]
        colour, dash, symbol = GROUP_LOOKS.get(group, OTHER)
        figure.add_scatter(
            x=some.layer,
            y=some["mean"],
            name=as_text(group),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 7},
            customdata=some[["sd", "n"]],
            hovertemplate="layer %{x}: %{y:.3f} ± %{customdata[0]:.3f} (SD, n = %{customdata[1]})",
        )
    figure.add_hline(y=0, line={"color": LINE, "width": 1}, layer="below")
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="cosine with r̂")
    return finish(
        figure, "The direction at the last token, by layer", "mean ± SD over prompts", span=cosines.layer.nunique()
    )


@checked
def plot_suffix_losses(suffix: Suffix) -> go.Figure:
    """The loss of the search's best candidate at each step.

    Args:
        suffix: From `find_suffix`.

    Example:
        >>> list(plot_suffix_losses(Suffix(" x", (5,), (2.0, 1.5), (), (), (), ())).data[0].x)
        [1, 2]
    """
    steps = list(range(1, len(suffix.losses) + 1))
    figure = go.Figure(go.Scatter(x=steps, y=suffix.losses, mode="lines", line={"color": BLUE, "width": 2}))
    figure.update_traces(hovertemplate="step %{x}: %{y:.3f}<extra></extra>")
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="loss (nats per token)", showgrid=True)
    complied = f"complies with {suffix.n_complied} of {len(suffix.prompts)} prompts in the end"
    return finish(figure, "Search for an adversarial suffix", complied)


@checked
def plot_head_contributions(analysis: SuffixAnalysis, n: int = 8) -> go.Figure:
    """What the strongest heads write along the direction at the last token, by group: mean and one SD over prompts.

    Args:
        analysis: From `analyse_suffix`, whose `contributions` are shown.
        n: Number of heads, ranked on harmful prompts with a random suffix. Defaults to 8.

    Example:
        >>> written = {"group": [RANDOM], "layer": [4], "head": [1], "mean": [0.1], "sd": [0.1], "n": [4]}
        >>> none = pd.DataFrame()
        >>> plot_head_contributions(SuffixAnalysis(none, none, pd.DataFrame(written), none)).data[0].x
        ('4.1',)
    """
    contributions = analysis.contributions
    heads = top_heads(contributions, n=n)
    table = contributions.set_index(["group", "layer", "head"])
    figure = go.Figure()
    for group in dict.fromkeys(contributions.group):
        some = table.loc[[(group, *head) for head in heads]]
        figure.add_bar(
            x=[f"{layer}.{head}" for layer, head in heads],
            y=some["mean"],
            error_y={"type": "data", "array": some.sd, "thickness": 1, "width": 2},
            name=as_text(group),
            marker={"color": GROUP_LOOKS.get(group, OTHER)[0]},
            customdata=some[["sd", "n"]],
            hovertemplate="head %{x}: %{y:.3f} ± %{customdata[0]:.3f} (SD, n = %{customdata[1]})",
        )
    figure.update_xaxes(title_text="head (layer.head), strongest first", type="category")
    figure.update_yaxes(title_text="output along r̂ (activation units)", zeroline=True, zerolinecolor=LINE)
    figure.update_layout(barmode="group", bargap=0.25)
    return finish(figure, "What the strongest heads write along the direction", "mean ± SD over prompts")


@checked
def plot_head_attention(analysis: SuffixAnalysis) -> go.Figure:
    """What the strongest heads attend to from the last token, with a random and with the adversarial suffix.

    Args:
        analysis: From `analyse_suffix`, whose `attention` is shown.

    Example:
        >>> shares = {"group": RANDOM, "layer": 4, "head": 1, "region": REGIONS, "mean": [0.5, 0.2, 0.3], "sd": 0.1}
        >>> none = pd.DataFrame()
        >>> figure = plot_head_attention(SuffixAnalysis(none, none, none, pd.DataFrame({**shares, "n": 4})))
        >>> [bar.name for bar in figure.data]
        ['instruction', 'suffix', 'template']
    """
    figure, attention = go.Figure(), analysis.attention
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
    figure.update_yaxes(title_text="share of attention", tickformat=".0%", range=[0, 1])
    figure.update_layout(barmode="stack", bargap=0.2, legend={"traceorder": "normal"})
    subtitle = "rnd: harmful prompts with a random suffix; adv: with the adversarial suffix"
    return finish(figure, "What the strongest heads attend to from the last token", subtitle, tick_lines=3.6)
