"""The page of a study of many models: each model's choice and rates, figures, published figures beside them, and every run."""

from typing import Any

import pandas as pd

from cosmic_tl.experiments.study_result import EDITS, StudyResult
from cosmic_tl.figures.studies import plot_study, plot_study_choices, plot_study_scores
from cosmic_tl.report.parts import render, table
from cosmic_tl.report.pictures import Picture

_SCORES = {
    "score": "score",
    "s_comply": "S comply",
    "s_refuse": "S refuse",
    "bypass": "bypass",
    "induce": "induce",
    "kl": "KL",
}


def write_study(found: StudyResult, *, command: str = "") -> str:
    """The page of a study (`study.html`) as text.

    Args:
        found: From `run_study` or `load_study`.
        command: The command that repeats the study. Defaults to none.

    Example:
        >>> place = {"run": "<b>", "model": "<b>", "prompts": "demo", "settings": "cosmic", "seed": None, "alpha": None}
        >>> bad = pd.DataFrame([{**place, "folder": "demo-1", "problem": "out of memory"}])
        >>> none = pd.DataFrame()
        >>> page = write_study(StudyResult("two", bad.assign(side="", condition=""), bad, none, none))
        >>> "<h1>two</h1>" in page, "out of memory" in page, "<b>" in page
        (True, True, False)
    """
    done = found.selections[found.selections.problem == ""] if len(found.selections) else found.selections
    figures: dict[str, Any] = {}
    if len(done):
        figures = {"rates": plot_study(found), "choices": plot_study_choices(found), "scores": plot_study_scores(found)}
    n, m = len(found.selections), len(done)
    return render(
        "study",
        title=f"Study {found.name}",
        heading=found.name,
        about=[f"{m} of {n} runs finished"],
        found=found,
        terms=found.terms,
        n=n,
        n_done=m,
        rates=table(_rates(found), "Rates without and with the edit"),
        choices=table(_choices(done), "The choice of each run"),
        took=table(_took(done), "What each run took"),
        published=table(_published(found), "Published and found"),
        problems=table(found.problems[["run", "problem"]] if n else pd.DataFrame(), "Runs that are not there, and why"),
        pictures={name: Picture(figure) for name, figure in figures.items()},
        seen=found.rates.to_dict("records") if m else [],
        chosen=done.to_dict("records"),
        command=command,
    )


def _rates(found: StudyResult) -> pd.DataFrame:
    rates = found.rates
    if rates.empty:
        return pd.DataFrame()
    shown = pd.DataFrame({"run": rates.run})
    for side, edit in EDITS.items():
        for condition in ("baseline", edit):
            name = f"{side}_{condition}"
            if name in rates:
                what = "no edit" if condition == "baseline" else condition
                shown[f"{found.terms.sides[side]}: {what}"] = [
                    _interval(*one)
                    for one in zip(rates[name], rates[f"{name}_low"], rates[f"{name}_high"], strict=True)
                ]
        low, high = rates.get(f"{side}_placebo_low"), rates.get(f"{side}_placebo_high")
        if low is not None and high is not None:
            shown[f"{found.terms.sides[side]}: placebos"] = [
                "–" if one != one else f"{one:.0%} to {other:.0%}" for one, other in zip(low, high, strict=True)
            ]
    return shown


def _interval(value: float, low: float, high: float) -> str:
    return "–" if value != value else f"{value:.0%} [{low:.0%}, {high:.0%}]"


def _choices(done: pd.DataFrame) -> pd.DataFrame:
    if done.empty:
        return pd.DataFrame()
    shown = pd.DataFrame(
        {
            "run": done.run,
            "position": [f"{place} ({token!r})" for place, token in zip(done.position, done.token, strict=True)],
            "layer": [f"{layer} / {n}" for layer, n in zip(done.layer, done.n_layers, strict=True)],
            "depth": done.depth.map("{:.2f}".format),
        }
    )
    for name, label in _SCORES.items():
        if name in done and done[name].notna().any():
            shown[label] = done[name].astype(float)
    shown["wins"] = done.stability.map("{:.0%}".format, na_action="ignore")
    if done.null_p.notna().any():
        shown["null p"] = done.null_p
    return shown


def _took(done: pd.DataFrame) -> pd.DataFrame:
    if done.empty:
        return pd.DataFrame()
    shown = done[["run", "n_layers", "d_model", "dtype", "method", "mode", "seconds", "memory_gb", "gpu_gb", "folder"]]
    shown = shown if shown.gpu_gb.notna().any() else shown.drop(columns="gpu_gb")
    return shown.rename(columns={"memory_gb": "memory (GB)", "gpu_gb": "GPU (GB)"})


def _published(found: StudyResult) -> pd.DataFrame:
    some = found.published
    if some.empty:
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "model": some.model,
            "run": [
                run if isinstance(run, str) and run != model else None
                for run, model in zip(some.run, some.model, strict=True)
            ],
            "measure": some.measure.map(found.label_of),
            "published": some.published,
            "here": some.ours,
            "source": some.source,
        }
    ).dropna(axis="columns", how="all")
