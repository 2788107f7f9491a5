"""The null beside a choice: what directions reach that carry no concept, where the choice was not made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isnan, nan

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.activations import class_means, random_splits
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.metrics.refusal_score import find_refusal_tokens, keep_own, refusal_tokens
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.cosmic_scores import CosmicScorer, shared_by_both
from cosmic_tl.selection.equal_kl import TOLERANCE, equal_kl
from cosmic_tl.selection.options import CosmicOptions, RefusalTokenOptions
from cosmic_tl.selection.refusal_tokens import RefusalTokenScorer
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Scorer, Scores

SHUFFLED, RANDOM, EQUAL_KL = "shuffled labels", "random", "random, equal KL"
ALPHA = "alpha"
ROUNDING = 1e-9
"""A smaller spread is none: where an edit does not reach what is read, all directions give the same."""
NULL = 99
"""Default number of directions of each kind, with which the smallest p-value is 0.01."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Null(Result):
    """A choice beside directions without the concept, on prompts that played no part in it."""

    table: pd.DataFrame
    """One row per measure and kind of direction: measure, null ("shuffled labels", "random" or "random, equal KL"), observed (of
    the chosen candidate), n (number of null directions), mean and sd (theirs), margin (by how many of their standard deviations
    the observed value is better than their mean; missing where these are all the same), reached (how many do as well or better)
    and p_value, (reached + 1) / (n + 1)."""
    values: pd.DataFrame
    """One row per null direction: measure, null, number (its seed) and value."""
    layer: int
    position: int
    n_prompts: tuple[int, int]
    """Positive and negative prompts that were tested on."""
    labels: Mapping[str, str]
    """Measure to what people are shown."""

    def said(self) -> str:
        """What was found, in a sentence.

        Example:
            >>> row = {"measure": "score", "null": "random", "n": 99, "margin": 4.0, "p_value": 0.01}
            >>> print(Null(pd.DataFrame([row]), pd.DataFrame(), 3, -1, (16, 16), {"score": "sum"}).said())
            Layer 3, position -1 against 99 directions without the concept, in standard deviations of these: score 4.0 ...
        """
        found = [
            f"{measure} "
            + ", ".join(f"{row.margin:.1f} ({row.null}, p = {row.p_value:.2g})" for row in some.itertuples())
            for measure, some in self.table.groupby("measure", sort=False)
        ]
        return (
            f"Layer {self.layer}, position {self.position} against {self.table.n.max()} directions without the concept, in "
            f"standard deviations of these: {'; '.join(found)}"
        )

    def _lines(self) -> list[str]:
        return [
            f"Null, on {self.n_prompts[0]} + {self.n_prompts[1]} validation prompts that played no part in the choice"
        ]


