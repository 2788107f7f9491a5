"""The figure of an α sweep (after Marshall et al. 2025): one column per method, the rate above the score."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES, Side
from cosmic_tl.experiments.conditions import REFUSAL
from cosmic_tl.experiments.sweeps import BASELINE, Sweep
from cosmic_tl.experiments.weak_alignment import REPORTED_ON, TwoRounds
from cosmic_tl.figures.effects import Names, side_names
from cosmic_tl.figures.style import COLOURS, LINE, SHADE, SYMBOLS, finish, translucent
from cosmic_tl.figures.text import as_text

ALPHA_STEPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""From one labelled α to the next."""
Place = tuple[int, int]
"""Row and column of a panel."""


@checked
def plot_sweep(sweep: Sweep, *, outcome: str | None = None, sides: Names | None = None) -> go.Figure:
    """Refusal rate, and refusal score if it was measured, against α; one column per method.

    Bands are interquartile ranges over prompts. With one completion per prompt, whose rate is 0 or 1, the bands of the rate are
    Wilson 95 % intervals. Dotted: the model without an edit. Grey: the rate is lower than at a smaller α
    (`Sweep.non_monotonic`).

    Args:
        sweep: From `sweep`.
        outcome: What the rate and the score are of. Defaults to the sweep's own: "refusal", or "concept" for other phrases.
        sides: What the positive and the negative side are called. Defaults to the sweep's own names.

    Example:
        >>> row = {"method": "affine", "side": "positive", "prompt": "hi", "sample": 0, "verdict": "refusal"}
        >>> sweep = Sweep(pd.DataFrame([{**row, "alpha": alpha} for alpha in (0.0, 1.0)]))
        >>> [trace.name for trace in plot_sweep(sweep).data if trace.showlegend]
        ['harmful prompts']
    """
    table = sweep.table
    outcome = outcome or ("refusal" if sweep.terms.outcome == REFUSAL.outcome else "concept")
    names = dict(zip(SIDES, sides or side_names(sweep.terms), strict=True))
    methods = [method for method in dict.fromkeys(table.method) if method != BASELINE[0]]
    sampled = sweep.completions["sample"].nunique() > 1
    measures = [("rate", *(("rate_q25", "rate_q75") if sampled else ("low", "high")))]
    if "score_mean" in table:
        measures.append(("score_mean", "score_q25", "score_q75"))
    figure = make_subplots(len(measures), len(methods), shared_xaxes="all", shared_yaxes="rows")
    drops = sweep.non_monotonic()
    for column, method in enumerate(methods, 1):
        figure.add_annotation(name=f"panel {column - 1}", text=as_text(method), showarrow=False)
        for row, (mean, low, high) in enumerate(measures, 1):
            shown = {side: table[(table.side == side) & table[mean].notna()] for side in SIDES}
            steered = {side: some[some.method == method] for side, some in shown.items()}
            for side, some in steered.items():
                _band(figure, some, low, high, COLOURS[side], (row, column))
            for side, some in steered.items():  # above both bands
                if row == 1 and "garbled" in some:
                    _crosses(figure, some, COLOURS[side], (row, column))
                if not some.empty:
                    _line(figure, some, (mean, low, high), side, names[side], (row, column))
                for value in shown[side][mean][shown[side].method == BASELINE[0]]:
                    line = {"color": COLOURS[side], "width": 1.3, "dash": "dot"}
                    figure.add_hline(y=value, line=line, opacity=1, row=row, col=column)
            _guides(figure, drops[drops.method == method] if row == 1 else drops[:0], (row, column))
    figure.update_xaxes(title_text="α")
    figure.update_yaxes(title_text=f"{outcome} rate", range=[-0.04, 1.04], tickformat=".0%", dtick=0.25, row=1)
    if len(measures) > 1:
        values = table[["score_q25", "score_mean", "score_q75"]].to_numpy()
        least, most = float(np.nanmin(values)), float(np.nanmax(values))
        margin = 0.05 * (most - least) or 1.0
        figure.update_yaxes(title_text=f"{outcome} score (log-odds)", range=[least - margin, most + margin], row=2)
    subtitle = f"dotted: no edit; {_bands(sampled, len(measures) > 1)}"
    if "garbled" in table and table.garbled.notna().any():
        subtitle += "; ×: share of garbled answers"
    if len(drops):
        subtitle += "; grey: lower than at a smaller α"
    title = f"{outcome[:1].upper()}{outcome[1:]} against the strength of steering"
    return finish(
        figure,
        title,
        subtitle,
        columns=len(methods),
        flow=False,
        height=15 if len(measures) == 1 else 13,
        span=float(table.alpha.max() - table.alpha.min()),
        steps=ALPHA_STEPS,
    )


