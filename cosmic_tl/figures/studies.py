"""Figures of a study: what the edits do to each model, what was chosen and what it took, and the scores of every run."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.study_result import EDITS, StudyResult
from cosmic_tl.figures.heatmaps import Panel, heatmaps, height_of, mark_cells
from cosmic_tl.figures.style import BLUE, COLOURS, UNKNOWN, finish, token_label
from cosmic_tl.figures.text import as_text

BAR, THIN = 0.3, 0.12
"""Height of bars, and of those of placebos, in rows."""
BASELINE, EDIT, PLACEBO = -0.27, 0.04, 0.29
"""Where a row's bars are."""
PLACEBOS = "#6b6b6b"


@checked
def plot_study(study: StudyResult) -> go.Figure:
    """Rates of each run on both sides, without an edit and with it, with 95 % intervals and the range of the placebos: figures
    1 and 3 of Arditi et al. 2024. Published rates of the same model are hollow diamonds.

    Args:
        study: From `run_study` or `load_study`.

    Raises:
        CosmicError: If no run is finished.

    Example:
        >>> place = {"run": "demo", "model": "demo", "prompts": "demo", "settings": "cosmic", "seed": None, "alpha": None}
        >>> row = {**place, "side": "positive", "rate": 0.5, "low": 0.2, "high": 0.8, "placebo_low": 0.4, "placebo_high": 0.6}
        >>> rows = [{**row, "condition": name, "problem": ""} for name in ("baseline", "removal")]
        >>> figure = plot_study(StudyResult("one", pd.DataFrame(rows), *3 * [pd.DataFrame()]))
        >>> [trace.name for trace in figure.data]
        ['no edit', 'removal', 'placebos']
    """
    rates = study.rates
    if rates.empty:
        raise CosmicError("study: no run is finished; there is nothing to draw yet")
    names = [as_text(one) for one in rates.run]
    figure = make_subplots(1, 2, shared_yaxes=True)
    for k, (side, edit) in enumerate(EDITS.items(), 1):
        for condition, beside in (("baseline", BASELINE), (edit, EDIT)):
            name = f"{side}_{condition}"
            if name in rates:
                _bars(figure, k, rates, name, condition, beside, names)
        if f"{side}_placebo_low" in rates:
            _placebos(figure, k, rates, side, names)
        _published_rates(figure, k, study, side, edit, list(rates.run))
    for k, (side, edit) in enumerate(EDITS.items()):
        figure.add_annotation(
            name=f"panel {k}", text=f"{as_text(study.terms.sides[side])} prompts: {edit}", showarrow=False
        )
    figure.update_xaxes(range=[-0.03, 1.03], tickvals=[0, 0.5, 1], tickangle=0, showgrid=True)
    figure.update_xaxes(title_text=study.terms.rate)
    figure.update_layout(barmode="overlay")  # bars stand where they are put
    _rows(figure, names)
    published = any(trace.name == "published" for trace in figure.data)
    rate = study.terms.rate
    return finish(
        figure,
        f"{rate[:1].upper()}{rate[1:]} without and with the edit",
        "lines: 95 % intervals; thin bars: from the lowest to the highest placebo"
        + ("; diamonds: published" if published else ""),
        columns=2,
        flow=False,
        height=max(5.0, 2.6 * len(names)),
    )


def _rows(figure: go.Figure, names: Sequence[str]) -> None:
    """One row per run, from the top."""
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], tickvals=list(range(len(names))), ticktext=list(names))


def _bars(
    figure: go.Figure, k: int, rates: pd.DataFrame, name: str, condition: str, beside: float, names: Sequence[str]
) -> None:
    label = "no edit" if condition == "baseline" else condition
    low, high = rates[f"{name}_low"], rates[f"{name}_high"]
    figure.add_bar(
        x=rates[name],
        y=[row + beside for row in range(len(rates))],
        width=BAR,
        orientation="h",
        name=label,
        legendgroup=label,
        showlegend=k == 1 or condition != "baseline",
        marker={
            "color": COLOURS[condition],
            "line": {"color": COLOURS[condition], "width": 1.5},
        },  # a rate of 0 is seen
        error_x={"type": "data", "symmetric": False, "array": high - rates[name], "arrayminus": rates[name] - low},
        customdata=list(zip(names, low, high, strict=True)),
        hovertemplate=f"%{{customdata[0]}}, {label}: %{{x:.1%}} [%{{customdata[1]:.1%}}, %{{customdata[2]:.1%}}]<extra></extra>",
        row=1,
        col=k,
    )


