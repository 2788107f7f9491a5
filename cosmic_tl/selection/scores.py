"""Measures of candidates by intervened passes: the one loop that both selections compute theirs with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from math import inf, nan
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.progress import SCORES, stage, track
from cosmic_tl._util.spreading import PIECES_PER_WORKER, Piece, Spread, contiguous
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.engine import Outcome, Reading, intervened, shared_passes
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.copies import copies_of
from cosmic_tl.model.load import TransformerBridge, has_float64
from cosmic_tl.model.shortcuts import shared_prefix
from cosmic_tl.selection.options import Cell, CosmicOptions
from cosmic_tl.selection.pass_costs import Tokens, block_costs, macs
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
        self.compute_all({measure: cells})

    def compute_all(self, wanted: Mapping[str, Iterable[Cell]]) -> None:
        """The same of several measures, which copies of the model share if there are any (`spread_over`)."""
        listed = {measure: list(cells) for measure, cells in wanted.items()}
        asked = {measure: self._asked(measure, cells) for measure, cells in listed.items()}
        stage(SCORES)
        left = {measure: self._unknown(measure, cells) for measure, cells in asked.items()}
        if (copies := copies_of(self.model)) is None or not self._spread(copies, asked, left):
            for measure, cells in asked.items():
                if left[measure]:
                    with track(len(left[measure]), self._label(measure)) as advance:
                        for found in self.passes(measure, cells, left[measure]):
                            self._take(measure, cells, *found)
                            advance(1)
        for measure, cells in listed.items():
            for cell in cells:
                self.scores |= {(*cell, name): self.log[(*cell, name)] for name in parts(measure)}

    def _asked(self, measure: str, cells: Iterable[Cell]) -> list[Cell]:
        """Candidates with a direction whose measure was not asked for before; the others' is NaN."""
        found = [cell for cell in cells if not is_known(self.scores, cell, measure)]
        for cell in found:
            if undefined(self.candidates, cell):
                for name in parts(measure):
                    self.log.setdefault((*cell, name), nan)
        return [cell for cell in found if not undefined(self.candidates, cell)]

    def _unknown(self, measure: str, cells: Sequence[Cell]) -> set[int]:
        """Which of them the log does not know."""
        return {
            i
            for i, cell in enumerate(cells)
            if not is_known(self.log, cell, measure)
            or (self.products is not None and (*cell, measure) not in self.products)
        }

    def _label(self, measure: str) -> str:
        removed, induced, _ = self.measures
        return {removed: f"removal, {removed}", induced: f"induction, {induced}"}.get(measure, "KL of removal")

    def _work(
        self, measure: str, cells: Sequence[Cell]
    ) -> tuple[Sequence[Sequence[int]], list[Interventions], Reading]:
        """Prompts, edits and reading of a measure."""
        removed, induced, divergence = self.measures
        edits: list[Interventions] = []
        for cell in cells:
            direction = self.candidates.direction(*cell)
            edits.append(self.edits.induction(direction) if measure == induced else self.edits.removal(direction))
        rows = self.positive if measure == removed else self.negative
        return rows, edits, Reading(logits=True) if measure == divergence else self.reading

    def passes(
        self, measure: str, cells: Sequence[Cell], left: Collection[int]
    ) -> Iterator[tuple[int, dict[str, float], Tensor | None]]:
        """Measure some of the candidates, in batches as if all were measured.

        What is known is batched with the rest, so that a selection that was stopped, or that several processes share, has the
        very same numbers.

        Args:
            measure: Its name.
            cells: All candidates that are asked for.
            left: Indices of those whose measure is missing.

        Yields:
            A candidate's index, its measure with its details, and if it is kept the product that it follows from.
        """
        rows, edits, reading = self._work(measure, cells)
        is_divergence = measure == self.measures[2]
        reduce = self._divergence if is_divergence else self.reduce
        known = set(range(len(cells))).difference(left)
        for i, reached in intervened(self.model, rows, edits, reading, reduce, batch_size=self.batch_size, known=known):
            if i in left:
                found = summarized(reached) if is_divergence else {measure: self.value(measure, reached)}
                yield i, found, None if self.products is None else self.product(measure, reached).float().cpu()

    def _take(
        self, measure: str, cells: Sequence[Cell], i: int, found: Mapping[str, float], product: Tensor | None
    ) -> None:
        """Write down what a pass gave; what is known already is not written twice."""
        if self.products is not None and product is not None:  # before the score, which counts as known
            self.products.setdefault((*cells[i], measure), product)
        for name, value in found.items():
            self.log.setdefault((*cells[i], name), value)

    def _spread(self, copies: Spread, asked: Mapping[str, Sequence[Cell]], left: Mapping[str, Collection[int]]) -> bool:
        """Let copies of the model make the passes, if there are enough of these to share."""
        chunks: list[tuple[str, int, list[int]]] = []
        blocks, unembedding = block_costs(self.model), int(self.model.cfg.d_model) * int(self.model.cfg.d_vocab)
        for measure, cells in asked.items():
            if not left[measure]:
                continue
            rows, edits, reading = self._work(measure, cells)
            last = int(self.model.cfg.n_layers) - 1 if reading.logits else max(reading.layers)
            tokens = Tokens.of(rows, shared_prefix(self.model, rows))
            for layer, chunk in shared_passes(self.model, rows, edits, reading, self.batch_size):
                if missing := [i for i in chunk if i in left[measure]]:
                    cost = macs(tokens, blocks, layer, last, unembedding * reading.logits) if layer <= last else 0
                    chunks.append((measure, cost * len(chunk), missing))
        if len(chunks) < 2 or not any(cost for _, cost, _ in chunks):  # what acts above all that is read costs nothing
            return False
        pieces = []
        for measure, some in groupby(chunks, key=lambda chunk: chunk[0]):
            here = list(some)
            share = sum(cost for _, cost, _ in here) / sum(cost for _, cost, _ in chunks)
            for run in contiguous([cost for _, cost, _ in here], round(share * PIECES_PER_WORKER * copies.count) or 1):
                mine = [i for at in run for i in here[at][2]]
                layers = sorted({asked[measure][i][0] for i in mine})
                name = (
                    f"{measure}, layers {layers[0]} to {layers[-1]}" if layers[1:] else f"{measure}, layer {layers[0]}"
                )
                pieces.append(Piece(name, (measure, asked[measure], mine)))
        with track(sum(map(len, left.values())), "scores") as advance:
            for number, results in copies.map("scores", _passes_of, (self,), pieces):
                measure, cells, _ = pieces[number].args
                for found in results:
                    self._take(measure, cells, *found)
                advance(len(results))
        return True

    def __getstate__(self) -> dict[str, Any]:
        """All but the model and what is known, for another process."""
        (reduced, logits), negative = self._positive_pass, self._negative_pass
        kept = {name: value for name, value in self.__dict__.items() if name != "model"}
        products: Products | None = None if self.products is None else {}
        own = {"_positive_pass": (reduced, logits[:0]), "_negative_pass": negative}
        return {**kept, **own, "log": {}, "scores": {}, "products": products}

    def _divergence(self, outcome: Outcome) -> Float64[Tensor, " prompt"]:
        assert outcome.logits is not None
        logits = outcome.logits if has_float64(outcome.logits.device) else outcome.logits.cpu()
        return kl_divergence(self._negative_pass[1][list(outcome.rows)].to(logits.device), logits)


def _passes_of(
    model: TransformerBridge, scorer: Scorer, measure: str, cells: Sequence[Cell], left: Sequence[int]
) -> list[tuple[int, dict[str, float], Tensor | None]]:
    """`Scorer.passes` in another process."""
    scorer.model = model
    return list(scorer.passes(measure, cells, set(left)))


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
