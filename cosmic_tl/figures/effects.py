"""Figures of what an intervention does to completions."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from cosmic_tl.figures.style import COLOURS, GREEN, finish

SIDES = ("harmful prompts", "harmless prompts")
"""What the positive and the negative side are called, if the concept is refusal."""

MANY = 6
"""Conditions above which bars lie, so that their names have room."""


def plot_refusal_rates(
    effects: pd.DataFrame, outcome: str = "refusal rate", sides: tuple[str, str] = SIDES
) -> go.Figure:
    """Refusal rates under each condition with Wilson 95 % intervals; of placebos with several seeds the mean and the range.

    Args:
        effects: From `Effects.table`.
        outcome: What was judged, where the concept is not refusal.
        sides: What the positive and the negative side are called.

    Example:
        >>> row = {"side": "positive", "condition": "baseline", "n": 10, "rate": 0.9, "low": 0.6, "high": 0.98}
        >>> figure = plot_refusal_rates(pd.DataFrame([row]), "poems", ("asked for poems", "asked for prose"))
        >>> figure.layout.yaxis.title.text, list(figure.data[0].x[0])
        ('poems', ['asked for poems'])
    """
    names = dict(zip(("positive", "negative"), sides, strict=True))
    many = len(effects) > MANY
    conditions = [escape(name) if many else escape(name).replace(" ", "<br>") for name in effects.condition]
    seeds = effects.seeds if "seeds" in effects else pd.Series(0, effects.index)
    colours = [
        COLOURS["random"] if n else COLOURS.get(name.split()[0], COLOURS["other"])
        for name, n in zip(effects.condition, seeds, strict=True)
    ]
    places = [[names[side] for side in effects.side], conditions]
    errors = {
        "type": "data",
        "symmetric": False,
        "array": effects.high - effects.rate,
        "arrayminus": effects.rate - effects.low,
    }
    along, across = ("y", "x") if many else ("x", "y")
    bars = {along: places, across: effects.rate, f"error_{across}": errors, "orientation": "h" if many else "v"}
    figure = go.Figure(
        go.Bar(
            **bars,
            showlegend=False,
            marker_color=colours,
            customdata=effects[["low", "high", "n"]].assign(seeds=[f", {n} seeds" if n > 1 else "" for n in seeds]),
            hovertemplate=f"%{{{along}}}: %{{{across}:.1%}} [%{{customdata[0]:.1%}}, %{{customdata[1]:.1%}}], "
            "n = %{customdata[2]}%{customdata[3]}<extra></extra>",
        )
    )
    garbled = "garbled" in effects
    if garbled:
        figure.add_scatter(
            **{along: places, across: effects.garbled},
            mode="markers",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": GREEN}},
            hovertemplate=f"%{{{along}}}: %{{{across}:.1%}} garbled<extra></extra>",
            showlegend=False,
        )
    shares = {"title_text": outcome, "range": [0, 1.04], "tickformat": ".0%", "showgrid": True}
    title = f"{outcome[:1].upper()}{outcome[1:]}"
    subtitle = "lines: 95 % Wilson intervals" + ("; ×: share of garbled answers" if garbled else "")
    if (seeds > 1).any():
        subtitle += "; pale: placebos, with the range over seeds"
    if many:
        figure.update_layout(xaxis=shares, yaxis={"autorange": "reversed"})
        return finish(figure, title, subtitle, height=1.9 * len(effects))
    figure.update_layout(yaxis=shares, xaxis={"tickangle": 0})
    lines = max(name.count("<br>") for name in conditions) + 2.4
    return finish(figure, title, subtitle, tick_lines=lines)
