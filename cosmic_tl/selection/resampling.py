"""Scores and winners when the validation prompts are drawn again, at no further score pass.

A resample of n prompts is a weight for each: how often it was drawn, over n. Means over prompts become weighted ones. COSMIC's
scores are cosines between means, so they follow from inner products between prompts' activations, which a score pass leaves
behind (`Products`): with H the steered activations of one side and G the clean ones of the other,
`cos(Hᵀw, Gᵀv) = wᵀ(HGᵀ)v / √(wᵀ(HHᵀ)w · vᵀ(GGᵀ)v)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from cosmic_tl.selection.options import Target

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


def weighted_lengths(
    products: Float64[Tensor, "prompt prompt"], weights: Float64[Tensor, "resample prompt"]
) -> Float64[Tensor, " resample"]:
    """Lengths of means over prompts, from the prompts' inner products with each other.

    Example:
        >>> x = torch.tensor([[3.0, 4.0], [3.0, -4.0]]).double()
        >>> weighted_lengths(x @ x.T, torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double())
        tensor([5., 3.], dtype=torch.float64)
    """
    return ((weights @ products) * weights).sum(1).clamp(min=0).sqrt()


def weighted_scores(
    products: Float64[Tensor, "prompt columns"],
    own: Float64[Tensor, "resample prompt"],
    other: Float64[Tensor, "resample other"],
    lengths: Float64[Tensor, " resample"],
    target: Target,
) -> Float64[Tensor, " resample"]:
    """One score for all weights of the prompts.

    Args:
        products: From `Products`.
        own: Weights of the prompts that were steered.
        other: Weights of the other side.
        lengths: Of the other side's clean means, from `weighted_lengths`.
        target: How activations become one cosine; "mean" and "concatenated" differ in what the products are of.

    Example:
        >>> steered, clean = torch.randn(5, 8).double(), torch.randn(4, 8).double()
        >>> products = torch.cat([steered @ clean.T, steered @ steered.T], dim=1)
        >>> w, v = torch.full((1, 5), 0.2).double(), torch.full((1, 4), 0.25).double()
        >>> found = weighted_scores(products, w, v, weighted_lengths(clean @ clean.T, v), "mean")
        >>> torch.allclose(found, torch.cosine_similarity(steered.mean(0), clean.mean(0), dim=0))
        True
    """
    cross, within = products[:, : other.shape[1]], products[:, other.shape[1] :]
    if target == "per-prompt":
        return ((own / within.diagonal().sqrt()) @ cross * other).sum(1) / lengths
    return (own @ cross * other).sum(1) / (weighted_lengths(within, own) * lengths)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Measures of all candidates under all weights; NaN where there is no direction, or nothing was computed."""

    measures: Mapping[str, Grid]
    score: Grid
    """What the choice goes by."""
    positions: tuple[int, ...]
    """Of the columns, counted from the end."""


@dataclass(frozen=True)
class Rules:
    """A procedure's filters."""

    max_layer_share: float
    max_kl: float
    last_position_rule: bool = False
    min_induce: float | None = None
    """What refusal tokens ask of an induction."""

    @property
    def limits(self) -> dict[str, float]:
        """Measure to the limit that a filter sets it.

        Example:
            >>> Rules(max_layer_share=0.8, max_kl=0.1, min_induce=0.0).limits
            {'induce': 0.0, 'kl': 0.1}
        """
        return {**({} if self.min_induce is None else {"induce": self.min_induce}), "kl": self.max_kl}


def winners(
    found: Resampled, rules: Rules, undefined: Bool[np.ndarray, "position layer"]
) -> tuple[Int[np.ndarray, " resample"], Int[np.ndarray, " resample"], Bool[np.ndarray, "position layer"]]:
    """The candidate that each resample chooses, with all filters, as an index into (position, layer); −1 for none.

    Args:
        found: The scores. A candidate passes the filters that look at what is not known of it.
        rules: The filters.
        undefined: Where there is no direction.

    Returns:
        The winners, the same if the position −1 rule dropped nothing, and which candidates no filter takes on the prompts
        themselves.
    """
    score, n_layers = found.score, found.score.shape[2]
    early = np.arange(n_layers) < rules.max_layer_share * n_layers
    admitted = np.asarray(~undefined & early & ~np.isnan(score) & ~(found.measures["kl"] > rules.max_kl))
    if rules.min_induce is not None:
        admitted &= ~(found.measures["induce"] <= rules.min_induce)
    free = _best(score, admitted)
    if rules.last_position_rule and -1 in found.positions and len(found.positions) > 1:
        last = found.positions.index(-1)
        others = [k for k in range(len(found.positions)) if k != last]
        late = np.ones((len(score), n_layers), dtype=bool)
        for measure in ("s_comply", "s_refuse"):
            peaks, some = _peaks(found.measures[measure][:, others])
            # The lower of two middles, over the positions that have scores.
            ordered = np.sort(np.where(some, peaks, n_layers), axis=1)
            middle = np.take_along_axis(ordered, np.maximum(some.sum(1) - 1, 0)[:, None] // 2, axis=1)
            late &= np.arange(n_layers) > np.where(some.any(1, keepdims=True), middle, -1)
        admitted[:, last] &= ~late
    return _best(score, admitted), free, admitted[0]


def _best(score: Grid, admitted: Bool[np.ndarray, "resample position layer"]) -> Int[np.ndarray, " resample"]:
    flat = np.where(admitted, score, -np.inf).reshape(len(score), -1)
    return np.where(np.isneginf(flat).all(1), -1, flat.argmax(1))


def _peaks(measure: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The layer of each position's highest value, and whether it has any."""
    some = np.asarray(~np.isnan(measure).all(2))
    return np.where(np.isnan(measure), -np.inf, measure).argmax(2), some
