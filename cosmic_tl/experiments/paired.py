"""Paired tests of two conditions on the same prompts, and what they are made on."""

from collections.abc import Mapping
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


TESTED: Mapping[Side, str] = {"positive": "removal", "negative": "induction"}
"""The conditions that are tested against baseline and placebos."""


def with_seed(completions: pd.DataFrame) -> pd.DataFrame:
    """Completions with a seed in every row: NaN stands for none, and could not be grouped by."""
    seed = completions.seed if "seed" in completions else pd.Series(None, completions.index, dtype=object)
    return completions.assign(seed=seed.astype(object).where(seed.notna(), "none"))
