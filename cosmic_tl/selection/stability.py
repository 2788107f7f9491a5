"""How sure a choice is: how often each candidate wins when the validation prompts are drawn again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.selection.options import Cell
from cosmic_tl.selection.resampling import Grid, Resampled, Weights

LEVEL = 0.95
"""Of the intervals."""
RIVALS = 2
"""Other winners that are named."""
COSINES = {"score": 2.0, "s_comply": 1.0, "s_refuse": 1.0}
"""Largest size of cosines and of their sum, which intervals are cut at."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Stability(Result):
    """How sure a choice is, given the training prompts: what it would have been on other validation prompts."""

    table: pd.DataFrame
    """One row per candidate with scores, the best first: position, layer, wins (share of the resamples that choose it, with
    all filters), kept (whether no filter takes it on the prompts themselves, as far as was computed: a KL that no choice
    depends on is not), tied (whether it is kept and its score cannot be told apart from the winner's), score and the
    procedure's measures (s_comply, s_refuse and kl, or bypass, induce and kl), each with its 95 % interval (`…_low`, `…_high`),
    and behind (the winner's score minus its own) with its interval."""
    without: pd.DataFrame
    """One row per validation prompt that, left out, changes the choice: side, number (from 0), prompt, and the layer and
    position of the candidate that is then chosen (missing where none passes the filters)."""
    chosen: Cell
    """Layer and position of the choice."""
    n_resamples: int
    seed: int
    limits: Mapping[str, float]
    """Measure to the limit that a filter sets it: "kl" at most, in nats, and by refusal tokens "induce" above."""
    none: float = 0.0
    """Share of the resamples in which no candidate passes the filters."""
    names: tuple[str, ...] = ()
    """Of the columns, where they are directions that were given and not positions."""
    best: Float64[Tensor, " resample"] | None = None
    """The chosen candidate's score on the prompts themselves, and then in each resample that of the candidate it chooses; NaN
    where none passes the filters."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """Measure to the number of candidates that it was computed for on this account alone: what filters look at of further
    winners, and late layers that the position −1 rule looks at."""

    @property
    def wins(self) -> float:
        """Share of the resamples that choose the same candidate.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0, n_resamples=50)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> 0 <= selection.stability.wins <= 1
            True
        """
        return float(self._row.wins)

    @property
    def _row(self) -> "pd.Series[Any]":
        return self.table[(self.table.layer == self.chosen[0]) & (self.table.position == self.chosen[1])].iloc[0]

    @property
    def tied(self) -> pd.DataFrame:
        """The candidates that no filter takes and whose scores cannot be told apart from the winner's: at the level of 95 %,
        simultaneously over all pairs, since the winner is the best of the same sample.

        Example:
            >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0, n_resamples=50)
            >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
            >>> bool(selection.stability.tied.tied.all())
            True
        """
        return self.table[self.table.tied].reset_index(drop=True)

    def said(self) -> str:
        """How sure the choice is, in a sentence.

        Example:
            >>> row = {"layer": [3, 4], "position": [-1, -1], "wins": [0.3, 0.6], "tied": [False, True]}
            >>> print(Stability(pd.DataFrame(row), pd.DataFrame({"side": []}), (3, -1), 1000, 0, {}).said())
            Layer 3, position -1 wins 30% of 1000 resamples of the validation prompts; layer 4, position -1 60%
        """
        others = self.table[(self.table.layer != self.chosen[0]) | (self.table.position != self.chosen[1])]
        most = others[others.wins > 0].nlargest(RIVALS, "wins", keep="first")
        rivals = [f"{self.place(one.layer, one.position)} {one.wins:.0%}" for one in most.itertuples()]
        here = self.place(*self.chosen)
        rivals += [f"no candidate passes in {self.none:.0%}"] if self.none else []
        won = f"wins {self.wins:.0%} of {self.n_resamples} resamples of the validation prompts"
        return "; ".join([f"L{here[1:]} {won}", *rivals])

    def place(self, layer: int, position: int) -> str:
        """A candidate in words.

        Example:
            >>> row = {"layer": [3], "position": [-1], "wins": [0.3], "tied": [False]}
            >>> Stability(pd.DataFrame(row), pd.DataFrame({"side": []}), (3, -1), 1000, 0, {}).place(3, -1)
            'layer 3, position -1'
        """
        return f"layer {layer}, " + (repr(self.names[position]) if self.names else f"position {position}")

    def summary(self) -> dict[str, Any]:
        """Its main numbers, as `summary.json` has them: wins, how many are tied, the prompts that decide alone, and the passes.

        Example:
            >>> row = {"layer": [3, 4], "position": [-1, -1], "wins": [0.3, 0.6], "tied": [False, True]}
            >>> Stability(pd.DataFrame(row), pd.DataFrame({"side": []}), (3, -1), 1000, 0, {}).summary()["wins"]
            0.3
        """
        return {
            "wins": self.wins,
            "winners": self.table.loc[self.table.wins > 0, ["layer", "position", "wins"]].to_dict("records"),
            "none": self.none,
            "tied": len(self.tied),
            "without": self.without.astype(object).where(self.without.notna(), None).to_dict("records"),
            "n_resamples": self.n_resamples,
            "seed": self.seed,
            "passes": dict(self.passes),
        }

    def _lines(self) -> list[str]:
        lines = [
            "Stability",
            f"  {self.said()}",
            f"  other candidates whose score cannot be told apart from its own: {len(self.tied)}; prompts that decide alone: "
            f"{len(self.without)}",
        ]
        if extra := ", ".join(f"{name} of {n}" for name, n in self.passes.items() if n):
            lines.append(f"  computed for this alone: {extra}")
        return lines

    def _shown(self) -> pd.DataFrame:
        measured = [f"{name}{end}" for name in ("score", *self.limits) for end in ("", "_low", "_high")]
        names = ["layer", "position", "wins", "kept", "tied", *measured]
        shown = self.table.nlargest(10, ["wins", "score"])[names]
        return shown.assign(**{name: shown[name].map({True: "✓", False: ""}) for name in ("kept", "tied")})


def stability_of(
    found: Resampled,
    weights: Weights,
    chosen: Cell,
    choices: Int[np.ndarray, " resample"],
    prompts: Sequence[Sequence[str]],
    admitted: Bool[np.ndarray, "position layer"],
    seed: int,
    limits: Mapping[str, float],
    names: tuple[str, ...],
    passes: Mapping[str, int],
) -> Stability:
    """Summarise what resamples choose.

    Args:
        found: Measures under all weights.
        weights: The weights.
        chosen: Layer and position of the choice.
        choices: From `winners`.
        prompts: The positive and the negative validation prompts.
        admitted: The candidates that no filter takes on the prompts themselves.
        seed: Of the draws.
        limits: Of the filters, by measure.
        names: Of the columns, if they are not positions.
        passes: What was computed on this account alone.
    """
    score, drawn = found.score, choices[weights.drawn]
    cosines = COSINES if COSINES.keys() & found.measures else {}
    k, layer = found.positions.index(chosen[1]), chosen[0]
    behind = score[:, k, layer][:, None, None] - score
    shown = ~np.isnan(score[0])
    cells = np.argwhere(shown)
    counts = np.bincount(drawn[drawn >= 0], minlength=score[0].size).reshape(shown.shape)
    columns: dict[str, Any] = {
        "position": [found.positions[at] for at, _ in cells],
        "layer": cells[:, 1],
        "wins": counts[shown] / max(1, weights.n_resamples),
        "kept": admitted[shown],
        "tied": _tied(score, weights, shown & admitted, (k, layer))[shown],
    }
    for name, values in {"score": score, **found.measures, "behind": behind}.items():
        low, high = interval(values[weights.drawn], values[0], biased=bool(cosines) and name != "kl")
        if name in cosines:
            low, high = (np.clip(end, -cosines[name], cosines[name]) for end in (low, high))
        columns |= {name: values[0][shown], f"{name}_low": low[shown], f"{name}_high": high[shown]}
    table = pd.DataFrame(columns).sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    return Stability(
        table,
        _without(choices, k * score.shape[2] + layer, weights, prompts, found.positions, score.shape[2]),
        chosen,
        weights.n_resamples,
        seed,
        limits,
        float((drawn == -1).mean()),
        names,
        _best_scores(score, choices, (k, layer), weights),
        passes,
    )


def _best_scores(
    score: Grid, choices: Int[np.ndarray, " weights"], chosen: tuple[int, int], weights: Weights
) -> Float64[Tensor, " drawn"]:
    flat = score.reshape(len(score), -1)
    best = np.where(choices < 0, np.nan, np.take_along_axis(flat, np.maximum(choices, 0)[:, None], axis=1)[:, 0])
    return torch.from_numpy(np.concatenate([score[:1, chosen[0], chosen[1]], best[weights.drawn]]))


def interval(drawn: Grid, here: np.ndarray, biased: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's interval: of a mean, from quantile to quantile. A cosine between means is biased: a resampled mean is
    noisier than the sample's, as that is noisier than the truth, and both shift it down. The basic interval takes that off.
    """
    with np.errstate(invalid="ignore"):  # an infinite divergence
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return (2.0 * here - high, 2.0 * here - low) if biased else (low, high)


