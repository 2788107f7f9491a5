"""How sure a choice is: how often each candidate wins when the validation prompts are drawn again, at no further score pass.

A resample of n prompts is a weight for each: how often it was drawn, over n. COSMIC's scores are cosines between means, so
they follow from inner products between prompts' activations, which a score pass leaves behind (`Products`): with H the
steered activations of one side and G the clean ones of the other, `cos(Hᵀw, Gᵀv) = wᵀ(HGᵀ)v / √(wᵀ(HHᵀ)w · vᵀ(GGᵀ)v)`.
"""

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
from cosmic_tl.selection.options import Cell, Target

LEVEL = 0.95
"""Of the intervals."""
RIVALS = 2
"""Other winners that are named."""
Grid = Float64[np.ndarray, "resample position layer"]


@dataclass(frozen=True, eq=False)
class Weights:
    """How much each validation prompt counts: as they are, drawn again, and without each one of them."""

    positive: Float64[Tensor, "resample positive"]
    negative: Float64[Tensor, "resample negative"]
    n_resamples: int
    """The first row is the sample itself, and so many drawn ones follow; then those without one prompt: each positive one,
    then each negative one."""

    @property
    def drawn(self) -> slice:
        """The rows that were drawn.

        Example:
            >>> draw_weights(4, 3, n_resamples=10).drawn
            slice(1, 11, None)
        """
        return slice(1, 1 + self.n_resamples)


def draw_weights(n_positive: int, n_negative: int, n_resamples: int, seed: int = 0) -> Weights:
    """Weights of prompts drawn with replacement, each side by itself.

    Args:
        n_positive: Positive validation prompts.
        n_negative: Negative ones.
        n_resamples: How often to draw.
        seed: Of the draws. Default 0.

    Example:
        >>> weights = draw_weights(4, 3, n_resamples=10)
        >>> weights.positive.shape, weights.positive.sum(1).unique().tolist()
        (torch.Size([18, 4]), [1.0])
    """
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for side, n in enumerate((n_positive, n_negative)):
        drawn = torch.randint(n, (n_resamples, n), generator=generator)
        counts = torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn).double()
        )
        whole, without = torch.ones(1, n, dtype=torch.float64), 1 - torch.eye(n, dtype=torch.float64)
        other = torch.ones((n_negative, n_positive)[side], n, dtype=torch.float64)
        rows = torch.cat([whole, counts, *((without, other) if side == 0 else (other, without))])
        sides.append(rows / rows.sum(1, keepdim=True).clamp(min=1))  # of one prompt nothing is left
    return Weights(sides[0], sides[1], n_resamples)


