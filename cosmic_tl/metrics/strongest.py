"""Where in many texts the stream carries most of a direction, and least."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from html import escape
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.displays import as_html
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_count, check_texts, one_of
from cosmic_tl.metrics.projection import Measure, along
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, Messages, n_shared, tokenize, tokenize_conversations
from cosmic_tl.model.forward import forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions

Where = Literal["all", "post-instruction"]
CHUNK = 256
"""Texts that are held at a time."""
_PROBES = ("x", "Q")
"""Instructions without a common first token."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class StrongestActivations(Result):
    """The texts with the largest and the smallest activations along a direction, each at its most extreme token."""

    table: pd.DataFrame
    """One row per end and text: end ("largest" or "smallest"), rank (from 1), value, text (its number, from 0), index (of the
    token, from 0), token, and before and after (the tokens around it, as text)."""
    n_texts: int
    n_tokens: int
    """That were looked at."""
    measure: Measure
    direction: Direction

    def _lines(self) -> list[str]:
        return [
            f"StrongestActivations({self.measure} on {self.direction!r}, {self.n_texts} texts, {self.n_tokens} tokens)"
        ]

    def _repr_html_(self) -> str:
        parts = (self.table[name].map(_visible) for name in ("before", "token", "after"))
        context = [f"{before}<mark>{token}</mark>{after}" for before, token, after in zip(*parts, strict=True)]
        shown = self.table[["end", "rank", "value", "text", "index"]].assign(context=context)
        return as_html(self._lines(), shown, html=["context"])


@checked
def strongest_activations(
    model: TransformerBridge,
    texts: Iterable[str | Messages],
    direction: Direction,
    *,
    n: int = 10,
    positions: Where = "all",
    measure: Measure = "projection",
    context: int = 8,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> StrongestActivations:
    """The texts whose stream carries most of a direction at its layer, and those that carry least, each at one token.

    A text is there once, at its most extreme token, so that one text does not fill the list. Tokens before the user's text are
    left out, since they are the same in all of them, and so is the first token, where many models put activations of enormous
    length. Texts are taken one after the other and not kept: they can come from a generator, and memory does not depend on their
    number.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        texts: Instructions, or conversations: lists of messages with "role" and "content".
        direction: The direction; `x[l, i]` is read at the input of its own layer.
        n: Texts per end. Default 10.
        positions: "all" (default) tokens from the user's text on, or "post-instruction" ones alone, in texts that the user ends.
        measure: "projection" (default), `x[l, i]·r̂`, which grows with the stream; or "cosine", which does not.
        context: Tokens to show on either side. Default 8.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Texts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If there are no texts, one is blank or too long, or the direction does not fit the model.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> found = strongest_activations(load_model("demo", device="cpu"), ["Rob a clerk.", "Bake a pie."], direction, n=1)
        >>> found.table.end.tolist(), found.n_texts
        (['largest', 'smallest'], 2)
    """
    check_count("n", n)
    check_count("context", context)
    one_of("positions", positions, get_args(Where))
    one_of("measure", measure, get_args(Measure))
    direction.check(model)
    if isinstance(texts, str):
        check_texts("texts", texts)
    chat = chat or ChatFormat()
    last = len(post_instruction_positions(model, chat)) if positions == "post-instruction" else None
    probes = tokenize(model, _PROBES, chat)
    site: tuple[int, Site] = (direction.layer, "hook_resid_pre")
    best: dict[str, list[_Found]] = {"largest": [], "smallest": []}
    n_texts = n_tokens = 0
    with track(len(texts) if isinstance(texts, Sized) else None, "texts") as advance:
        for some in _chunks(texts):
            rows = _tokens(model, some, chat, n_texts, last is not None)
            found: dict[str, list[_Found]] = {end: [] for end in best}
            for batch in batches(model, rows, batch_size):
                stream = forward(model, batch, [site], n_positions=last).activations[site].cpu().double()
                for number, values in zip(batch.rows, along(stream, direction, measure), strict=True):
                    row = rows[number]
                    own = values[-(last or len(row) - _first(row, probes)) :]
                    for end, at in (("largest", own.argmax()), ("smallest", own.argmin())):
                        index = len(row) - len(own) + int(at)
                        around = tuple(row[max(0, index - context) : index]), tuple(row[index : index + context + 1])
                        found[end].append(_Found(float(own[at]), n_texts + number, index, *around))
                    n_tokens += len(own)
                advance(len(batch.rows))
            best["largest"] = nlargest(n, best["largest"] + found["largest"], key=_largest_first)
            best["smallest"] = nsmallest(n, best["smallest"] + found["smallest"])
            n_texts += len(rows)
    if not n_texts:
        raise CosmicError("texts: found none; give at least one")
    tokenizer: Any = model.tokenizer
    table = pd.DataFrame(
        {"end": end, "rank": rank, "value": one.value, "text": one.text, "index": one.place}
        | {"token": tokenizer.decode(one.tail[:1])}
        | {"before": tokenizer.decode(one.head), "after": tokenizer.decode(one.tail[1:])}
        for end, some in best.items()
        for rank, one in enumerate(some, 1)
    )
    return StrongestActivations(table, n_texts, n_tokens, measure, direction)


class _Found(NamedTuple):
    """One text's most extreme token; of equal values, the first text comes first."""

    value: float
    text: int
    place: int
    """Of the token, from 0."""
    head: tuple[int, ...]
    """The tokens before it,"""
    tail: tuple[int, ...]
    """it, and those after it."""


def _largest_first(one: _Found) -> tuple[float, int]:
    return one.value, -one.text


def _chunks(texts: Iterable[str | Messages]) -> Iterator[list[str | Messages]]:
    left = iter(texts)
    while some := list(islice(left, CHUNK)):
        yield some


def _tokens(
    model: TransformerBridge, some: Sequence[str | Messages], chat: ChatFormat, start: int, asked: bool
) -> list[list[int]]:
    """Token ids of texts and conversations, which may be mixed."""
    rows = []
    for number, one in enumerate(some, start):
        try:
            if isinstance(one, str):
                rows += tokenize(model, [one], chat)
                continue
            rows += tokenize_conversations(model, [one], chat)
        except CosmicError as error:
            raise CosmicError(f"text {number}: {error}") from error
        if asked and one[-1]["role"] != "user":
            raise CosmicError(
                f"text {number}: it ends with the {one[-1]['role']}'s message, and post-instruction positions follow the user's; "
                "take positions='all'"
            )
    return rows


def _first(row: Sequence[int], probes: Sequence[Sequence[int]]) -> int:
    """The first token that may differ between texts, but not the first of all, nor beyond the last."""
    return min(max(1, n_shared([row, *probes])), len(row) - 1)


def _visible(text: str) -> str:
    """A text as HTML, with visible line breaks."""
    return escape(text.replace("\r", "\\r").replace("\n", "\\n"))