@checked
def measure_null(
    model: TransformerBridge,
    prompts: ContrastSet,
    selection: Selection,
    options: CosmicOptions | RefusalTokenOptions | None = None,
    *,
    n: int = NULL,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    scores: Scores | None = None,
) -> Null:
    """Score directions without the concept beside a chosen one, where it was not chosen.

    A winner is the best of many candidates on one sample of prompts, so its score there flatters it. What is tested is
    therefore the candidate that half of the validation prompts choose (`Stability.held_out`), which need not be the
    selection's, on the other half. The null directions stand at the same layer:

    * differences in means of the training prompts with shuffled labels (half of each side gets either label, so that the concept
      cancels), scaled to its norm;
    * random directions of its norm;
    * for induction, random ones at the strength whose KL divergence equals that of the real induction, to 5 %; those that do
      not reach it at any strength are left out.

    Costs about as much as scoring that candidate twice per null direction, and full passes for the equal KL.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        selection: The choice, with its stability.
        options: What it was made with. Default the paper's.
        n: Null directions of each kind. Default 99.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times directions) per forward pass. Default: by available memory.
        scores: What is already known, by layer, column of the null directions (−1 is the chosen one) and measure ("alpha" is the
            strength of equal KL, NaN where there is none); new ones are put in as they come.

    Raises:
        CosmicError: If the selection does not say how sure it is, none passes the filters on half of the prompts, or the options
            are not the selection's.

    Example:
        >>> from cosmic_tl import load_model, load_prompts, select_cosmic
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0, n_resamples=20)
        >>> null = measure_null(model, prompts, select_cosmic(model, prompts, options), options, n=3)
        >>> null.table.null.unique().tolist(), sorted(null.labels)
        (['shuffled labels', 'random', 'random, equal KL'], ['s_comply', 's_refuse', 'score'])
    """
    check_count("n", n)
    options = options or (RefusalTokenOptions() if selection.tokens is not None else CosmicOptions())
    if isinstance(options, RefusalTokenOptions) != (selection.tokens is not None) or options.edits != selection.edits:
        raise CosmicError("options: the selection was made with others; pass those that it was made with")
    held_out = None if selection.stability is None else selection.stability.held_out
    if held_out is None:
        raise CosmicError(
            "selection: no candidate was chosen on half of its validation prompts; select with n_resamples above 0, and look "
            "at its notes and its stability"
        )
    scores, candidates = {} if scores is None else scores, selection.candidates
    direction = candidates.direction(held_out.layer, held_out.position)
    nulls = {RANDOM: {seed: random_direction(direction, seed) for seed in range(n)}}
    if not candidates.names:
        nulls = {SHUFFLED: _shuffled(model, prompts, direction, options, n, chat, batch_size), **nulls}
    rows = tokenize(model, held_out.positive, chat), tokenize(model, held_out.negative, chat)
    nulls[EQUAL_KL] = _of_equal_kl(model, rows[1], direction, nulls[RANDOM], options, batch_size, scores)
    flat = [direction, *(one for some in nulls.values() for one in some.values())]
    kinds = [("", 0), *((null, seed) for null, some in nulls.items() for seed in some)]
    centre = None
    if isinstance(options, CosmicOptions) and options.target == "centred":
        means = class_means(
            model, _training_prompts(model, prompts, options, chat, batch_size), chat=chat, batch_size=batch_size
        )
        centre = shared_by_both(means, selection.evaluation_layers)
    scorer = _scorer(model, rows, _as_candidates(flat, candidates), selection, options, batch_size, scores, centre)
    removed, induced, _ = scorer.measures
    measured = []
    for measure, null_of in ((removed, (SHUFFLED, RANDOM)), (induced, (SHUFFLED, RANDOM, EQUAL_KL))):
        at = {k: (held_out.layer, -1 - k) for k, (null, _) in enumerate(kinds) if not null or null in null_of}
        scorer.compute(measure, at.values())
        measured += [(measure, *kinds[k], scorer.scores[(*cell, measure)]) for k, cell in at.items()]
    values = pd.DataFrame(measured, columns=["measure", "null", "number", "value"])
    labels = {name: selection.measures[name] for name in (removed, induced)}
    if isinstance(options, CosmicOptions):
        total = values.pivot(index=["null", "number"], columns="measure", values="value").dropna().sum(axis=1)
        values = pd.concat([values, total.rename("value").reset_index().assign(measure="score")[values.columns]])
        labels["score"] = selection.measures["score"]
    return _null(values, direction, (len(rows[0]), len(rows[1])), labels)


def _of_equal_kl(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    direction: Direction,
    nulls: Mapping[int, Direction],
    options: CosmicOptions | RefusalTokenOptions,
    batch_size: int | None,
    scores: Scores,
) -> dict[int, Direction]:
    """Directions scaled so that their induction changes the next token as much as the real one does; those that can."""
    if not options.alpha:
        return {}
    keys = {seed: (direction.layer, -1 - seed, ALPHA) for seed in nulls}
    if not all(key in scores for key in keys.values()):
        target, found = equal_kl(model, rows, direction, nulls, options.edits, batch_size=batch_size)
        for seed, key in keys.items():
            alpha, nats = found[seed]
            scores.setdefault(key, alpha if abs(nats - target) <= TOLERANCE * target else nan)
    return {
        seed: replace(one, vector=one.vector * scores[keys[seed]] / options.alpha)
        for seed, one in nulls.items()
        if not isnan(scores[keys[seed]])
    }