def _placebos(figure: go.Figure, k: int, rates: pd.DataFrame, side: str, names: Sequence[str]) -> None:
    """The placebos' range, as a thin bar below that of the edit."""
    known = rates[f"{side}_placebo_low"].notna().to_numpy()
    low, high = (rates[f"{side}_placebo_{end}"][known].astype(float) for end in ("low", "high"))
    shown = [name for name, here in zip(names, known, strict=True) if here]
    figure.add_bar(
        base=low - 0.005,  # so that a range of nothing is seen
        x=high - low + 0.01,
        y=[row + PLACEBO for row in range(len(rates)) if known[row]],
        width=THIN,
        orientation="h",
        name="placebos",
        legendgroup="placebos",
        showlegend=k == 1,
        marker_color=PLACEBOS,
        customdata=list(zip(shown, low, high, strict=True)),
        hovertemplate="%{customdata[0]}, placebos: %{customdata[1]:.1%} to %{customdata[2]:.1%}<extra></extra>",
        row=1,
        col=k,
    )


def _published_rates(figure: go.Figure, k: int, study: StudyResult, side: str, edit: str, runs: list[str]) -> None:
    found = study.published
    if found.empty:
        return
    for condition, beside in (("baseline", BASELINE), (edit, EDIT)):
        some = found[(found.measure == f"{side}_{condition}") & found.run.isin(runs)]
        if some.empty:
            continue
        figure.add_scatter(
            x=some.published,
            y=[runs.index(run) + beside for run in some.run],
            mode="markers",
            marker={
                "symbol": "diamond",
                "size": 8,
                "color": "#ffffff",
                "line": {"color": COLOURS[condition], "width": 2},
            },
            name="published",
            legendgroup="published",
            showlegend=not any(trace.name == "published" for trace in figure.data),
            customdata=[as_text(source) for source in some.source],
            hovertemplate="published: %{x:.1%}<br>%{customdata}<extra></extra>",
            cliponaxis=False,
            row=1,
            col=k,
        )


@checked
def plot_study_choices(study: StudyResult) -> go.Figure:
    """Where each run's direction comes from, relative to the model's depth, how often the same candidate wins on resampled
    prompts, and the run's time and memory.

    Args:
        study: From `run_study` or `load_study`.

    Raises:
        CosmicError: If no run is finished.

    Example:
        >>> row = {"run": "demo", "model": "demo", "depth": 0.5, "layer": 4, "n_layers": 8, "stability": 0.7, "seconds": 9.0}
        >>> chosen = pd.DataFrame([{**row, "memory_gb": 0.8, "gpu_gb": None, "problem": ""}])
        >>> none = pd.DataFrame()
        >>> [note.text for note in plot_study_choices(StudyResult("one", none, chosen, none, none)).layout.annotations]
        ['layer / layers', 'share of wins', 'seconds', 'peak memory (GB)']
    """
    done = study.selections[study.selections.problem == ""] if len(study.selections) else study.selections
    if done.empty:
        raise CosmicError("study: no run is finished; there is nothing to draw yet")
    names = [as_text(one) for one in done.run]
    memory = done.gpu_gb.fillna(done.memory_gb)
    panels = {
        "layer / layers": done.depth,
        "share of wins": done.stability,
        "seconds": done.seconds,
        "peak memory (GB)": memory,
    }
    figure = make_subplots(1, len(panels))
    for k, (title, values) in enumerate(panels.items(), 1):
        numbers = values.astype(float)
        trace: dict[str, Any] = {"x": numbers, "y": list(range(len(names))), "customdata": names, "showlegend": False}
        trace["hovertemplate"] = f"%{{customdata}}: {title} %{{x:.3g}}<extra></extra>"
        if k == 1:
            figure.add_scatter(**trace, mode="markers", marker={"color": BLUE, "size": 10}, row=1, col=k)
        else:
            figure.add_bar(**trace, orientation="h", width=2 * BAR, marker_color=BLUE, row=1, col=k)
        figure.add_annotation(name=f"panel {k - 1}", text=title, showarrow=False)
        share = k <= 2
        top = numbers.max()
        figure.update_xaxes(range=[0, 1.05] if share else [0, 1.1 * top if top > 0 else 1.0], row=1, col=k)
    _published_depths(figure, study, done)
    figure.update_xaxes(nticks=4, tickangle=0, showgrid=True)
    for k in (1, 2):
        figure.update_xaxes(tickvals=[0, 0.5, 1], row=1, col=k)
    _rows(figure, names)
    published = any(trace.name == "published" for trace in figure.data)
    return finish(
        figure,
        "What was chosen, and what it took",
        "wins: resamples of the validation prompts that choose the same candidate; memory: of the GPU where there is one, else "
        "of the process" + ("; hollow diamonds: published layers" if published else ""),
        columns=len(panels),
        height=max(5.0, 1.9 * len(names)),
    )


