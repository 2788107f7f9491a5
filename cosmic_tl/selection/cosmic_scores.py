"""COSMIC's scores: how close removal and induction bring one class's activations to the other's."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl.activations import MeanActivations
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.options import CosmicOptions, Target
from cosmic_tl.selection.plan import COSMIC_MEASURES
from cosmic_tl.selection.resampling import Grid, Weights, weighted_lengths, weighted_scores
from cosmic_tl.selection.scores import Products, Scorer, Scores


class CosmicScorer(Scorer):
    """S_comply, S_refuse and KL (Siu et al. 2025, section 3).

    Args:
        model: A `TransformerBridge`.
        positive: Token ids of the positive validation prompts.
        negative: The same of the negative ones.
        candidates: From `difference_in_means`.
        layers: The evaluation layers.
        options: Mode, strength and target.
        batch_size: Rows per forward pass; None is by available memory.
        scores: What is already known; new ones are put in as they come.
        products: The same of what scores follow from for other weights of the prompts. Default: it is not kept.
        centre: From `shared_by_both`, for the target "centred".
    """

    measures = COSMIC_MEASURES

    def __init__(
        self,
        model: TransformerBridge,
        positive: Sequence[Sequence[int]],
        negative: Sequence[Sequence[int]],
        candidates: Candidates,
        layers: Sequence[int],
        options: CosmicOptions,
        batch_size: int | None,
        scores: Scores,
        products: Products | None = None,
        centre: Float64[Tensor, "layer d_model"] | None = None,
    ) -> None:
        if (centre is None) == (options.target == "centred"):
            raise CosmicError('centre: it goes with the target "centred"; give both or neither')
        self.centre = centre
        reading = Reading(tuple(layers))
        super().__init__(model, positive, negative, candidates, options.edits, reading, batch_size, scores, products)
        self.target = options.target

    @property
    def clean_similarity(self) -> float:
        """Cosine between the classes with no intervention, the zero point of both scores.

        Taken prompt by prompt, the two scores have zero points of their own, and this is their mean.
        """
        there = _similarity(self.clean_positive, self.clean_negative.mean(0), self.target)
        back = _similarity(self.clean_negative, self.clean_positive.mean(0), self.target)
        return (there + back) / 2

    def reduce(self, outcome: Outcome) -> Float64[Tensor, "prompt feature"]:
        """`y[l, -1]`, averaged or put side by side over the evaluation layers."""
        layers = [outcome.resid_post[layer][:, -1].cpu().double() for layer in sorted(outcome.resid_post)]
        if self.centre is not None:
            layers = [found - centre for found, centre in zip(layers, self.centre, strict=True)]
        return torch.cat(layers, dim=1) if self.target == "concatenated" else torch.stack(layers).mean(0)

    def product(self, measure: str, reached: Tensor) -> Tensor:
        """Inner products with the clean activations of the other side, and of the steered ones with each other."""
        if measure not in self.measures[:2]:
            return super().product(measure, reached)
        other = self.clean_negative if measure == self.measures[0] else self.clean_positive
        return reached @ torch.cat([other, reached]).T

    def weighing(self, weights: Weights) -> Callable[[str, Tensor], Tensor]:
        """Cosines by the prompts' inner products; of the divergence weighted means."""
        means = super().weighing(weights)
        removed, induced, _ = self.measures
        sides = {
            removed: (weights.positive, weights.negative, _lengths(self.clean_negative, weights.negative)),
            induced: (weights.negative, weights.positive, _lengths(self.clean_positive, weights.positive)),
        }

        def values(measure: str, product: Float64[Tensor, "..."]) -> Float64[Tensor, " resample"]:
            if measure not in sides:
                return means(measure, product)
            return weighted_scores(product, *sides[measure], self.target)

        return values

    def value(self, measure: str, reached: Tensor) -> float:
        """Cosine to the other class with no intervention."""
        other = self.clean_negative if measure == self.measures[0] else self.clean_positive
        return _similarity(reached, other.mean(0), self.target)

    def score(self, measures: Mapping[str, Grid]) -> Grid:
        """The sum of both cosines."""
        total: Grid = measures[self.measures[0]] + measures[self.measures[1]]
        return total


def shared_by_both(
    means: tuple[MeanActivations, MeanActivations], layers: Sequence[int]
) -> Float64[Tensor, "layer d_model"]:
    """What all activations have in common at some layers: the mean of both classes' mean `y[l, -1]`.

    Example:
        >>> from cosmic_tl import load_model, mean_activations
        >>> means = mean_activations(load_model("demo", device="cpu"), ["hi"])
        >>> torch.equal(shared_by_both((means, means), [6]), means.resid_post[6:7, -1])
        True
    """
    positive, negative = (one.resid_post[sorted(layers), -1] for one in means)
    return (positive + negative) / 2


def _lengths(
    clean: Float64[Tensor, "prompt feature"], weights: Float64[Tensor, "resample prompt"]
) -> Float64[Tensor, " resample"]:
    return weighted_lengths(clean @ clean.T, weights)


def _similarity(reached: Float64[Tensor, "prompt feature"], target: Float64[Tensor, " feature"], how: Target) -> float:
    """Cosine to the target: of the mean over prompts, or the mean of each prompt's."""
    if how == "per-prompt":
        return float(cosine_similarity(reached, target[None], dim=1).mean())
    return float(cosine_similarity(reached.mean(0), target, dim=0))
