"""The figure of what an edit does to completions."""

import pandas as pd
import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.conditions import Terms
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.figures.style import COLOURS, GREEN, LINE, condition_colour, finish
from cosmic_tl.figures.text import as_text

MANY = 6
"""Number of conditions above which bars are horizontal, so that their names have room."""
Names = tuple[str, str]
"""What the prompts of the positive and of the negative side are called."""


def side_names(terms: Terms) -> Names:
    """Names of the two sides' prompts in legends and on axes.

    Example:
        >>> from cosmic_tl.experiments.conditions import REFUSAL
        >>> side_names(REFUSAL)
        ('harmful prompts', 'harmless prompts')
    """
    positive, negative = (f"{as_text(terms.sides[side])} prompts" for side in SIDES)
    return positive, negative


@checked
def plot_refusal_rates(effects: Effects, *, outcome: str | None = None, sides: Names | None = None) -> go.Figure:
    """Refusal rate (or the rate of another concept) under each condition, with Wilson 95 % intervals.

    A placebo with several seeds has one bar: the mean over seeds, with their range in place of the interval.

    Args:
        effects: From `measure_effects`.
        outcome: Label of the rate. Defaults to the effects' own, such as "refusal rate".
        sides: What the positive and the negative side are called. Defaults to the effects' own names.

    Example:
        >>> row = {"side": "positive", "condition": "baseline", "verdict": "refusal", "cross_entropy": 0.5}
        >>> effects = Effects(pd.DataFrame([row]))
        >>> figure = plot_refusal_rates(effects, outcome="poems", sides=("asked for poems", "asked for prose"))
        >>> figure.layout.yaxis.title.text, list(figure.data[0].x[0])
        ('poems', ['asked for poems'])
    """
    outcome = outcome or effects.terms.rate
    names = dict(zip(SIDES, sides or side_names(effects.terms), strict=True))
    table = effects.table.sort_values("side", key=lambda side: side.map(SIDES.index), kind="stable")
    many = len(table) > MANY
    conditions = [as_text(name) if many else as_text(name).replace(" ", "<br>") for name in table.condition]
    seeds = table.seeds if "seeds" in table else pd.Series(0, table.index)
    colours = [
        COLOURS["random"] if n else condition_colour(name) for name, n in zip(table.condition, seeds, strict=True)
    ]
    places = [[names[side] for side in table.side], conditions]
    errors = {
        "type": "data",
        "symmetric": False,
        "array": table.high - table.rate,
        "arrayminus": table.rate - table.low,
    }
    along, across = ("y", "x") if many else ("x", "y")
    bars = {along: places, across: table.rate, f"error_{across}": errors, "orientation": "h" if many else "v"}
    figure = go.Figure(
        go.Bar(
            **bars,
            showlegend=False,
            marker_color=colours,
            customdata=table[["low", "high", "n"]].assign(seeds=[f", {n} seeds" if n > 1 else "" for n in seeds]),
            hovertemplate=f"%{{{along}}}: %{{{across}:.1%}} [%{{customdata[0]:.1%}}, %{{customdata[1]:.1%}}], "
            "n = %{customdata[2]}%{customdata[3]}<extra></extra>",
        )
    )
    garbled = "garbled" in table
    if garbled:
        figure.add_scatter(
            **{along: places, across: table.garbled},
            mode="markers",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": GREEN}},
            cliponaxis=False,
            hovertemplate=f"%{{{along}}}: %{{{across}:.1%}} garbled<extra></extra>",
            showlegend=False,
        )
    # Room on both sides, so that whiskers at 0 % and 100 % are not cut off.
    shares = {"title_text": outcome, "range": [-0.03, 1.03], "tickformat": ".0%", "tickangle": 0, "showgrid": True}
    shares |= {"zeroline": True, "zerolinecolor": LINE}
    title = f"{outcome[:1].upper()}{outcome[1:]}"
    subtitle = "lines: 95 % Wilson intervals" + ("; ×: share of garbled answers" if garbled else "")
    if (seeds > 1).any():
        subtitle += "; pale: placebos, with the range over seeds"
    if many:
        figure.update_layout(xaxis=shares, yaxis={"autorange": "reversed"})
        return finish(figure, title, subtitle, height=1.9 * len(table))
    figure.update_layout(yaxis=shares, xaxis={"tickangle": 0})
    lines = max(name.count("<br>") for name in conditions) + 2.4
    return finish(figure, title, subtitle, tick_lines=lines)
