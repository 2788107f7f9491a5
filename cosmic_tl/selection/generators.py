"""What each of several generators chooses, and whether the difference between them is more than the prompts' chance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.selection.stability import LEVEL

if TYPE_CHECKING:
    from cosmic_tl.selection.result import Selection


@checked
@dataclass(frozen=True, eq=False, repr=False)
class GeneratorChoices(Result):
    """The choices of several generators, side by side."""

    table: pd.DataFrame
    """One row per generator, the best first: generator, layer, position, score, the procedure's measures (s_comply, s_refuse and
    kl, or bypass, induce and kl), cosine (to the direction that is chosen of all), wins (share of the resamples in which its
    choice is the best of all generators'), behind (the best score minus its own) with its interval (`behind_low`, `behind_high`),
    and failure (why none of its candidates can be chosen). In each resample every generator chooses anew, with its filters;
    intervals hold simultaneously for all generators (Bonferroni), over the resamples in which both of the two choose one. wins
    and intervals are missing where stability is not known."""

    def said(self) -> str:
        """Which is best, and which cannot be told from it, in a sentence.

        Example:
            >>> row = {"generator": ["pca", "dim"], "score": [1.5, 1.4], "wins": [0.7, 0.3], "behind_low": [0.0, -0.1]}
            >>> GeneratorChoices(pd.DataFrame(row).assign(failure="")).said()
            'Of the generators pca has the highest score (best in 70% of the resamples); not to be told from it: dim'
        """
        best, rest = self.table.iloc[0], self.table.iloc[1:]
        others = rest[rest.failure == ""]
        known = f" (best in {best.wins:.0%} of the resamples)" if best.wins == best.wins else ""
        found = f"Of the generators {best.generator} has the highest score{known}"
        if known and len(others):
            tied = others.generator[others.behind_low <= 0]
            found += (
                f"; not to be told from it: {', '.join(tied)}" if len(tied) else "; it is better than each other one"
            )
        failed = rest.generator[rest.failure != ""]
        return found + (f"; nothing passes the filters of {', '.join(failed)}" if len(failed) else "")

    def summary(self) -> list[dict[str, Any]]:
        """The table as `summary.json` has it.

        Example:
            >>> row = {"generator": ["pca"], "score": [1.5], "wins": [float("nan")]}
            >>> GeneratorChoices(pd.DataFrame(row)).summary()
            [{'generator': 'pca', 'score': 1.5, 'wins': None}]
        """
        plain = self.table.astype(object)
        rows: list[dict[str, Any]] = plain.where(plain.notna(), None).to_dict("records")
        return rows

    def _lines(self) -> list[str]:
        return ["GeneratorChoices", f"  {self.said()}"]


def generator_choices(chosen: "Selection") -> GeneratorChoices | None:
    """Compare a selection with its rivals; None if there was one generator alone.

    Args:
        chosen: With `rivals` and `failures`.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(directions=("dim", "pca"), n_train=8, n_val=4, n_positions=1, max_kl=10.0, n_resamples=50)
        >>> found = generator_choices(select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options))
        >>> sorted(found.table.generator), float(found.table.wins.sum())
        (['dim', 'pca'], 1.0)
    """
    if not chosen.rivals and not chosen.failures:
        return None
    every = {chosen.generator: chosen, **chosen.rivals}
    ordered = dict(sorted(every.items(), key=lambda item: -float(item[1].winner.score)))
    drawn = {
        name: one.stability.best for name, one in ordered.items() if one.stability and one.stability.best is not None
    }
    resampled = len(drawn) == len(ordered)
    if resampled:
        scores = np.stack([best.numpy() for best in drawn.values()])[:, 1:]
        usable = ~np.isnan(scores).all(0)
        best_of_all = np.where(np.isnan(scores), -np.inf, scores).argmax(0)[usable]
    rows = []
    for k, (name, one) in enumerate(ordered.items()):
        winner = one.winner
        row = {
            "generator": name,
            "layer": int(winner.layer),
            "position": int(winner.position),
            "score": float(winner.score),
            **{measure: float(winner[measure]) for measure in one.measures if measure != "score"},
            "cosine": float(one.direction.unit @ chosen.direction.unit),
            "behind": float(chosen.winner.score - winner.score),
        }
        if resampled:
            low, high = _interval(float(chosen.winner.score - winner.score), scores[0] - scores[k], len(ordered) - 1)
            row |= {"wins": float((best_of_all == k).mean()), "behind_low": low, "behind_high": high}
        rows.append(row | {"failure": ""})
    rows += [{"generator": name, "failure": why} for name, why in chosen.failures.items()]
    columns = [
        "generator",
        "layer",
        "position",
        "score",
        *(m for m in chosen.measures if m != "score"),
        "cosine",
        "wins",
    ]
    columns += ["behind", "behind_low", "behind_high", "failure"]
    table = pd.DataFrame(rows).reindex(columns=columns).astype({"layer": "Int64", "position": "Int64"})
    return GeneratorChoices(table)


def _interval(here: float, drawn: np.ndarray, comparisons: int) -> tuple[float, float]:
    """The basic interval of a difference, as those of `Stability`."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2 / max(1, comparisons)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return 2 * here - float(high), 2 * here - float(low)
