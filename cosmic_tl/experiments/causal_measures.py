"""What is measured at the last token: how far prompts come towards the other class."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl.engine import Outcome
from cosmic_tl.metrics.divergence import divergence_from
from cosmic_tl.metrics.refusal_score import RefusalTokens

TOWARDS = (-1, 1)
"""Positive prompts are to lose their refusal score, negative ones to win it."""


class Measures:
    """How far prompts come towards the other class, prompt by prompt: refusal score, cosine at some layers, and KL.

    First `keep` takes what the clean model gives; then a call takes what it gives under a patch, for the prompts that were kept
    first (of which there may be fewer than all).

    Args:
        sides: Of each prompt: 0 for a positive one, 1 for a negative one. Cosines need both.
        tokens: Whose log-odds are the refusal score; None for no such measure.
        layers: Where cosines are taken; none for no such measure.
    """

    def __init__(self, sides: Sequence[int], tokens: RefusalTokens | None, layers: tuple[int, ...]) -> None:
        self.sides, self.tokens, self.layers = torch.tensor(sides), tokens, layers
        self.logits: dict[int, Tensor] = {}
        self.streams: dict[int, Tensor] = {}

    def keep(self, outcome: Outcome, first: int = 0) -> None:
        """What the clean model gives for some prompts, which are numbered from `first` on."""
        rows = [first + row for row in outcome.rows]
        if outcome.logits is not None:
            self.logits.update(zip(rows, outcome.logits.cpu(), strict=True))
        if self.layers:
            self.streams.update(zip(rows, _over_layers(outcome, self.layers), strict=True))

    @cached_property
    def _before(self) -> Float[Tensor, "prompt vocab"]:
        return torch.stack([self.logits[row] for row in range(len(self.logits))])

    @cached_property
    def _odds(self) -> tuple[Float64[Tensor, " prompt"] | None, Float64[Tensor, " prompt"]]:
        return _odds_and_total(self._before, self.tokens)

    @cached_property
    def _divergence(self) -> Callable[..., Float64[Tensor, " some"]]:
        return divergence_from(self._before, total=self._odds[1])

    @cached_property
    def _cosines(self) -> tuple[Float64[Tensor, "prompt d_model"], Float64[Tensor, " prompt"]]:
        """The other class's mean, and every prompt's cosine to it."""
        stream = torch.stack([self.streams[row] for row in range(len(self.streams))])
        target = torch.stack([stream[self.sides == 1].mean(0), stream[self.sides == 0].mean(0)])[self.sides]
        return target, cosine_similarity(stream, target, dim=1)

    def __call__(self, outcome: Outcome) -> Float64[Tensor, "prompt measure"]:
        """What a patch does to some prompts."""
        assert outcome.logits is not None
        here, now = list(outcome.rows), outcome.logits.cpu()
        odds, total = _odds_and_total(now, self.tokens)
        columns = []
        before, _ = self._odds
        if odds is not None and before is not None:
            columns.append(torch.tensor(TOWARDS)[self.sides[here]] * (odds - before[here]))
        if self.layers:
            target, cosines = self._cosines
            columns.append(cosine_similarity(_over_layers(outcome, self.layers), target[here], dim=1) - cosines[here])
        columns.append(self._divergence(here, now, total))
        return torch.stack(columns, dim=1)


def _odds_and_total(
    logits: Float[Tensor, "prompt vocab"], tokens: RefusalTokens | None
) -> tuple[Float64[Tensor, " prompt"] | None, Float64[Tensor, " prompt"]]:
    """The refusal score as `log_odds` gives it, and the logarithm of the sum of all exponentials. Both from exponentials in
    float32: in float64 they would take as long as the blocks.
    """
    if tokens is None:
        return None, _total(logits.clone())
    chosen = list(set(tokens.ids))
    inside = logits[:, chosen].double().logsumexp(-1)
    others = logits.clone()
    others[:, chosen] = -torch.inf
    outside = _total(others)
    return inside - outside, torch.logaddexp(inside, outside)


def _total(logits: Float[Tensor, "prompt vocab"]) -> Float64[Tensor, " prompt"]:
    """Their `logsumexp`, to 1e-7 also where they are large; in place."""
    top = logits.amax(-1, keepdim=True)
    return logits.sub_(top).exp_().sum(-1).double().log() + top[:, 0].double()


def _over_layers(outcome: Outcome, layers: tuple[int, ...]) -> Float64[Tensor, "prompt d_model"]:
    """The mean over layers of `y[l, -1]`."""
    return torch.stack([outcome.resid_post[layer][:, -1].cpu().double() for layer in layers]).mean(0)
