"""Paired tests of two conditions on the same prompts, and what they are made on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cosmic_tl.data.contrast_set import Side


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test of two conditions on the same prompts."""

    side: Side
    condition: str
    against: str
    n: int
    """Prompts."""
    only_condition: int
    """Prompts that only the first condition refuses."""
    only_against: int
    """Prompts that only the other one refuses."""
    p_value: float
    """Two-sided: how often prompts that differ would fall this far to one side if each side were as likely."""
    seeds: int = 0
    """Seeds of a placebo; counts and p are those of the seed with the largest p. 0 for a condition without seeds."""

    def __str__(self) -> str:
        worst = f" (largest of {self.seeds} seeds)" if self.seeds > 1 else ""
        return (
            f"{self.condition} against {self.against}: refused by one alone {self.only_condition} : {self.only_against} of "
            f"{self.n}, p = {self.p_value:.2g}{worst}"
        )


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """McNemar's exact test, two-sided, of two answers to the same yes-or-no questions.

    Args:
        first: One answer per question.
        second: The other, in the same order.

    Returns:
        How many questions the first alone answers with yes, how many the second alone, and p.

    Raises:
        ValueError: If the numbers of answers differ.

    Example:
        >>> alone, other, p = mcnemar([True] * 10, [False] * 10)
        >>> alone, other, round(p, 4)
        (10, 0, 0.002)
    """
    from scipy.stats import binomtest  # takes half a second to import

    pairs = list(zip(first, second, strict=True))
    alone = sum(bool(one and not other) for one, other in pairs), sum(bool(other and not one) for one, other in pairs)
    return *alone, float(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0


TESTED: Mapping[Side, str] = {"positive": "removal", "negative": "induction"}
"""The conditions that are tested against baseline and placebos."""


def with_seed(completions: pd.DataFrame) -> pd.DataFrame:
    """Completions with a seed in every row: NaN stands for none, and could not be grouped by."""
    seed = completions.seed if "seed" in completions else pd.Series(None, completions.index, dtype=object)
    return completions.assign(seed=seed.astype(object).where(seed.notna(), "none"))
