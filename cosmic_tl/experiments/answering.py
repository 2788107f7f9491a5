"""What the model writes under several conditions, batch by batch; copies of the model share the batches if there are any."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cosmic_tl._util.progress import track
from cosmic_tl._util.spreading import Piece
from cosmic_tl.data.contrast_set import Side
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.generation.completions import answer_batches, answers_to
from cosmic_tl.metrics.fluency import MEASURES, fluency_of
from cosmic_tl.model.copies import copies_of
from cosmic_tl.model.load import TransformerBridge

Rows = Mapping[Side, Sequence[Sequence[int]]]
"""Token ids of the prompts of each side."""
Part = tuple[Sequence[int], Mapping[str, Tensor]]
"""Numbers of the prompts of a batch, and what `_answers` makes of them."""


def written(
    model: TransformerBridge,
    conditions: Sequence[Condition],
    rows: Rows,
    settings: Mapping[str, Any],
    how: Mapping[str, Any],
) -> Iterator[tuple[Condition, list[str], pd.DataFrame]]:
    """What the model writes under each condition, as soon as that is complete.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        conditions: The conditions, each with another side, name or seed.
        rows: Token ids from `tokenize`, with room for the answer.
        settings: max_new_tokens, seed, and what else `complete` takes.
        how: chat and batch_size.

    Yields:
        A condition, one completion per prompt, and their fluency (`measure_fluency`).

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> rows = {"positive": tokenize(model, ["hello"])}
        >>> settings, how = {"max_new_tokens": 16, "seed": 0}, {"chat": None, "batch_size": None}
        >>> [texts for _, texts, _ in written(model, [Condition("baseline", "positive", ())], rows, settings, how)]
        [['Hello! What would you like to do today?']]
    """
    some = {
        side: answer_batches(model, asked, settings["max_new_tokens"], how["batch_size"], settings["seed"])
        for side, asked in rows.items()
    }
    pieces = [
        piece for condition in conditions for piece in _pieces(condition, rows[condition.side], some[condition.side])
    ]
    parts: dict[str, list[Part]] = {}
    with track(sum(len(piece.args[1]) for piece in pieces), "completions") as advance:
        made: Iterable[tuple[int, dict[str, Tensor]]]
        if (copies := copies_of(model)) is None or len(pieces) < 2:
            made = enumerate(_answers(model, rows, settings, how, *piece.args) for piece in pieces)
        else:
            made = copies.map("completions", _answers, (rows, settings, how), pieces)
        for at, answers in made:
            condition, numbers, _ = pieces[at].args
            mine = parts.setdefault(condition.label, [])
            mine.append((numbers, answers))
            if len(mine) == len(some[condition.side]):
                yield condition, *_in_order(parts.pop(condition.label))
            advance(len(numbers))


def _pieces(
    condition: Condition, rows: Sequence[Sequence[int]], some: Sequence[tuple[Sequence[int], int]]
) -> Iterator[Piece]:
    """The answers under one condition, batch by batch. Within a run, whose settings are fixed, the keys tell them from others."""
    for number, (numbers, seed) in enumerate(some, 1):
        name = f"{condition.label}, batch {number} of {len(some)}" if len(some) > 1 else condition.label
        key = [condition.label, seed, list(numbers), [list(rows[i]) for i in numbers]]
        yield Piece(name, (condition, numbers, seed), key)


def _answers(
    model: TransformerBridge,
    rows: Rows,
    settings: Mapping[str, Any],
    how: Mapping[str, Any],
    condition: Condition,
    numbers: Sequence[int],
    seed: int,
) -> dict[str, Tensor]:
    """What the model writes after the prompts of one batch, as the bytes of a JSON list, and how fluent it is."""
    asked = [rows[condition.side][i] for i in numbers]
    once = {**settings, **how, "seed": seed, "batch_size": len(asked)}
    texts = answers_to(model, asked, condition.interventions, label=condition.label, **once)
    fluency = fluency_of(model, asked, texts, **how)[list(MEASURES)]
    return {
        "texts": torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8),
        "fluency": torch.tensor(fluency.to_numpy(float)).contiguous(),
    }


def _in_order(parts: Sequence[Part]) -> tuple[list[str], pd.DataFrame]:
    """The batches of one condition as one, its prompts in their order."""
    frame = pd.DataFrame(
        torch.cat([some["fluency"] for _, some in parts]).numpy(),
        index=[number for numbers, _ in parts for number in numbers],
        columns=MEASURES,
    )
    frame["text"] = [text for _, some in parts for text in json.loads(bytes(some["texts"].tolist()))]
    frame = frame.sort_index()
    return frame.pop("text").tolist(), frame
