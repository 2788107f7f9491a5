"""The projection on a direction as a latent guard: does it tell prompts of the two classes apart that it has not seen?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.activations import stream_at
from cosmic_tl.data.contrast_set import SIDES, ContrastSet, Prompts, Split, labels_of, sides_of
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.experiments.conditions import REFUSAL, Terms, terms_of
from cosmic_tl.metrics.rates import rate
from cosmic_tl.metrics.separation import auc
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge

HELD_OUT: Split = "test"
PLACEBOS = 20
"""Random directions."""
BINS = 5


@checked
@dataclass(frozen=True, eq=False, repr=False)
class LatentGuard(Result):
    """A logistic regression on the projection of a prompt's activation, and how well it does on prompts that it has not seen."""

    table: pd.DataFrame
    """One row per set of prompts and direction: prompts ("test", or the name of shifted prompts), kind ("direction" or "random"),
    seed (−1 but for random ones), auc with its 95 % interval (auc_low, auc_high), accuracy at the threshold with its Wilson
    interval (accuracy_low, accuracy_high), missed (share of positive prompts that pass for negative), false_alarms (share of
    negative prompts that do not), and brier (mean squared error of the probability; 0.25 for a guess of one half)."""
    scores: pd.DataFrame
    """One row per prompt: prompts, side, prompt, projection (`x[l, i]·r̂`) and probability (that it is positive)."""
    direction: Direction
    slope: float
    """Of the log-odds, per unit of the projection."""
    intercept: float
    split: Split
    """Which of the contrast set's splits it was fitted to."""
    n_fitted: tuple[int, int]
    """Positive and negative prompts that it was fitted to."""
    terms: Terms = field(default=REFUSAL)
    """What people are shown."""

    @property
    def threshold(self) -> float:
        """The projection at which either class is as probable.

        Example:
            >>> direction = Direction(torch.ones(4), None, 3, -1)
            >>> LatentGuard(pd.DataFrame(), pd.DataFrame(), direction, 2.0, -3.0, "train", (8, 8)).threshold
            1.5
        """
        return -self.intercept / self.slope if self.slope else nan

    def reliability(self, n_bins: int = BINS) -> pd.DataFrame:
        """What share of the prompts is positive among those with about the same probability.

        Args:
            n_bins: Bins with equally many prompts, where their probabilities differ. Default 5.

        Returns:
            One row per set of prompts and bin: prompts, probability (mean), rate (share of positive prompts), low and high
            (Wilson, 95 %), n.

        Raises:
            CosmicError: If `n_bins` is not positive.

        Example:
            >>> scores = pd.DataFrame({"prompts": "test", "side": ["positive", "negative"], "probability": [0.75, 0.25]})
            >>> guard = LatentGuard(pd.DataFrame(), scores, Direction(torch.ones(4), None, 3, -1), 2.0, -3.0, "train", (8, 8))
            >>> guard.reliability(2)[["probability", "rate", "n"]].to_numpy().tolist()
            [[0.25, 0.0, 1.0], [0.75, 1.0, 1.0]]
        """
        check_count("n_bins", n_bins)
        rows = []
        for name, some in self.scores.groupby("prompts", sort=False):
            bins = pd.qcut(some.probability, min(n_bins, len(some)), labels=False, duplicates="drop")
            for _, inside in some.groupby(bins.fillna(0)):
                found = rate(int((inside.side == "positive").sum()), len(inside))
                row = {"prompts": name, "probability": float(inside.probability.mean()), "rate": found.value}
                rows.append({**row, "low": found.low, "high": found.high, "n": len(inside)})
        return pd.DataFrame(rows)

    def probabilities(
        self,
        model: TransformerBridge,
        prompts: Sequence[str],
        *,
        chat: ChatFormat | None = None,
        batch_size: int | None = None,
    ) -> Float64[np.ndarray, " prompt"]:
        """The probability that each of some prompts is positive.

        Args:
            model: The model that the direction belongs to.
            prompts: Instructions.
            chat: Formatting: that of the prompts which it was fitted to. Defaults to the plain chat template.
            batch_size: Prompts per forward pass. Default: by memory, at most 32.

        Raises:
            CosmicError: If the direction belongs to another model, or a prompt does not fit.

        Example:
            >>> from cosmic_tl import load_model
            >>> direction = Direction(torch.ones(128), None, 3, -1)
            >>> guard = LatentGuard(pd.DataFrame(), pd.DataFrame(), direction, 0.0, 0.0, "train", (8, 8))
            >>> guard.probabilities(load_model("demo", device="cpu"), ["hi", "hello"]).tolist()
            [0.5, 0.5]
        """
        d = self.direction
        d.check(model)
        stream = stream_at(model, prompts, d.layer, d.position, chat=chat, batch_size=batch_size)
        return _probability(self.slope * (stream @ d.unit.double()).numpy() + self.intercept)

    def _lines(self) -> list[str]:
        n, m = self.n_fitted
        return [f"LatentGuard(fitted to {n} + {m} prompts of {self.split})", f"  {self.direction!r}"]

    def _shown(self) -> pd.DataFrame:
        columns = ["auc", "accuracy", "missed", "false_alarms", "brier"]
        return self.table.groupby(["prompts", "kind"], sort=False)[columns].mean().reset_index()


