"""Cross-entropy of given texts under several models or edits: plain text in windows, and responses to prompts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.metrics.likelihood import continuation_token_nats, tokenize_pairs
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge

BASELINE = "baseline"
CONTEXT = 1024
"""Tokens of a window of plain text, at most."""
Subjects = Mapping[str, tuple[TransformerBridge, Interventions]]
"""What is compared, by name: a model, and edits that act in it. The first is `BASELINE`."""


def windows(tokens: Sequence[int], context: int, stride: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Cut a document into windows of `context` tokens, each predicting `stride` tokens from those before them.

    Every token but the first is predicted once: the first window predicts all but its first, each further one the next
    `stride`, from at least `context − stride` tokens.

    Yields:
        Tokens to read, and the tokens after them to predict.

    Example:
        >>> [(list(read), list(predicted)) for read, predicted in windows(range(7), context=4, stride=2)]
        [([0], [1, 2, 3]), ([2, 3], [4, 5]), ([3, 4, 5], [6])]
    """
    end = min(context, len(tokens))
    yield tokens[:1], tokens[1:end]
    while end < len(tokens):
        start, end = end, min(end + stride, len(tokens))
        yield tokens[end - context : start], tokens[start:end]


def text_frames(
    subjects: Subjects,
    texts: Sequence[str] | None,
    instructions: Sequence[tuple[str, str]] | None,
    *,
    chat: ChatFormat | None = None,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> list[pd.DataFrame]:
    """Cross-entropies of texts and of responses to instructions under several models or edits.

    Args:
        subjects: The baseline first; all share its tokenizer.
        texts: As for `measure_cost`.
        instructions: As for `measure_cost`.
        chat: Formatting of instructions. Defaults to the plain chat template.
        context: As for `measure_cost`.
        stride: As for `measure_cost`.
        batch_size: Rows per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: As `measure_cost`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> (frame,) = text_frames({BASELINE: (model, ()), "edited": (model, ())}, ["It is fine to rest."], None)
        >>> (frame.baseline == frame.edited).tolist()
        [True]
    """
    frames = []
    if texts is not None:
        frames.append(_texts(subjects, texts, context, stride, batch_size))
    if instructions is not None:
        asked, answers = [pair[0] for pair in instructions], [pair[1] for pair in instructions]
        if blank := [i for i, answer in enumerate(answers) if not answer.strip()]:
            raise CosmicError(f"instructions: response {blank[0]} is blank; remove the pair")
        frames.append(pair_frame(subjects, "instructions", asked, answers, chat, batch_size))
    return frames


def by_document(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames as one table, in which the windows of a text are one document.

    Example:
        >>> row = {"condition": ["edited"], "measure": "texts", "document": 0, "tokens": 2, "baseline": 2.0, "edited": 3.0}
        >>> by_document([pd.DataFrame(row)] * 2).tokens.tolist()
        [4]
    """
    rows = pd.concat(frames).groupby(["condition", "measure", "document"], sort=False)
    return rows.sum().reset_index()


def frame_of(
    measure: str,
    documents: Sequence[int],
    tokens: Sequence[int],
    baseline: Sequence[float],
    edited: Mapping[str, Sequence[float]],
) -> pd.DataFrame:
    """Rows of `Cost.documents` for one measure.

    Example:
        >>> frame_of("texts", [0], [2], [2.0], {"edited": [3.0]}).edited.tolist()
        [3.0]
    """
    columns = {"measure": measure, "document": documents, "tokens": tokens, "baseline": baseline}
    return pd.concat([pd.DataFrame({"condition": name, **columns, "edited": some}) for name, some in edited.items()])


def _cross_entropies(
    subjects: Subjects,
    measure: str,
    documents: Sequence[int],
    heads: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    batch_size: int | None,
    plain_text: bool = False,
) -> pd.DataFrame:
    nats = {}
    for name, (model, edit) in subjects.items():
        each = continuation_token_nats(
            model, heads, tails, edit, batch_size=batch_size, plain_text=plain_text, label=f"{measure}, {name}"
        )
        nats[name] = [sum(some) for some in each]
    return frame_of(measure, documents, [len(tail) for tail in tails], nats.pop(BASELINE), nats)


def _texts(
    subjects: Subjects,
    texts: Sequence[str],
    context: int | None,
    stride: int | None,
    batch_size: int | None,
) -> pd.DataFrame:
    model = subjects[BASELINE][0]
    limit = int(model.cfg.n_ctx)
    context = min(limit, CONTEXT) if context is None else context
    if not 2 <= context <= limit:
        raise CosmicError(f"context: found {context}; use 2 to {limit}, the model's context")
    stride = context // 2 if stride is None else stride
    if not 1 <= stride < context:
        raise CosmicError(f"stride: found {stride}; use 1 to {context - 1}, so that each window has tokens to read")
    tokenizer: Any = model.tokenizer
    documents, heads, tails = [], [], []
    for i, ids in enumerate(tokenizer(list(texts))["input_ids"]):
        if len(ids) < 2:
            raise CosmicError(f"texts: document {i} has nothing to predict; remove it")
        for head, tail in windows(ids, context, stride):
            documents.append(i)
            heads.append(head)
            tails.append(tail)
    return _cross_entropies(subjects, "texts", documents, heads, tails, batch_size, plain_text=True)


def pair_frame(
    subjects: Subjects,
    measure: str,
    asked: Sequence[str],
    answers: Sequence[str],
    chat: ChatFormat | None,
    batch_size: int | None,
) -> pd.DataFrame:
    """Cross-entropies of answers to formatted prompts.

    Args:
        subjects: As for `text_frames`.
        measure: Its name.
        asked: Prompts.
        answers: One per prompt, none of them empty.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows per forward pass. Default: by memory, at most 32.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> subjects = {BASELINE: (model, ()), "edited": (model, ())}
        >>> pair_frame(subjects, "instructions", ["hello"], ["Hello!"], None, None).tokens.tolist()
        [2]
    """
    heads, tails = tokenize_pairs(subjects[BASELINE][0], asked, answers, chat)
    return _cross_entropies(subjects, measure, range(len(tails)), heads, tails, batch_size)
