"""Cost and effect of edits by strength."""

from dataclasses import dataclass
from math import nan

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.experiments.bracketing import reached, why_not

NEAR = 0.25
"""Relative distance at which a divergence has left its quadratic regime."""
NOTHING = 1e-6
"""Nats below which an edit does nothing."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class CostCurves(Result):
    """Cost and effect of edits by strength, and the strength of each at a target."""

    points: pd.DataFrame
    """One row per edit and strength that was tried: edit, alpha, kl_mean and kl_p95 (mean and 95th percentile over tokens of
    KL(edited ‖ unedited), in nats, on the unedited model's own completions), n_tokens, and score (mean log-odds over prompts that
    the answer begins with a refusal token; NaN where no tokens were given)."""
    measure: str
    """What was to be reached: "kl_mean", "kl_p95" or "score"."""
    target: float
    n_prompts: int

    @property
    def table(self) -> pd.DataFrame:
        """One row per edit at the target: edit, alpha, kl_mean, kl_p95, score, and why no strength reaches it (`missed`).

        Example:
            >>> rows = [("addition", 0.0, 0.0, 0.0), ("addition", 1.0, 0.4, 0.9), ("addition", 2.0, 1.6, 3.6)]
            >>> points = pd.DataFrame(rows, columns=["edit", "alpha", "kl_mean", "kl_p95"]).assign(score=0.0)
            >>> CostCurves(points, "kl_p95", 0.9, 4).table.alpha.tolist()
            [1.0]
        """
        rows = []
        for edit, some in self.points.groupby("edit", sort=False):
            tried = list(zip(some.alpha, some[self.measure], strict=True))
            found = reached(tried, self.target, self.measure)
            if found is None:
                rows.append({"edit": edit, "alpha": nan, "missed": why_not(tried, self.target, self.measure)})
            else:
                (row,) = some[some.alpha == found].to_dict("records")
                rows.append({**row, "missed": ""})
        columns = ["edit", "alpha", "kl_mean", "kl_p95", "score", "missed"]
        return pd.DataFrame(rows).reindex(columns=columns)

    @property
    def quadratic(self) -> pd.DataFrame:
        """Where the mean divergence leaves its quadratic regime `k α²`: one row per edit that does nothing at α = 0.

        `k` is that of the smallest strength that was tried; `until` is the largest one up to which every point lies within 25 %
        of `k α²`, and `leaves` the next (NaN if none does). All are NaN if already the second smallest leaves it: then smaller
        strengths (`alphas`) have to be tried. Edits that change the model at α = 0 already, as affine ones do, have no such
        regime.

        Example:
            >>> rows = [("addition", alpha, min(alpha**2, 2.0)) for alpha in (0.0, 0.5, 1.0, 2.0)]
            >>> points = pd.DataFrame(rows, columns=["edit", "alpha", "kl_mean"])
            >>> CostCurves(points, "kl_mean", 1.0, 4).quadratic[["k", "until", "leaves"]].values.tolist()
            [[1.0, 1.0, 2.0]]
        """
        rows = []
        for edit, some in self.points[self.points.alpha >= 0].sort_values("alpha").groupby("edit", sort=False):
            zero, rest = some[some.alpha == 0], some[some.alpha > 0]
            if zero.empty or rest.empty or zero.kl_mean.iloc[0] > NOTHING:
                continue
            k = float(rest.kl_mean.iloc[0] / rest.alpha.iloc[0] ** 2)
            left = (rest.kl_mean / (k * rest.alpha**2) - 1).abs() > NEAR
            first = rest.alpha[left].min()
            if len(rest) < 2 or left.iloc[1]:
                rows.append({"edit": edit})
                continue
            rows.append(
                {"edit": edit, "k": k, "until": rest.alpha[~left & ~(rest.alpha > first)].max(), "leaves": first}
            )
        return pd.DataFrame(rows, columns=["edit", "k", "until", "leaves"])

    def said(self) -> str:
        """The strengths at the target, in a sentence.

        Example:
            >>> points = pd.DataFrame({"edit": ["addition"] * 2, "alpha": [0.0, 1.0], "kl_p95": [0.0, 0.9]})
            >>> CostCurves(points, "kl_p95", 0.9, 4).said()
            'At a 95th percentile of 0.9 nats per token: addition α = 1'
        """
        cost = f"{self.target:g} nat{'s' * (self.target != 1)} per token"
        what = {
            "kl_mean": f"a mean of {cost}",
            "kl_p95": f"a 95th percentile of {cost}",
            "score": f"a refusal score of {self.target:g}",
        }[self.measure]
        found = [
            f"{row.edit} {row.missed}" if row.missed else f"{row.edit} α = {row.alpha:.3g}"
            for row in self.table.itertuples()
        ]
        return f"At {what}: {'; '.join(found)}"

    def _lines(self) -> list[str]:
        return [f"CostCurves ({self.n_prompts} prompts)", f"  {self.said()}"]