def _published_depths(figure: go.Figure, study: StudyResult, done: pd.DataFrame) -> None:
    if study.published.empty:
        return
    layers = study.published[(study.published.measure == "layer") & study.published.run.isin(done.run)]
    if layers.empty:
        return
    runs, depth = list(done.run), dict(zip(done.run, done.n_layers, strict=True))
    figure.add_scatter(
        x=[value / int(depth[run]) for value, run in zip(layers.published, layers.run, strict=True)],
        y=[runs.index(run) for run in layers.run],
        mode="markers",
        name="published",
        showlegend=False,
        marker={"symbol": "diamond-open", "size": 12, "color": COLOURS["other"], "line": {"width": 2}},
        customdata=[as_text(source) for source in layers.source],
        hovertemplate="published: %{x:.2f}<br>%{customdata}<extra></extra>",
        row=1,
        col=1,
    )


@checked
def plot_study_scores(study: StudyResult) -> go.Figure:
    """Scores of all candidates by layer and position, one panel per run, each with its own colour scale; the chosen cell is
    framed and starred, filtered cells are crossed.

    Args:
        study: From `run_study` or `load_study`.

    Raises:
        CosmicError: If no run is finished.

    Example:
        >>> cell = {"run": "demo", "position": -1, "token": "x", "kl": 0.1, "kept": True}
        >>> scores = pd.DataFrame([{**cell, "layer": i, "score": 1.0 + i, "chosen": i == 1} for i in range(3)])
        >>> none = pd.DataFrame()
        >>> plot_study_scores(StudyResult("one", none, none, scores, none)).data[0].z.shape
        (1, 3)
    """
    if study.scores.empty:
        raise CosmicError("study: no run is finished; there is nothing to draw yet")
    panels: list[Panel] = []
    marks = []
    for run, table in study.scores.groupby("run", sort=False):
        tokens = dict(zip(table.position, table.token, strict=True))
        labels = {int(place): f"{token_label(tokens[place])} ({place})" for place in sorted(tokens)}
        grid = table.pivot(index="layer", columns="position", values="score")
        panels.append(Panel(as_text(str(run)), grid.to_numpy(float), list(labels.values())))
        best = table[table.chosen].iloc[0]
        marks.append((labels, table[~table.kept], (int(best.layer), int(best.position))))
    figure = heatmaps(panels)
    for k, (labels, dropped, chosen) in enumerate(marks):
        mark_cells(figure, k, labels, dropped, chosen)
    grey = bool(study.scores.score.isna().any())
    if grey:
        figure.update_layout(plot_bgcolor=UNKNOWN)
    return finish(
        figure,
        "Score of every candidate, by layer and position",
        "each run with its own colour scale" + ("; grey: undefined, or not needed for the choice" if grey else ""),
        columns=2,
        span=max(len(panel.values) for panel in panels),
        height=height_of(panels),
        own_labels=True,
    )
