"""What a study of many models found, as tables."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import Side
from cosmic_tl.experiments.conditions import REFUSAL, Terms

EDITS: Mapping[Side, str] = {"positive": "removal", "negative": "induction"}
"""Side to the edit that is measured on its prompts."""
MEASURES: Mapping[str, str] = {
    "layer": "layer",
    "position": "position",
    "bypass": "bypass (log-odds)",
    "induce": "induce (log-odds)",
    "s_comply": "S comply",
    "s_refuse": "S refuse",
    "kl": "KL of removal (nats)",
    "positive_baseline": "{rate}, {positive} prompts, no edit",
    "positive_removal": "{rate}, {positive} prompts, removal",
    "negative_baseline": "{rate}, {negative} prompts, no edit",
    "negative_induction": "{rate}, {negative} prompts, induction",
}
"""What can be set beside a published figure, and what it is called."""
RUN = ("run", "model", "prompts", "settings", "seed", "alpha")
"""Columns that say which run it is."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class StudyResult(Result):
    """What the runs of a study found, side by side."""

    name: str
    """The study's."""
    table: pd.DataFrame
    """One row per run, side and condition: run (its label), model, prompts, settings, seed, alpha, side, condition, n, rate with
    its interval (low, high; of several seeds their range), seeds, placebo_low and placebo_high (beside removal and induction: the
    lowest and the highest rate of any placebo's seed on the same prompts), garbled, cross_entropy, kl (of the removal on negative
    validation prompts, in nats) and problem. A run that is not there has one row with the reason as its problem."""
    selections: pd.DataFrame
    """One row per run: what was chosen, and what it took. run, model, prompts, settings, seed, alpha, method, mode, layer,
    position, token, depth (layer over number of layers), score, s_comply, s_refuse, bypass, induce, kl, stability (share of
    the resamples of the validation prompts that choose the same candidate), null_p (the largest p-value against directions
    without the concept), n_layers, d_model, dtype, seconds, memory_gb and gpu_gb (peaks), folder, problem."""
    scores: pd.DataFrame
    """One row per run and candidate: run, layer, position, token, score, kl, kept, chosen."""
    published: pd.DataFrame
    """One row per published figure and run that it can be set beside: model, settings, measure, published, source, run, ours."""
    terms: Terms = REFUSAL
    """What people are shown."""
    others: tuple[str, ...] = ()
    """Folders of runs in the same place that the study does not ask for."""

    @property
    def problems(self) -> pd.DataFrame:
        """The runs that are not there, each with its reason.

        Example:
            >>> row = {"run": "demo", "problem": "model: no such file"}
            >>> none = pd.DataFrame()
            >>> StudyResult("one", none, pd.DataFrame([row]), none, none).problems.problem.tolist()
            ['model: no such file']
        """
        return self.selections[self.selections.problem != ""].reset_index(drop=True)

    @property
    def rates(self) -> pd.DataFrame:
        """One row per finished run: the rate on each side without and with the edit, as `positive_baseline`, `positive_removal`,
        `negative_baseline` and `negative_induction`, each with `_low` and `_high`, and the placebos' range.

        Example:
            >>> place = {"run": "demo", "model": "demo", "prompts": "demo", "settings": "cosmic", "seed": None, "alpha": None}
            >>> row = {**place, "side": "positive", "condition": "baseline", "rate": 0.5, "low": 0.2, "high": 0.8, "problem": ""}
            >>> none = pd.DataFrame()
            >>> StudyResult("one", pd.DataFrame([row]), none, none, none).rates.positive_baseline.tolist()
            [0.5]
        """
        found: dict[str, dict[str, object]] = {}
        for row in self.table[self.table.problem == ""].to_dict("records"):
            one = found.setdefault(row["run"], {name: row[name] for name in RUN})
            edit = EDITS[row["side"]]
            if row["condition"] not in ("baseline", edit):
                continue
            name = f"{row['side']}_{row['condition']}"
            one |= {name: row["rate"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
            if row["condition"] == edit:
                one |= {f"{row['side']}_{end}": row[end] for end in ("placebo_low", "placebo_high")}
        return pd.DataFrame(found.values())

    def label_of(self, measure: str) -> str:
        """What a measure is called, in this study's terms.

        Args:
            measure: A key of `MEASURES`.

        Example:
            >>> none = pd.DataFrame()
            >>> StudyResult("one", none, none, none, none).label_of("positive_removal")
            'refusal rate, harmful prompts, removal'
        """
        return MEASURES[measure].format(rate=self.terms.rate, **self.terms.sides)

    def _lines(self) -> list[str]:
        n, bad = len(self.selections), len(self.problems)
        lines = [f"StudyResult {self.name!r}: {n - bad} of {n} runs finished"]
        lines += [f"  {row.run}: {row.problem}" for row in self.problems.itertuples()]
        if self.others:
            lines.append(f"  not part of the study: {', '.join(self.others)}")
        return lines

    def _shown(self) -> pd.DataFrame:
        done = self.selections[self.selections.problem == ""]
        names = ["run", "layer", "position", "depth", "score", "kl", "stability"]
        shown = done[[name for name in names if name in done]]
        if shown.empty:
            return shown
        rates, names = self.rates, [f"{side}_{name}" for side, edit in EDITS.items() for name in ("baseline", edit)]
        return shown.merge(rates[["run", *(name for name in names if name in rates)]], on="run")