@checked
def plot_two_rounds(found: TwoRounds, *, outcome: str | None = None, sides: Names | None = None) -> go.Figure:
    """Refusal rate against α on test prompts, one column per direction: the first round's, the second's, and both.

    Args:
        found: From `two_rounds`.
        outcome: As in `plot_sweep`.
        sides: As in `plot_sweep`.

    Example:
        >>> callable(plot_two_rounds)
        True
    """
    rows = found.completions
    rows = rows[(rows.split == REPORTED_ON) & rows.set.isin(SIDES)]
    names = {"direction": "method", "set": "side"}
    return plot_sweep(
        Sweep(rows.rename(columns=names).assign(sample=0), terms=found.terms), outcome=outcome, sides=sides
    )


def _bands(sampled: bool, scored: bool) -> str:
    if sampled:
        return "bands: quartiles over prompts"
    return "bands: 95 % interval" + (" of the rate, quartiles of the score over prompts" if scored else "")


def _guides(figure: go.Figure, drops: pd.DataFrame, at: Place) -> None:
    """Lines at α = 0 and 1, and shades over non-monotonic stretches, behind what the panel already shows."""
    row, column = at
    for start, end in _merged(sorted(zip(drops.peak_alpha, drops.to_alpha, strict=True))):
        figure.add_vrect(start, end, fillcolor=SHADE, line_width=0, layer="below", row=row, col=column)
    for alpha in (0, 1):
        figure.add_vline(alpha, line={"color": LINE, "width": 0.8}, layer="below", row=row, col=column)


def _merged(stretches: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping stretches joined, so that their greys do not add up."""
    found: list[tuple[float, float]] = []
    for start, end in stretches:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _band(figure: go.Figure, some: pd.DataFrame, low: str, high: str, colour: str, at: Place) -> None:
    figure.add_scatter(
        x=[*some.alpha, *some.alpha[::-1]],
        y=[*some[high], *some[low][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=translucent(colour, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        row=at[0],
        col=at[1],
    )


def _crosses(figure: go.Figure, some: pd.DataFrame, colour: str, at: Place) -> None:
    figure.add_scatter(
        x=some.alpha,
        y=some.garbled,
        mode="markers",
        marker={"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": colour}},
        hovertemplate="α = %{x}: %{y:.1%} garbled<extra></extra>",
        showlegend=False,
        row=at[0],
        col=at[1],
    )


def _line(
    figure: go.Figure, some: pd.DataFrame, columns: tuple[str, str, str], side: Side, name: str, at: Place
) -> None:
    mean, low, high = columns
    shown = ".1%" if mean == "rate" else ".2f"
    figure.add_scatter(
        x=some.alpha,
        y=some[mean],
        name=name,
        legendgroup=side,
        showlegend=at == (1, 1),
        mode="lines+markers",
        line={"color": COLOURS[side], "width": 2},
        marker={"symbol": SYMBOLS[side], "size": 6},
        customdata=some[[low, high, "n"]],
        hovertemplate=f"α = %{{x}}: %{{y:{shown}}} [%{{customdata[0]:{shown}}}, %{{customdata[1]:{shown}}}], "
        "n = %{customdata[2]}",
        row=at[0],
        col=at[1],
    )
