"""Garbled completions, found by comparison with the unsteered model's own completions.

Two measures of each completion, both without a judge:

* **late nats**: mean negative log-likelihood per token under the unsteered model, *after the first eight tokens*. The
  first tokens decide whether to refuse, and steering changes exactly that, so a refusal of a harmless prompt is
  improbable there however fluent it is. Garbled text stays improbable.
* **repetition**: the share of 4-grams of tokens that occurred before in the same completion. A language model finds
  loops probable, but they repeat.

A completion is garbled if either lies above the range of the model's own completions of the same prompts. The range ends three
interquartile ranges above the upper quartile (Tukey's "far out"), and at least `MARGIN` above it, so that neither a garbled
baseline completion nor a very uniform baseline decides. A refusal of a negative prompt is also compared with the
model's own refusals *forced after the negative prompts*, and the wider range of nats applies.

A completion with fewer than `SKIPPED + LEAST` tokens is judged by its repetition alone. One that `max_new_tokens` cuts off is
judged like any other: its end is not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import inf, isnan, nan

import pandas as pd

from cosmic_tl.errors import check_completions
from cosmic_tl.metrics.likelihood import continuation_token_nats, tokenize_completions
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge

SKIPPED = 8
"""Number of first tokens that are ignored for nats."""
LEAST = 4
"""Minimum number of tokens after them for a meaningful mean."""
NGRAM = 4
MEASURES = ("cross_entropy", "late_nats", "repetition")
"""Columns of `measure_fluency`."""
MARGIN = {"late_nats": 1.0, "repetition": 0.2}
"""A completion that exceeds the baseline's upper quartile by no more than this is never garbled."""