def _null(values: pd.DataFrame, direction: Direction, n_prompts: tuple[int, int], labels: Mapping[str, str]) -> Null:
    rows = []
    observed = values[values.null == ""].set_index("measure").value
    values = values[values.null != ""].reset_index(drop=True)
    for measure, null in product(labels, (SHUFFLED, RANDOM, EQUAL_KL)):
        some = values[(values.measure == measure) & (values.null == null)]
        if some.empty:
            continue
        better = -1 if measure == "bypass" else 1  # a refusal score is to fall
        here, there = better * float(observed[measure]), better * some.value
        reached = int((there >= here).sum())
        rows.append(
            {
                "measure": measure,
                "null": null,
                "observed": float(observed[measure]),
                "n": len(some),
                "mean": some.value.mean(),
                "sd": some.value.std(),
                "margin": (here - there.mean()) / sd if (sd := there.std()) > ROUNDING else nan,
                "reached": reached,
                "p_value": (reached + 1) / (len(some) + 1),
            }
        )
    return Null(pd.DataFrame(rows), values, direction.layer, direction.position, n_prompts, labels)


def _as_candidates(directions: Sequence[Direction], like: Candidates) -> Candidates:
    """Directions of one layer as columns of candidates."""
    cells = {(one.layer, -1 - k): one for k, one in enumerate(directions)}
    return Candidates.from_vectors(
        {cell: one.vector for cell, one in cells.items()},
        references={cell: one.reference for cell, one in cells.items() if one.reference is not None},
        n_layers=len(like.vectors),
        names=[f"null {k}" for k in range(len(directions))],
    )


def _scorer(
    model: TransformerBridge,
    rows: tuple[list[list[int]], list[list[int]]],
    candidates: Candidates,
    selection: Selection,
    options: CosmicOptions | RefusalTokenOptions,
    batch_size: int | None,
    scores: Scores,
    centre: Float64[Tensor, "layer d_model"] | None,
) -> Scorer:
    if isinstance(options, CosmicOptions):
        layers = selection.evaluation_layers
        return CosmicScorer(model, *rows, candidates, layers, options, batch_size, scores, centre=centre)
    assert selection.tokens is not None
    return RefusalTokenScorer(model, *rows, candidates, options, selection.tokens.ids, batch_size, scores)


def _training_prompts(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | RefusalTokenOptions,
    chat: ChatFormat | None,
    batch_size: int | None,
) -> tuple[Sequence[str], Sequence[str]]:
    """Those that the selection made its candidates of."""
    train = prompts.sides("train", options.n_train)
    if options.filter_prompts:
        val = prompts.sides("val", options.n_val)
        tokens = (
            find_refusal_tokens(model, train, chat=chat, batch_size=batch_size)
            if options.tokens is None
            else refusal_tokens(model, options.tokens)
        )
        train, _, _ = keep_own(model, train, val, tokens, chat=chat, batch_size=batch_size)
    return train


def _shuffled(
    model: TransformerBridge,
    prompts: ContrastSet,
    direction: Direction,
    options: CosmicOptions | RefusalTokenOptions,
    n: int,
    chat: ChatFormat | None,
    batch_size: int | None,
) -> dict[int, Direction]:
    """Differences in means of the training prompts with shuffled labels at the direction's place, with its norm."""
    train = _training_prompts(model, prompts, options, chat, batch_size)
    streams = [_stream_at(model, tokenize(model, side, chat), direction, batch_size) for side in train]
    splits = random_splits([len(side) for side in streams], range(n))
    found = {}
    for seed in range(n):
        halves = [split[seed] @ stream for split, stream in zip(splits, streams, strict=True)]
        vector = (halves[0] + halves[1]) / 2
        if (length := float(vector.norm())) > 1e-6 * direction.norm:
            found[seed] = replace(direction, vector=(vector * direction.norm / length).float(), method=SHUFFLED)
    if not found:
        raise CosmicError(
            f"n_train: found {options.n_train}, and shuffled labels make no direction of so few prompts; take more"
        )
    return found


def _stream_at(
    model: TransformerBridge, rows: Sequence[Sequence[int]], direction: Direction, batch_size: int | None
) -> Float64[Tensor, "prompt d_model"]:
    """The stream that enters the direction's layer, at its position."""
    site: tuple[int, Site] = (direction.layer, "hook_resid_pre")
    found: dict[int, Tensor] = {}
    for batch in batches(model, rows, batch_size):
        stream = forward(model, batch, [site], n_positions=-direction.position).activations[site]
        found.update(zip(batch.rows, stream[:, 0].cpu().double(), strict=True))
    return torch.stack([found[row] for row in range(len(rows))])
