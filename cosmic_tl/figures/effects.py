"""Figures of what an intervention does to completions."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from cosmic_tl.figures.style import COLOURS, GREEN, finish

SIDES = ("harmful prompts", "harmless prompts")
"""What the positive and the negative side are called, if the concept is refusal."""


def plot_refusal_rates(
    effects: pd.DataFrame, outcome: str = "refusal rate", sides: tuple[str, str] = SIDES
) -> go.Figure:
    """Refusal rates under each condition with Wilson 95 % intervals.

    Args:
        effects: From `Effects.table`.
        outcome: What was judged, where the concept is not refusal.
        sides: What the positive and the negative side are called.

    Example:
        >>> row = {"kind": "harmful", "condition": "baseline", "n": 10, "refusal_rate": 0.9, "low": 0.6, "high": 0.98}
        >>> figure = plot_refusal_rates(pd.DataFrame([row]), "poems", ("asked for poems", "asked for prose"))
        >>> figure.layout.yaxis.title.text, list(figure.data[0].x[0])
        ('poems', ['asked for poems'])
    """
    names = dict(zip(("harmful", "harmless"), sides, strict=True))
    conditions = [escape(name).replace(" ", "<br>") for name in effects.condition]
    figure = go.Figure(
        go.Bar(
            x=[[names[kind] for kind in effects.kind], conditions],
            y=effects.refusal_rate,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": effects.high - effects.refusal_rate,
                "arrayminus": effects.refusal_rate - effects.low,
            },
            marker_color=[COLOURS.get(name.split()[0], COLOURS["other"]) for name in effects.condition],
            customdata=effects[["low", "high", "n"]],
            hovertemplate="%{x}: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}], n = %{customdata[2]}"
            "<extra></extra>",
        )
    )
    garbled = "garbled" in effects
    if garbled:
        figure.add_scatter(
            x=[[names[kind] for kind in effects.kind], conditions],
            y=effects.garbled,
            mode="markers",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": GREEN}},
            hovertemplate="%{x}: %{y:.1%} garbled<extra></extra>",
            showlegend=False,
        )
    figure.update_yaxes(title_text=outcome, range=[0, 1.04], tickformat=".0%", showgrid=True)
    figure.update_xaxes(tickangle=0 if len(effects) <= 6 else None)
    lines = max(name.count("<br>") for name in conditions) + 2.4
    title = f"{outcome[:1].upper()}{outcome[1:]}"
    subtitle = "lines: 95 % Wilson intervals" + ("; ×: share of garbled answers" if garbled else "")
    return finish(figure, title, subtitle, tick_lines=lines)
