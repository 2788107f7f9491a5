"""Measures of candidates by intervened passes: the one loop that both selections compute theirs with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, nan

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.progress import SCORES, stage, track
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.load import TransformerBridge, has_float64
from cosmic_tl.selection.options import Cell, CosmicOptions
from cosmic_tl.selection.resampling import Grid, Weights

ScoreKey = tuple[int, int, str]
"""Layer, position and measure."""
Scores = MutableMapping[ScoreKey, float]
Products = MutableMapping[ScoreKey, Tensor]
"""What a measure follows from for any weights of the prompts (`cosmic_tl.selection.resampling`), in float32. Of a cosine
`[prompt, other + prompt]`: the inner products of each steered prompt's activations with the clean ones of the other side, and
with the steered ones of its own. Of anything else `[prompt]`: its values."""
Keep = Callable[[ContrastSet, CosmicOptions], tuple[Scores, Products]]
"""What is known of the selections under some options, and takes what is found."""
KL = "kl"
KL_DETAILS = ("kl_median", "kl_max", "kl_max_prompt")
"""What is known of the divergence beside its mean over prompts: a single prompt can make up most of that."""


def parts(measure: str) -> tuple[str, ...]:
    """The names under which a measure is kept: its own, and with a divergence those of its details.

    Example:
        >>> parts("kl"), parts("bypass")
        (('kl', 'kl_median', 'kl_max', 'kl_max_prompt'), ('bypass',))
    """
    return (KL, *KL_DETAILS) if measure == KL else (measure,)


def is_known(scores: Mapping[ScoreKey, float], cell: Cell, measure: str) -> bool:
    """Whether a measure of a candidate is known with all that belongs to it.

    Example:
        >>> is_known({(3, -1, "kl"): 0.5}, (3, -1), "kl")  # median and maximum are not
        False
    """
    return all((*cell, name) in scores for name in parts(measure))


class Scorer(ABC):
    """Computes the measures of candidates that are asked for and not known yet.

    Each procedure has three: what removal does on positive prompts, what induction does on negative ones, and how far removal
    moves the next-token distribution on negative ones. What is read of a pass, and how it becomes a number, is the
    procedure's.

    Args:
        model: A `TransformerBridge`.
        positive: Token ids of the positive validation prompts.
        negative: The same of the negative ones.
        candidates: From `difference_in_means`.
        edits: How a direction is removed and induced.
        reading: What to read of the passes for the first two measures.
        batch_size: Rows per forward pass; None is by available memory.
        scores: What is already known; new ones are put in as they come. `Scorer.scores` has those alone that were asked for
            since: a stopped selection then chooses among what an undisturbed one would have computed.
        products: The same of what scores follow from for other weights of the prompts; a score is then known only with it.
            Default: it is not kept.
    """

    measures: tuple[str, str, str]
    """Names: of removal on positive prompts, induction on negative ones, and the divergence."""

    def __init__(
        self,
        model: TransformerBridge,
        positive: Sequence[Sequence[int]],
        negative: Sequence[Sequence[int]],
        candidates: Candidates,
        edits: Edits,
        reading: Reading,
        batch_size: int | None,
        scores: Scores,
        products: Products | None = None,
    ) -> None:
        self.products = products
        self.model, self.candidates, self.edits = model, candidates, replace(edits, tokens="all")  # one token is read
        self.positive, self.negative = positive, negative
        self.reading, self.batch_size, self.log = reading, batch_size, scores
        self.scores: dict[ScoreKey, float] = {}

    @abstractmethod
    def reduce(self, outcome: Outcome) -> Tensor:
        """What to keep of some prompts under one edit, one entry per prompt."""

    @abstractmethod
    def value(self, measure: str, reached: Tensor) -> float:
        """The measure, of what `reduce` kept of all prompts."""

    @abstractmethod
    def score(self, measures: Mapping[str, Grid]) -> Grid:
        """What the choice goes by, of the measures under other weights of the prompts."""

    def product(self, measure: str, reached: Tensor) -> Tensor:
        """What the measure follows from for any weights of the prompts; here its values prompt by prompt."""
        return reached

    def weighing(self, weights: Weights) -> Callable[[str, Tensor], Tensor]:
        """How a measure's product gives its values under all weights of the prompts; here by weighted means."""

        def values(measure: str, product: Float64[Tensor, "..."]) -> Float64[Tensor, " resample"]:
            side = weights.positive if measure == self.measures[0] else weights.negative
            return (side @ product).nan_to_num(nan=inf)  # which no filter lets pass

        return values

    @property
    def clean_positive(self) -> Tensor:
        """What `reduce` keeps of the positive prompts with no intervention."""
        return self._positive_pass[0]

    @property
    def clean_negative(self) -> Tensor:
        """The same of the negative prompts."""
        return self._negative_pass[0]

    @property
    def clean_logits(self) -> tuple[Float[Tensor, "positive vocab"], Float[Tensor, "negative vocab"]]:
        """The next token's, of positive and of negative prompts with no intervention."""
        return self._positive_pass[1], self._negative_pass[1]

    @cached_property
    def _positive_pass(self) -> tuple[Tensor, Tensor]:
        return self._clean_pass(self.positive)

    @cached_property
    def _negative_pass(self) -> tuple[Tensor, Tensor]:
        return self._clean_pass(self.negative)

    def _clean_pass(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        logits: dict[int, Tensor] = {}

        def both(outcome: Outcome) -> Tensor:
            assert outcome.logits is not None
            logits.update(zip(outcome.rows, outcome.logits.cpu(), strict=True))
            return self.reduce(outcome)

        reading = Reading(self.reading.layers, logits=True)
        ((_, clean),) = intervened(self.model, rows, [()], reading, both, batch_size=self.batch_size)
        return clean, torch.stack([logits[row] for row in range(len(logits))])

    def compute(self, measure: str, cells: Iterable[Cell]) -> None:
        """Make sure that a measure of some candidates is in `scores`; NaN where there is no direction."""
        wanted = [cell for cell in cells if not is_known(self.scores, cell, measure)]
        removed, induced, divergence = self.measures
        for cell in [cell for cell in wanted if undefined(self.candidates, cell)]:
            for name in parts(measure):
                self.scores[(*cell, name)] = self.log.setdefault((*cell, name), nan)
            wanted.remove(cell)
        # What the log knows is batched with the rest, so that a stopped selection goes on with the very same numbers.
        known = {
            i
            for i, cell in enumerate(wanted)
            if is_known(self.log, cell, measure) and (self.products is None or (*cell, measure) in self.products)
        }
        directions = [self.candidates.direction(*cell) for cell in wanted]
        edits: list[Interventions] = [
            self.edits.induction(d) if measure == induced else self.edits.removal(d) for d in directions
        ]
        rows = self.positive if measure == removed else self.negative
        reading, reduce = self.reading, self.reduce
        if measure == divergence:
            reading, reduce = Reading(logits=True), self._divergence
        stage(SCORES)
        if len(known) < len(edits):
            what = {removed: f"removal, {removed}", induced: f"induction, {induced}"}.get(measure, "KL of removal")
            with track(len(edits) - len(known), what) as advance:
                for i, reached in intervened(
                    self.model, rows, edits, reading, reduce, batch_size=self.batch_size, known=known
                ):
                    if i not in known:
                        found = (
                            summarized(reached) if measure == divergence else {measure: self.value(measure, reached)}
                        )
                        if self.products is not None:  # before the score, which counts as known
                            product = self.product(measure, reached).float().cpu()
                            self.products.setdefault((*wanted[i], measure), product)
                        for name, value in found.items():  # what is known already is not written twice
                            self.log.setdefault((*wanted[i], name), value)
                        advance(1)
        for cell in wanted:
            self.scores |= {(*cell, name): self.log[(*cell, name)] for name in parts(measure)}

    def _divergence(self, outcome: Outcome) -> Float64[Tensor, " prompt"]:
        assert outcome.logits is not None
        logits = outcome.logits if has_float64(outcome.logits.device) else outcome.logits.cpu()
        return kl_divergence(self._negative_pass[1][list(outcome.rows)].to(logits.device), logits)


def summarized(kl: Float64[Tensor, " prompt"]) -> dict[str, float]:
    """What is kept of a divergence: mean, median and maximum over prompts, and the prompt of the maximum.

    Example:
        >>> summarized(torch.tensor([0.0, 0.1, 0.8], dtype=torch.float64))
        {'kl': 0.3..., 'kl_median': 0.1, 'kl_max': 0.8, 'kl_max_prompt': 2.0}
    """
    values = (kl.mean(), kl.quantile(0.5), kl.max(), kl.argmax())
    return dict(zip(parts(KL), map(float, values), strict=True))


def undefined(candidates: Candidates, cell: Cell) -> bool:
    """Whether there is no direction: the classes' means are equal, or not finite.

    Example:
        >>> zeros = torch.zeros(1, 1, 4, dtype=torch.float64)
        >>> undefined(Candidates(zeros, zeros, "example"), (0, -1))
        True
    """
    vector = candidates.vectors[cell]
    return not (bool(vector.isfinite().all()) and bool(vector.any()))