def _tied(
    score: Grid, weights: Weights, among: Bool[np.ndarray, "position layer"], chosen: tuple[int, int]
) -> Bool[np.ndarray, "position layer"]:
    """Whose difference to the chosen score may be 0. The limit is that of the largest studentised error among all pairs: the
    chosen one is the best of the sample, so that any pair may be the one that is looked at.
    """
    errors = (score[weights.drawn] - score[0])[:, among]
    largest = np.zeros(len(errors))
    for one in errors.T:
        apart = errors - one[:, None]
        spread = apart.std(axis=0)
        usable = spread > 0
        if usable.any():
            largest = np.maximum(largest, (apart[:, usable] / spread[usable]).max(axis=1))
    behind = score[:, chosen[0], chosen[1]][:, None, None] - score
    spread = (behind[weights.drawn] - behind[0]).std(axis=0)
    found = np.asarray(among & (behind[0] - np.quantile(largest, LEVEL) * spread <= 0))
    found[chosen] = False
    return found


def _without(
    choices: Int[np.ndarray, " resample"],
    chosen: int,
    weights: Weights,
    prompts: Sequence[Sequence[str]],
    positions: Sequence[int],
    n_layers: int,
) -> pd.DataFrame:
    rows, at = [], weights.drawn.stop
    for side, texts in zip(("positive", "negative"), prompts, strict=True):
        for number, text in enumerate(texts):
            other = int(choices[at])
            at += 1
            if other != chosen:
                place = (pd.NA, pd.NA) if other == -1 else (other % n_layers, positions[other // n_layers])
                rows.append((side, number, text, *place))
    found = pd.DataFrame(rows, columns=["side", "number", "prompt", "layer", "position"])
    return found.astype({"layer": "Int64", "position": "Int64"})
