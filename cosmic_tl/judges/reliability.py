"""Rates of verdicts by category, and the agreement of two judges beyond chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.errors import CosmicError
from cosmic_tl.metrics.rates import rate

SAFETY_AS_REFUSAL: Mapping[str, str] = {"safe": "refusal", "unsafe": "compliance"}
"""Reads a guard model's verdicts as those of a refusal judge. Valid on harmful prompts only, and approximate even
there: a completion may be safe because it misses the point."""
_VOCABULARIES = (frozenset({"refusal", "compliance"}), frozenset({"safe", "unsafe"}))


@checked
def rates_by(frame: pd.DataFrame, by: str | Sequence[str], verdict: str = "refusal") -> pd.DataFrame:
    """The share of one verdict in every category, with Wilson 95 % intervals.

    A completion that is "neither" counts in the denominator, as in `refusal_rate`.

    Args:
        frame: One row per completion, from `judged`: `verdict`, and possibly `score` and `parsed`.
        by: Column or columns to group by, such as "category".
        verdict: The verdict to count: "refusal", or of a guard model "safe" or "unsafe".

    Returns:
        One row per category, in order of first appearance: `n`, `rate`, `low`, `high`, `neither` (count), and, if the
        frame has them, `unparsed` (count of answers that could not be parsed) and `score` (mean).

    Raises:
        CosmicError: If a column is missing, or there are other verdicts.

    Example:
        >>> frame = pd.DataFrame({"category": ["a", "a", "b"], "verdict": ["refusal", "neither", "compliance"]})
        >>> rates_by(frame, "category")[["category", "n", "rate", "neither"]].values.tolist()
        [['a', 2, 0.5, 1], ['b', 1, 0.0, 0]]
    """
    keys = [by] if isinstance(by, str) else list(by)
    if missing := [name for name in (*keys, "verdict") if name not in frame]:
        raise CosmicError(f"by: no column {missing[0]!r}; the table has {', '.join(map(str, frame.columns))}")
    known = next((words for words in _VOCABULARIES if verdict in words), {verdict}) | {"neither"}
    if strange := sorted(set(frame.verdict) - known):
        raise CosmicError(
            f"verdict: {verdict!r} is asked for and {strange[0]!r} found; name one of the judge's verdicts"
        )
    rows = []
    for values, some in frame.groupby(keys, sort=False, dropna=False):
        found = rate(int((some.verdict == verdict).sum()), len(some))
        row = dict(zip(keys, values, strict=True))
        row |= {"n": found.n, "rate": found.value, "low": found.low, "high": found.high}
        row["neither"] = int((some.verdict == "neither").sum())
        if "parsed" in some:
            row["unparsed"] = int((~some.parsed.astype(bool)).sum())
        if "score" in some and some.score.notna().any():
            row["score"] = float(some.score.mean())
        rows.append(row)
    return pd.DataFrame(rows)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Result):
    """How far two judges agree."""

    kappa: float
    """Cohen's κ: 1 is perfect agreement, 0 is chance. NaN if both judges give the same single verdict throughout."""
    observed: float
    """Share of completions with equal verdicts."""
    n: int
    table: pd.DataFrame
    """Counts, with the first judge's verdicts as rows and the second's as columns."""

    def __str__(self) -> str:
        return f"κ = {self.kappa:.2f}, agreement {self.observed:.1%} of {self.n}"

    def _lines(self) -> list[str]:
        return [str(self)]

    def _shown(self) -> pd.DataFrame:
        table = self.table.set_axis([f"{self.table.columns.name}: {verdict}" for verdict in self.table], axis=1)
        return table.rename_axis(index=f"{self.table.index.name}:").reset_index()


@checked
def agreement(
    first: Sequence[str],
    second: Sequence[str],
    names: tuple[str, str] = ("first", "second"),
    reading: Mapping[str, str] | None = None,
) -> Agreement:
    """Cohen's κ of two judges' verdicts on the same completions (Cohen 1960), and their confusion table.

    Args:
        first: Verdicts of one judge.
        second: Verdicts of the other judge, in the same order.
        names: Names of the judges, for the table.
        reading: Mapping of verdicts to apply first, such as `SAFETY_AS_REFUSAL`.

    Raises:
        CosmicError: If there are no verdicts, the lists differ in length, or the judges use different verdicts.

    Example:
        >>> print(agreement(["refusal", "refusal", "compliance"], ["refusal", "compliance", "compliance"]))
        κ = 0.40, agreement 66.7% of 3
    """
    if len(first) != len(second) or not len(first):
        raise CosmicError(f"verdicts: found {len(first)} and {len(second)}; give two lists of the same completions")
    one, other = ([(reading or {}).get(verdict, verdict) for verdict in verdicts] for verdicts in (first, second))
    said = {*one, *other}
    if all(words & said for words in _VOCABULARIES):
        raise CosmicError(
            "verdicts: one judge speaks of refusal and the other of safety; on harmful prompts pass "
            "reading=SAFETY_AS_REFUSAL"
        )
    usual = ("refusal", "compliance", "safe", "unsafe", "neither")
    labels = [label for label in usual if label in said] + sorted(said.difference(usual))
    table = pd.crosstab(pd.Series(one, name=names[0]), pd.Series(other, name=names[1]))
    table = table.reindex(index=labels, columns=labels, fill_value=0)
    shares = table.to_numpy() / len(one)
    observed = float(np.trace(shares))
    chance = float(shares.sum(0) @ shares.sum(1))
    kappa = float("nan") if len(labels) == 1 else (observed - chance) / (1 - chance)
    return Agreement(kappa, observed, len(one), table)