def repetition(tokens: Sequence[object]) -> float:
    """Share of 4-grams that occurred before; 0 for fewer than five tokens.

    Example:
        >>> repetition("a b c d e f".split()), repetition("no no no no no no no".split())
        (0.0, 0.75)
    """
    grams = list(zip(*(tokens[i:] for i in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def late_nats(nats: Sequence[float]) -> float:
    """Mean nats per token after the first eight; NaN for fewer than twelve tokens.

    Example:
        >>> late_nats([9.0] * 8 + [1.0] * 4), late_nats([1.0] * 8)
        (1.0, nan)
    """
    rest = nats[SKIPPED:]
    return sum(rest) / len(rest) if len(rest) >= LEAST else nan


def measure_fluency(
    model: TransformerBridge,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Both measures, and the mean over all tokens, in one pass of the unsteered model.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions.
        completions: One per prompt.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        One row per completion: cross_entropy and late_nats (nats per token; NaN if undefined), repetition (0 to 1).

    Raises:
        CosmicError: If the two lists differ in length, or a prompt with its completion exceeds the model's context.

    Example:
        >>> from cosmic_tl import load_model
        >>> texts = ["Hello! What would you like to do today?", "the the the the the the the"]
        >>> measure_fluency(load_model("demo", device="cpu"), ["hello"] * 2, texts).repetition.gt(0.3).tolist()
        [False, True]
    """
    check_completions(prompts, completions)
    return fluency_of(model, tokenize(model, prompts, chat), completions, chat=chat, batch_size=batch_size)


def fluency_of(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    completions: Sequence[str],
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """As `measure_fluency`, for prompts that are tokens already.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        rows: Token ids of the prompts, from `tokenize`.
        completions: One per prompt.
        chat: The formatting that the rows were made with. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> fluency_of(model, tokenize(model, ["hello"]), ["the " * 20]).repetition.gt(0.7).tolist()
        [True]
    """
    # Half a character at the end comes from max_new_tokens, not from the model.
    whole = [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in completions]
    tails = tokenize_completions(model, whole, chat)
    kept = [i for i, tail in enumerate(tails) if tail]
    found: list[list[float]] = [[] for _ in tails]
    scored = continuation_token_nats(
        model, [rows[i] for i in kept], [tails[i] for i in kept], (), batch_size=batch_size
    )
    for i, nats in zip(kept, scored, strict=True):
        found[i] = nats
    measured = (
        [sum(nats) / len(nats) if nats else nan for nats in found],
        [late_nats(nats) for nats in found],
        [repetition(tail) for tail in tails],
    )
    return pd.DataFrame(dict(zip(MEASURES, measured, strict=True)))


@dataclass(frozen=True)
class FluencyRange:
    """Upper limits of fluent completions, inclusive."""

    late_nats: float
    """Infinite if the baseline's completions are too short to tell."""
    repetition: float

    def garbled(self, measured: pd.DataFrame) -> "pd.Series[bool]":
        """Which completions lie above the limits; those too short for nats are judged by repetition only.

        Args:
            measured: Columns late_nats and repetition.

        Example:
            >>> measured = pd.DataFrame({"late_nats": [0.5, 6.0, None], "repetition": [0.0, 0.0, 0.9]})
            >>> FluencyRange(1.5, 0.3).garbled(measured).tolist()
            [False, True, True]
        """
        nats, share = measured.late_nats.astype(float), measured.repetition.astype(float)
        return (nats > self.late_nats) | (share > self.repetition)


def fluency_range(measured: pd.DataFrame) -> FluencyRange:
    """The range of a model's own completions: upper quartile + the larger of three interquartile ranges and `MARGIN`.

    Args:
        measured: Columns late_nats and repetition, one row per completion without steering.

    Example:
        >>> fluency_range(pd.DataFrame({"late_nats": [0.4, 0.5, 0.5, 0.6], "repetition": [0.0] * 4}))
        FluencyRange(late_nats=1.525, repetition=0.2)
    """

    def end(name: str) -> float:
        low, high = measured[name].astype(float).quantile([0.25, 0.75])
        return inf if isnan(high) else float(high + max(3 * (high - low), MARGIN[name]))

    return FluencyRange(end("late_nats"), end("repetition"))


def mark_garbled(
    model: TransformerBridge,
    completions: pd.DataFrame,
    baseline: "pd.Series[bool]",
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> "pd.Series[bool]":
    """Which completions are garbled, by the range of those without steering.

    Args:
        model: A `TransformerBridge` with a tokenizer, unsteered.
        completions: One row per completion: side (harmful, harmless), prompt, completion, verdict, late_nats, repetition.
        baseline: Which rows are completions without steering; at least one.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        One value per row, with the rows' index.

    Example:
        >>> from cosmic_tl import load_model
        >>> model, texts = load_model("demo", device="cpu"), ["Hello! What would you like to do today?", "to " * 20]
        >>> rows = measure_fluency(model, ["hello"] * 2, texts).assign(side="negative", prompt="hello")
        >>> rows = rows.assign(completion=texts, verdict="compliance")
        >>> mark_garbled(model, rows, pd.Series([True, False])).tolist()
        [False, True]
    """
    own = completions[baseline]
    plain = fluency_range(own)
    found = plain.garbled(completions)
    # The rest is only needed if a refusal looks improbable.
    induced = ~baseline & (completions.side == "negative") & (completions.verdict == "refusal")
    refusals = own[(own.side == "positive") & (own.verdict == "refusal") & ~found[baseline]].completion.tolist()
    if refusals and (induced & found).any():
        asked = completions[induced].prompt.drop_duplicates().tolist()
        forced = measure_fluency(
            model, asked, list(islice(cycle(refusals), len(asked))), chat=chat, batch_size=batch_size
        )
        wider = FluencyRange(max(plain.late_nats, fluency_range(forced).late_nats), plain.repetition)
        found = found.where(~induced, wider.garbled(completions))
    return found


def garbled_share(completions: pd.DataFrame) -> float:
    """Share of garbled rows; NaN if all are too short to tell and none is repetitive.

    Args:
        completions: Column garbled, and late_nats if it was measured.

    Example:
        >>> garbled_share(pd.DataFrame({"garbled": [True, False], "late_nats": [5.0, 0.5]}))
        0.5
    """
    short = "late_nats" in completions and completions.late_nats.isna().all()
    untold = short and not completions.garbled.any()
    return nan if untold else float(completions.garbled.mean())