def weighted_scores(
    products: Float64[Tensor, "prompt columns"],
    clean: Float64[Tensor, "other other"],
    own: Float64[Tensor, "resample prompt"],
    other: Float64[Tensor, "resample other"],
    target: Target,
) -> Float64[Tensor, " resample"]:
    """One score for all weights of the prompts.

    Args:
        products: From `Products`.
        clean: Inner products of the other side's clean activations with each other.
        own: Weights of the prompts that were steered.
        other: Weights of the other side.
        target: How activations become one cosine; "mean" and "concatenated" differ in what the products are of.

    Example:
        >>> steered, clean = torch.randn(5, 8).double(), torch.randn(4, 8).double()
        >>> products = torch.cat([steered @ clean.T, steered @ steered.T], dim=1)
        >>> w, v = torch.full((1, 5), 0.2).double(), torch.full((1, 4), 0.25).double()
        >>> found = weighted_scores(products, clean @ clean.T, w, v, "mean")
        >>> torch.allclose(found, torch.cosine_similarity(steered.mean(0), clean.mean(0), dim=0))
        True
    """
    cross, within = products[:, : clean.shape[0]], products[:, clean.shape[0] :]
    length = ((other @ clean) * other).sum(1).clamp(min=0).sqrt()
    if target == "per-prompt":
        return ((own / within.diagonal().sqrt()) @ cross * other).sum(1) / length
    return (own @ cross * other).sum(1) / (((own @ within) * own).sum(1).clamp(min=0).sqrt() * length)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Scores of all candidates under all weights; NaN where there is no direction, or nothing was computed."""

    comply: Grid
    refuse: Grid
    kl: Grid
    positions: tuple[int, ...]
    """Of the columns, counted from the end."""


@dataclass(frozen=True)
class Rules:
    """The filters of a COSMIC selection."""

    max_layer_share: float
    max_kl: float
    last_position_rule: bool


def winners(
    found: Resampled, rules: Rules, undefined: Bool[np.ndarray, "position layer"]
) -> tuple[Int[np.ndarray, " resample"], ...]:
    """The candidate that each resample chooses, with all filters, as an index into (position, layer); −1 for none.

    Args:
        found: The scores. A candidate whose divergence is not known passes.
        rules: The filters.
        undefined: Where there is no direction.

    Returns:
        The winners, and the same if the position −1 rule dropped nothing.
    """
    score = np.asarray(found.comply + found.refuse)
    n_layers = score.shape[2]
    early = np.arange(n_layers) < rules.max_layer_share * n_layers
    admitted = np.asarray(~undefined & early & ~np.isnan(score) & ~(found.kl > rules.max_kl))
    free = _best(score, admitted)
    if rules.last_position_rule and -1 in found.positions and len(found.positions) > 1:
        last = found.positions.index(-1)
        others = [k for k in range(len(found.positions)) if k != last]
        late = np.ones((len(score), n_layers), dtype=bool)
        for measure in (found.comply, found.refuse):
            peaks, some = _peaks(measure[:, others])
            # The lower of two middles, over the positions that have scores.
            ordered = np.sort(np.where(some, peaks, n_layers), axis=1)
            middle = np.take_along_axis(ordered, np.maximum(some.sum(1) - 1, 0)[:, None] // 2, axis=1)
            late &= np.arange(n_layers) > np.where(some.any(1)[:, None], middle, -1)
        admitted[:, last] &= ~late
    return _best(score, admitted), free


def _best(score: Grid, admitted: Bool[np.ndarray, "resample position layer"]) -> Int[np.ndarray, " resample"]:
    flat = np.where(admitted, score, -np.inf).reshape(len(score), -1)
    return np.where(np.isneginf(flat).all(1), -1, flat.argmax(1))


def _peaks(measure: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The layer of each position's highest value, and whether it has any."""
    some = np.asarray(~np.isnan(measure).all(2))
    return np.where(np.isnan(measure), -np.inf, measure).argmax(2), some


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Stability(Result):
    """How sure a choice is, given the training prompts: what it would have been on other validation prompts."""

    table: pd.DataFrame
    """One row per candidate with scores, the best first: position, layer, wins (share of the resamples that choose it, with
    all filters), kept (whether it passes them on the prompts themselves), tied (whether its score cannot be told from the
    winner's, of those that pass), score, s_comply, s_refuse and kl, each with its 95 % interval (`…_low`, `…_high`), and
    behind (the winner's score minus its own) with its interval."""
    without: pd.DataFrame
    """One row per validation prompt without which another candidate would be chosen: side, number (from 0), prompt, and that
    candidate's layer and position; none where nothing would be."""
    chosen: Cell
    """Layer and position of the choice."""
    n_resamples: int
    seed: int
    max_kl: float
    """The KL filter's limit, in nats."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """Measure to the number of candidates that it was computed for on this account alone: divergences of further winners,
    and late layers that the position −1 rule looks at."""

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
        """The candidates that pass the filters and whose scores cannot be told from the winner's: simultaneous over all, at
        the level of 95 %.

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
            >>> print(Stability(pd.DataFrame(row), pd.DataFrame({"side": []}), (3, -1), 1000, 0, 0.1).said())
            Layer 3, position -1 wins 30% of 1000 resamples of the validation prompts; layer 4, position -1 60%
        """
        others = self.table[(self.table.layer != self.chosen[0]) | (self.table.position != self.chosen[1])]
        most = others[others.wins > 0].nlargest(RIVALS, "wins", keep="first")
        rivals = [f"layer {one.layer}, position {one.position} {one.wins:.0%}" for one in most.itertuples()]
        layer, position = self.chosen
        won = f"wins {self.wins:.0%} of {self.n_resamples} resamples of the validation prompts"
        return "; ".join([f"Layer {layer}, position {position} {won}", *rivals])

    def summary(self) -> dict[str, Any]:
        """Its main numbers, as `summary.json` has them: wins, how many are tied, the prompts that decide alone, and the passes.

        Example:
            >>> row = {"layer": [3, 4], "position": [-1, -1], "wins": [0.3, 0.6], "tied": [False, True]}
            >>> Stability(pd.DataFrame(row), pd.DataFrame({"side": []}), (3, -1), 1000, 0, 0.1).summary()["wins"]
            0.3
        """
        return {
            "wins": self.wins,
            "winners": self.table.loc[self.table.wins > 0, ["layer", "position", "wins"]].to_dict("records"),
            "tied": len(self.tied),
            "without": self.without.to_dict("records"),
            "n_resamples": self.n_resamples,
            "seed": self.seed,
            "passes": dict(self.passes),
        }

    def _lines(self) -> list[str]:
        lines = [
            self.said(),
            f"  {len(self.tied)} other candidates have scores that cannot be told from its own; {len(self.without)} prompts "
            "decide alone",
        ]
        if extra := ", ".join(f"{name} of {n}" for name, n in self.passes.items() if n):
            lines.append(f"  computed for this alone: {extra}")
        return lines

    def _shown(self) -> pd.DataFrame:
        names = [
            "layer",
            "position",
            "wins",
            "kept",
            "tied",
            "score",
            "score_low",
            "score_high",
            "kl",
            "kl_low",
            "kl_high",
        ]
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
    max_kl: float,
    passes: Mapping[str, int],
) -> Stability:
    """Summarise what resamples choose.

    Args:
        found: Scores under all weights.
        weights: The weights.
        chosen: Layer and position of the choice.
        choices: From `winners`.
        prompts: The positive and the negative validation prompts.
        admitted: The candidates that pass all filters on the sample itself, among which some may be tied.
        seed: Of the draws.
        max_kl: The KL filter's limit.
        passes: What was computed on this account alone.
    """
    score, drawn = found.comply + found.refuse, choices[weights.drawn]
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
        "tied": (_tied(behind, weights, shown & admitted) & admitted)[shown],
    }
    measures = {"score": score, "s_comply": found.comply, "s_refuse": found.refuse, "kl": found.kl, "behind": behind}
    for name, values in measures.items():
        low, high = _interval(values[weights.drawn], values[0], biased=name != "kl")
        columns |= {name: values[0][shown], f"{name}_low": low[shown], f"{name}_high": high[shown]}
    table = pd.DataFrame(columns).sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    table.loc[(table.layer == layer) & (table.position == chosen[1]), "tied"] = False
    return Stability(
        table,
        _without(choices, weights, prompts, found.positions, score.shape[2]),
        chosen,
        weights.n_resamples,
        seed,
        max_kl,
        passes,
    )


def _interval(drawn: Grid, here: np.ndarray, biased: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's interval: of a mean, from quantile to quantile. A cosine between means is biased: a resampled mean is
    noisier than the sample's, as that is noisier than the truth, and both shift it down. The basic interval takes that off.
    """
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return (2.0 * here - high, 2.0 * here - low) if biased else (low, high)


def _tied(
    behind: Grid, weights: Weights, among: Bool[np.ndarray, "position layer"]
) -> Bool[np.ndarray, "position layer"]:
    """Which differences to the winner may be 0, all of them considered at once: the largest of the studentised errors."""
    errors = behind[weights.drawn] - behind[0]
    spread = errors.std(axis=0)
    usable = among & (spread > 0)
    if not usable.any():
        return np.zeros_like(among)
    limit = np.quantile((errors[:, usable] / spread[usable]).max(axis=1), LEVEL)
    return np.asarray(usable & (behind[0] - limit * spread <= 0))


def _without(
    choices: Int[np.ndarray, " resample"],
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
            if other not in (-1, int(choices[0])) and len(texts) > 1:
                rows.append((side, number, text, other % n_layers, positions[other // n_layers]))
    return pd.DataFrame(rows, columns=["side", "number", "prompt", "layer", "position"])
