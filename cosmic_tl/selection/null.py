"""The null beside a choice: what directions reach that carry no concept, on prompts that played no part in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isnan, nan
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.activations import random_splits
from cosmic_tl.data.contrast_set import ContrastSet, Split
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.directions.names import DIM
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.cosmic_scores import CosmicScorer
from cosmic_tl.selection.equal_kl import TOLERANCE, equal_kl
from cosmic_tl.selection.options import CosmicOptions, RefusalTokenOptions
from cosmic_tl.selection.refusal_tokens import RefusalTokenScorer, select_by_refusal_tokens
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Scorer, Scores

SHUFFLED, RANDOM, EQUAL_KL = "shuffled labels", "random", "random, equal KL"
ALPHA = "alpha"
ROUNDING = 1e-9
"""A smaller difference is none: where an edit does not reach what is read, all directions give the same."""
Halves = tuple[tuple[str, ...], tuple[str, ...]]
NULL = 99
"""Default number of directions of each kind, with which the smallest p-value is 0.01."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Null(Result):
    """A choice beside directions without the concept, on prompts that played no part in it."""

    table: pd.DataFrame
    """One row per measure and kind of direction: measure, null ("shuffled labels", "random" or "random, equal KL"), observed (of
    the real direction), n (number of null directions), mean and sd (theirs), margin (by how many of their standard deviations
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
            + ", ".join(
                f"{'no spread' if isnan(row.margin) else f'{row.margin:.1f}'} ({row.null}, p = {row.p_value:.2g})"
                for row in some.itertuples()
            )
            for measure, some in self.table.groupby("measure", sort=False)
        ]
        return (
            f"Layer {self.layer}, position {self.position} against {self.table.n.max()} directions without the concept, in "
            f"standard deviations of these: {'; '.join(found)}"
        )

    def summary(self) -> dict[str, Any]:
        """Its numbers, as `summary.json` has them.

        Example:
            >>> row = {"measure": "score", "null": "random", "n": 1, "margin": nan, "p_value": 1.0}
            >>> Null(pd.DataFrame([row]), pd.DataFrame(), 3, -1, (16, 16), {"score": "sum"}).summary()["tests"][0]["margin"]
        """
        return {
            "layer": self.layer,
            "position": self.position,
            "n": {"positive": self.n_prompts[0], "negative": self.n_prompts[1]},
            "tests": self.table.astype(object).where(self.table.notna(), None).to_dict("records"),  # JSON has no NaN
        }

    def _lines(self) -> list[str]:
        return [
            f"Null, on {self.n_prompts[0]} + {self.n_prompts[1]} validation prompts that played no part in the choice"
        ]


@checked
def measure_null(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | RefusalTokenOptions | None = None,
    *,
    n: int = NULL,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    scores: Scores | None = None,
    null_scores: Scores | None = None,
) -> Null:
    """Score directions without the concept beside a chosen one, where it was not chosen.

    A winner is the best of many candidates, so both its score and its direction flatter it. Training and validation prompts
    are therefore halved: layer and position are chosen by the first halves alone, and what is tested there is the direction of
    the other training prompts (never filtered), on the other validation prompts. Beside it stand, each with its norm:

    * differences in means of the same training prompts with shuffled labels (half of each side gets either label, so that the
      concept cancels);
    * random directions;
    * for induction, random ones at the strength whose KL divergence equals that of the real induction, to 5 %; those that do
      not reach it at any strength are left out.

    Each but the last kind has a reference of its own, which lies half its length before the mean of both classes' means, as
    the real one does. Costs half a selection, about as much as scoring a candidate twice per null direction, and full passes
    for the equal KL.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        options: Of the choice. Default COSMIC's, as in the paper.
        n: Null directions of each kind. Default 99.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times directions) per forward pass. Default: by available memory.
        scores: What is already known of the choice, as for `select_cosmic`; new ones are put in as they come.
        null_scores: What is already known of the null, by layer, column of the null directions (−1 is the real one) and measure
            ("alpha" is the strength of equal KL, NaN where there is none); new ones are put in as they come.

    Raises:
        NoCandidateError: If the filters leave nothing on the first halves.
        CosmicError: If there are fewer than 4 training or 2 validation prompts on a side, a cell, successive halving or another
            generator than "dim" is asked for, or as the selection.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> options = CosmicOptions(n_train=16, n_val=8, n_positions=1, max_kl=50.0)
        >>> null = measure_null(model, prompts, options, n=3)
        >>> null.table.null.unique().tolist(), sorted(null.labels)
        (['shuffled labels', 'random', 'random, equal KL'], ['s_comply', 's_refuse', 'score'])
    """
    check_count("n", n)
    options = options or CosmicOptions()
    for name in ("cell", "successive_halving"):
        if (found := getattr(options, name, None)) not in (None, False):
            raise CosmicError(f"{name}: found {found}, and the null tests a choice among all candidates; leave it out")
    if options.directions != (DIM,):
        raise CosmicError(
            f"directions: found {','.join(options.directions)}, and the null is made of differences in means; use {DIM} alone"
        )
    null_scores = {} if null_scores is None else null_scores
    train, val = (_halved(prompts, split, getattr(options, f"n_{split}")) for split in ("train", "val"))
    first = replace(
        prompts,
        positive={**prompts.positive, "train": train[0][0], "val": val[0][0]},
        negative={**prompts.negative, "train": train[0][1], "val": val[0][1]},
    )
    own = replace(options, n_resamples=0)
    if isinstance(own, RefusalTokenOptions):
        selection = select_by_refusal_tokens(
            model, first, own, chat=chat, batch_size=batch_size, scores=scores, seeds=()
        )
    else:
        selection = select_cosmic(model, first, own, chat=chat, batch_size=batch_size, scores=scores, seeds=())
    cell = (selection.direction.layer, selection.direction.position)
    streams = [_stream_at(model, tokenize(model, side, chat), *cell, batch_size) for side in train[1]]
    positive, negative = (stream.mean(0) for stream in streams)
    direction = replace(selection.direction, vector=(positive - negative).float(), reference=negative.float())
    random = {seed: random_direction(direction, seed) for seed in range(n)}
    nulls = {
        SHUFFLED: _shuffled(streams, direction, n),
        RANDOM: {seed: _placed(one, direction) for seed, one in random.items()},
    }
    rows = tokenize(model, val[1][0], chat), tokenize(model, val[1][1], chat)
    nulls[EQUAL_KL] = _of_equal_kl(model, rows[1], direction, random, options, batch_size, null_scores)
    flat = [direction, *(one for some in nulls.values() for one in some.values())]
    kinds = [("", 0), *((null, seed) for null, some in nulls.items() for seed in some)]
    scorer = _scorer(
        model, rows, _as_candidates(flat, selection.candidates), selection, options, batch_size, null_scores
    )
    removed, induced, _ = scorer.measures
    measured = []
    for measure, null_of in ((removed, (SHUFFLED, RANDOM)), (induced, (SHUFFLED, RANDOM, EQUAL_KL))):
        at = {k: (direction.layer, -1 - k) for k, (null, _) in enumerate(kinds) if not null or null in null_of}
        scorer.compute(measure, at.values())
        measured += [(measure, *kinds[k], scorer.scores[(*one, measure)]) for k, one in at.items()]
    values = pd.DataFrame(measured, columns=["measure", "null", "number", "value"])
    labels = {name: selection.measures[name] for name in (removed, induced)}
    if isinstance(options, CosmicOptions):
        total = values.pivot(index=["null", "number"], columns="measure", values="value").dropna().sum(axis=1)
        values = pd.concat([values, total.rename("value").reset_index().assign(measure="score")[values.columns]])
        labels["score"] = selection.measures["score"]
    return _null(values, direction, (len(rows[0]), len(rows[1])), labels)


def _halved(prompts: ContrastSet, split: Split, n: int) -> tuple[Halves, Halves]:
    """The positive and the negative prompts of the first halves, and of the second ones."""
    halves: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for number, texts in enumerate(prompts.sides(split, n)):
        if len(texts) < (least := 4 if split == "train" else 2):
            raise CosmicError(
                f"n_{split}: the null halves the prompts, and there are {len(texts)} on a side; take at least {least}"
            )
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(number)).tolist()
        some = [texts[i] for i in order]
        halves.append((tuple(some[: len(some) // 2]), tuple(some[len(some) // 2 :])))
    return (halves[0][0], halves[1][0]), (halves[0][1], halves[1][1])


def _placed(null: Direction, like: Direction) -> Direction:
    """The direction with a reference that lies as the real one's does, half a length before the mean of both classes.

    With the real reference itself, removal and induction would aim at no and at a whole length from that mean, and not at half a
    length either way: induction would do worse for that reason alone.
    """
    if like.reference is None:
        return null
    return replace(null, reference=like.reference + (like.vector - null.vector) / 2)


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
        reached = int((there >= here - ROUNDING).sum())
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
) -> Scorer:
    if isinstance(options, CosmicOptions):
        layers, centre = selection.evaluation_layers, selection.centre
        return CosmicScorer(model, *rows, candidates, layers, options, batch_size, scores, centre=centre)
    assert selection.tokens is not None
    return RefusalTokenScorer(model, *rows, candidates, options, selection.tokens.ids, batch_size, scores)


def _shuffled(streams: Sequence[Float64[Tensor, "prompt d_model"]], like: Direction, n: int) -> dict[int, Direction]:
    """Differences in means with shuffled labels, with the direction's norm."""
    splits = random_splits([len(stream) for stream in streams], range(n))
    found = {}
    for seed in range(n):
        halves = [split[seed] @ stream for split, stream in zip(splits, streams, strict=True)]
        vector = (halves[0] + halves[1]) / 2
        if (length := float(vector.norm())) > 1e-6 * like.norm:
            found[seed] = _placed(replace(like, vector=(vector * like.norm / length).float(), method=SHUFFLED), like)
    return found


def _stream_at(
    model: TransformerBridge, rows: Sequence[Sequence[int]], layer: int, position: int, batch_size: int | None
) -> Float64[Tensor, "prompt d_model"]:
    """The stream that enters a layer, at a position."""
    site: tuple[int, Site] = (layer, "hook_resid_pre")
    found: dict[int, Tensor] = {}
    for batch in batches(model, rows, batch_size):
        stream = forward(model, batch, [site], n_positions=-position).activations[site]
        found.update(zip(batch.rows, stream[:, 0].cpu().double(), strict=True))
    return torch.stack([found[row] for row in range(len(rows))])
