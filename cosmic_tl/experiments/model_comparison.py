"""What an edited model does differently from its base: rates, divergences and costs with intervals, as one table."""

from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.capability import Capability
from cosmic_tl.experiments.cost import Cost, mean_interval
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.paired import mcnemar
from cosmic_tl.experiments.removed_direction import RemovedDirection
from cosmic_tl.metrics.fluency import garbled_share
from cosmic_tl.metrics.rates import Rate, rate

BASE, EDITED = "base", "edited"
"""The two conditions."""
RATES = ("refusal", "garbled")
ENDS = ("", "_low", "_high")
DIVERGENCES = {
    "kl_first": "KL(edited ‖ base), first token",
    "kl_first_reverse": "KL(base ‖ edited), first token",
    "kl_token": "KL(edited ‖ base) per token",
}
MEASURES = {
    "garbled": "garbled",
    "cross_entropy": "nats per token under the base",
    **DIVERGENCES,
    "texts": "nats per token of texts",
    "instructions": "nats per token of responses",
}
"""Measures as people are shown them; that of refusal has the name that the terms give to it."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison(Result):
    """An edited model against its base on the same prompts."""

    effects: Effects
    """Completions under the conditions "base" and "edited"; cross_entropy, late_nats and garbled are by the base's measures. A
    column category holds the prompts' categories, where the contrast set has them."""
    divergences: pd.DataFrame
    """One row per negative prompt: prompt, first and first_reverse (KL(edited ‖ base) and KL(base ‖ edited) of the first token
    after the prompt, in nats), tokens (of the base's own completion), and total (sum of KL(edited ‖ base) over them)."""
    base: str
    edited: str
    removed: RemovedDirection | None = None
    """What the edit changed in the weights that write to the stream; None if that could not be told."""
    cost: Cost | None = None
    """Cross-entropy of texts and responses under each model, if any were given."""
    capability: Capability | None = None
    """Scores of tasks, if any were given."""
    notes: tuple[str, ...] = ()
    seed: int = 0
    """Of the bootstrap."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per measure and side: measure, side, n (completions, prompts or documents), base, base_low, base_high, edited,
        edited_low, edited_high and p_value.

        Rates of refusal and garbled have Wilson 95 % intervals, and p of McNemar's exact test on the same prompts. A share of
        garbled completions is missing where all are too short to tell. Cross-entropy is the mean over completions, and
        divergences are means over prompts (per token: over tokens); their intervals are bootstrapped over prompts.
        Divergences are from the base, which has none itself. `texts` and `instructions`, whose side is "", are means over tokens,
        with intervals over documents.

        Example:
            >>> row = {"side": "positive", "prompt": "a", "completion": "No.", "garbled": False, "cross_entropy": 0.5}
            >>> rows = [{**row, "condition": name, "verdict": "refusal"} for name in ("base", "edited")]
            >>> kl = pd.DataFrame({"prompt": ["b"], "first": [0.5], "first_reverse": 0.5, "tokens": 2, "total": 3.0})
            >>> found = ModelComparison(Effects(pd.DataFrame(rows)), kl, "demo", "demo-weak")
            >>> found.table[["measure", "edited"]].values.tolist()
            [['refusal', 1.0], ['garbled', 0.0], ['cross_entropy', 0.5], ['kl_first', 0.5], ['kl_first_reverse', 0.5],
             ['kl_token', 1.5]]
        """
        rows: list[dict[str, Any]] = []
        for side in SIDES:
            some = self.effects.completions[self.effects.completions.side == side]
            both = {name: some[some.condition == name] for name in (BASE, EDITED)}
            if some.empty:
                continue
            marks = {"refusal": {name: one.verdict == "refusal" for name, one in both.items()}}
            marks["garbled"] = {name: one.garbled for name, one in both.items()}
            for measure, of in marks.items():
                found = {name: _rate(measure, both[name], of[name]) for name in both}
                row = _row(measure, side, len(both[BASE]), **{name: _ends(one) for name, one in found.items()})
                told = all(one is not None for one in found.values())
                row["p_value"] = mcnemar(of[EDITED].tolist(), of[BASE].tolist())[2] if told else nan
                rows.append(row)
            nats = {name: self._mean(one.cross_entropy.astype(float).dropna().to_numpy()) for name, one in both.items()}
            rows.append(_row("cross_entropy", side, len(both[BASE]), **nats))
        first, n = self.divergences, len(self.divergences)
        rows.append(_row("kl_first", "negative", n, edited=self._mean(first["first"].to_numpy(float))))
        rows.append(_row("kl_first_reverse", "negative", n, edited=self._mean(first.first_reverse.to_numpy(float))))
        spoken = first[first.tokens > 0]
        per_token = self._mean(spoken.total.to_numpy(float), spoken.tokens.to_numpy(float))
        rows.append(_row("kl_token", "negative", len(spoken), edited=per_token))
        for measure, some in self.cost.documents.groupby("measure", sort=False) if self.cost is not None else ():
            tokens = some.tokens.to_numpy(float)
            ours, theirs = (self._mean(some[column].to_numpy(float), tokens) for column in ("baseline", "edited"))
            rows.append(_row(str(measure), "", len(some), base=ours, edited=theirs))
        return pd.DataFrame(rows)

    def _mean(self, totals: np.ndarray, tokens: np.ndarray | None = None) -> tuple[float, float, float]:
        """`Σ totals / Σ tokens` with its interval."""
        tokens = np.ones(len(totals)) if tokens is None else tokens
        if not len(totals):
            return nan, nan, nan
        return float(totals.sum() / tokens.sum()), *mean_interval(totals, tokens, self.seed)

    @property
    def categories(self) -> pd.DataFrame:
        """Refusal rates by side, category and condition, with Wilson 95 % intervals; empty if no prompt has a category.

        Example:
            >>> row = {"side": "positive", "prompt": "a", "condition": "base", "verdict": "refusal", "category": "theft"}
            >>> found = ModelComparison(Effects(pd.DataFrame([row])), pd.DataFrame(), "demo", "demo-weak")
            >>> found.categories[["category", "condition", "rate"]].values.tolist()
            [['theft', 'base', 1.0]]
        """
        columns = ["side", "category", "condition", "n", "rate", "low", "high"]
        frame, rows = self.effects.completions, []
        if "category" in frame:
            for (side, category, condition), some in frame.groupby(["side", "category", "condition"], sort=False):
                found = rate(int((some.verdict == "refusal").sum()), len(some))
                rows.append((side, category, condition, found.n, found.value, found.low, found.high))
        return pd.DataFrame(rows, columns=columns)

    @property
    def headline(self) -> pd.DataFrame:
        """`table` for people: a row per measure, with numbers and intervals as text.

        Example:
            >>> row = {"side": "positive", "prompt": "a", "completion": "No.", "garbled": False, "cross_entropy": 0.5}
            >>> rows = [{**row, "condition": name, "verdict": "refusal"} for name in ("base", "edited")]
            >>> kl = pd.DataFrame({"prompt": ["b"], "first": [0.5], "first_reverse": 0.5, "tokens": 2, "total": 3.0})
            >>> found = ModelComparison(Effects(pd.DataFrame(rows)), kl, "demo", "demo-weak")
            >>> found.headline.iloc[0].tolist()
            ['refusal rate', 'harmful', '1 of 1: 100% [21%, 100%]', '1 of 1: 100% [21%, 100%]', '1']
        """
        names = {"refusal": self.effects.terms.rate, **MEASURES}
        shown = []
        for row in self.table.to_dict("records"):
            cells = [
                _said(row["measure"], row["n"], *(row[f"{name}{end}"] for end in ("", "_low", "_high")))
                for name in (BASE, EDITED)
            ]
            side = {"": "", **self.effects.terms.sides}[row["side"]]
            shown.append(
                [names[row["measure"]], side, *cells, "" if isnan(row["p_value"]) else f"{row['p_value']:.2g}"]
            )
        return pd.DataFrame(shown, columns=["measure", "prompts", BASE, EDITED, "p"])

    def said(self) -> str:
        """The headline in a sentence."""
        rows = self.table.set_index(["measure", "side"])
        parts = []
        for side, what in self.effects.terms.sides.items():
            if ("refusal", side) in rows.index:
                row = rows.loc[("refusal", side)]
                counts = [round(row[name] * row.n) for name in (EDITED, BASE)]
                parts.append(f"{counts[0]} of {row.n:.0f} {what} prompts (base: {counts[1]})")
        kl = rows.loc[("kl_first", "negative")]
        around = "" if isnan(kl.edited_low) else f" [{kl.edited_low:.3g}, {kl.edited_high:.3g}]"
        outcome, harmless = self.effects.terms.outcome, self.effects.terms.sides["negative"]
        return (
            f"{self.edited}: {outcome} on {' and '.join(parts)}; KL from the base at the first token of {harmless} prompts "
            f"{kl.edited:.3g}{around} nats"
        )

    def _lines(self) -> list[str]:
        lines = [f"ModelComparison({self.base} to {self.edited})", f"  {self.said()}"]
        if self.removed is not None:
            lines.append(f"  Weights: {self.removed.said()}")
        return [*lines, *(f"  Note: {note}" for note in self.notes)]

    def _shown(self) -> pd.DataFrame:
        return self.headline


def _rate(measure: str, completions: pd.DataFrame, counted: "pd.Series[bool]") -> Rate | None:
    """A share; None for garbled completions that are all too short to tell."""
    if measure == "garbled" and isnan(garbled_share(completions)):
        return None
    return rate(int(counted.sum()), len(counted))


def _ends(found: Rate | None) -> tuple[float, float, float]:
    return (nan, nan, nan) if found is None else (found.value, found.low, found.high)


def _row(
    measure: str,
    side: str,
    n: int,
    base: tuple[float, float, float] = (nan, nan, nan),
    edited: tuple[float, float, float] = (nan, nan, nan),
) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": measure, "side": side, "n": n}
    for name, some in ((BASE, base), (EDITED, edited)):
        row |= {f"{name}{end}": value for end, value in zip(ENDS, some, strict=True)}
    return {**row, "p_value": nan}


def _said(measure: str, n: int, value: float, low: float, high: float) -> str:
    if isnan(value):
        return "–"
    if measure in RATES:
        return f"{round(value * n)} of {n}: {value:.0%} [{100 * low:.0f}%, {100 * high:.0f}%]"
    return f"{value:.3g}" if isnan(low) else f"{value:.3g} [{low:.3g}, {high:.3g}]"