@checked
def latent_guard(
    model: TransformerBridge,
    prompts: ContrastSet,
    direction: Direction,
    *,
    shifted: Mapping[str, Prompts] | None = None,
    split: Split = "train",
    n_train: int | None = None,
    n_test: int | None = None,
    n_placebos: int = PLACEBOS,
    chat: ChatFormat | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> LatentGuard:
    """Classify prompts by their projection on a direction (latent guard, Zhao et al. 2025): test prompts, and shifted ones.

    A logistic regression on the projection at the direction's layer and position gives the threshold and probabilities. Beside
    it stand random directions, each with a regression of its own: in a wide stream some of the classes' difference lies along
    any direction. A direction fits the prompts that it was found on better than others, so a guard that is fitted to the same
    prompts is too sure of itself: `split="val"` fits it to others.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set. The guard is tested on its test prompts.
        direction: Of any layer and position.
        shifted: Other prompts to test it on, by name: contrast sets, whose test prompts are taken, or pairs of lists.
        split: Which of the contrast set's prompts it is fitted to, "train" (default) or "val".
        n_train: How many of them per side. Default all.
        n_test: Test prompts per side, of each set. Default all.
        n_placebos: Random directions. Default 20.
        chat: Formatting. Defaults to the plain chat template.
        seed: Of the first random direction; the others count up from it.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a number is out of range, it would be tested on prompts that it is fitted to, or the direction does not
            fit the model.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> guard = latent_guard(model, prompts, direction, n_train=8, n_test=4, n_placebos=1)
        >>> guard.table[["prompts", "kind"]].to_numpy().tolist(), len(guard.scores)
        ([['test', 'direction'], ['test', 'random']], 8)
    """
    check_count("n_placebos", n_placebos)
    direction.check(model)
    fitted = prompts.sides(split, n_train)
    tested = _tested({HELD_OUT: prompts}, shifted or {}, fitted, n_test)
    texts = [text for sides in (fitted, *tested.values()) for side in sides for text in side]
    stream = stream_at(model, texts, direction.layer, direction.position, chat=chat, batch_size=batch_size)
    seeds = range(seed, seed + n_placebos)
    units = torch.stack([direction.unit, *(random_direction(direction, one).unit for one in seeds)])
    along = (stream @ units.double().T).numpy()
    counts, start = (len(fitted[0]), len(fitted[1])), len(fitted[0]) + len(fitted[1])
    fits = [_fit(column, counts) for column in along[:start].T]
    rows, scores = [], []
    for name, sides in tested.items():
        n, m = len(sides[0]), len(sides[1])
        here = along[start : start + n + m]
        start += n + m
        for k, (one, (slope, intercept)) in enumerate(zip((-1, *seeds), fits, strict=True)):
            about = {"prompts": name, "kind": "random" if k else "direction", "seed": one}
            rows.append({**about, **_measured(slope * here[:, k] + intercept, n)})
        own = {"prompts": name, "side": [SIDES[0]] * n + [SIDES[1]] * m, "prompt": [*sides[0], *sides[1]]}
        probability = _probability(fits[0][0] * here[:, 0] + fits[0][1])
        scores.append(pd.DataFrame({**own, "projection": here[:, 0], "probability": probability}))
    every = pd.concat(scores, ignore_index=True)
    terms = terms_of(None, labels_of(prompts))
    return LatentGuard(pd.DataFrame(rows), every, direction, *fits[0], split, counts, terms)


Sides = tuple[list[str], list[str]]


def _tested(
    own: Mapping[str, Prompts], shifted: Mapping[str, Prompts], fitted: Sides, n: int | None
) -> dict[str, Sides]:
    """Both sides of each set of prompts to test on, none of which is among those that the guard is fitted to."""
    if taken := own.keys() & shifted.keys():
        raise CosmicError(f"shifted: {min(taken)!r} is the name of the contrast set's own prompts; choose another")
    found = {name: sides_of(some, HELD_OUT, n) for name, some in {**own, **shifted}.items()}
    known = {*fitted[0], *fitted[1]}
    for name, sides in found.items():
        if seen := [text for side in sides for text in side if text in known]:
            raise CosmicError(
                f"prompts: {len(seen)} of {name!r} are among those that the guard is fitted to, as {seen[0][:40]!r}; leave them "
                "out"
            )
    return found


def _fit(along: Float64[np.ndarray, " prompt"], counts: tuple[int, int]) -> tuple[float, float]:
    """Slope and intercept of the log-odds, by a logistic regression.

    Standardized, so that its L2 penalty, which keeps the slope finite where the classes are separated, does not depend on the
    scale of the activations.
    """
    from sklearn.linear_model import LogisticRegression

    mean, sd = float(along.mean()), float(along.std()) or 1.0
    found = LogisticRegression().fit(((along - mean) / sd)[:, None], np.repeat([1, 0], counts))
    slope = float(found.coef_[0, 0]) / sd
    return slope, float(found.intercept_[0]) - slope * mean


def _probability(log_odds: Float64[np.ndarray, " prompt"]) -> Float64[np.ndarray, " prompt"]:
    from scipy.special import expit

    found: np.ndarray = expit(log_odds)
    return found


def _measured(log_odds: Float64[np.ndarray, " prompt"], n_positive: int) -> dict[str, float]:
    """How well positive prompts, which come first, are told from the others."""
    positive, negative = log_odds[:n_positive], log_odds[n_positive:]
    area, low, high = auc(positive, negative)
    right = rate(int((positive > 0).sum() + (negative <= 0).sum()), len(log_odds))
    return {
        **{"auc": area, "auc_low": low, "auc_high": high},
        **{"accuracy": right.value, "accuracy_low": right.low, "accuracy_high": right.high},
        "missed": float((positive <= 0).mean()),
        "false_alarms": float((negative > 0).mean()),
        "brier": float(np.square(_probability(log_odds) - (np.arange(len(log_odds)) < n_positive)).mean()),
    }
