"""The likelihood of given continuations: the only place that scores text."""

from collections.abc import Iterator, Sequence
from math import nan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.errors import CosmicError, check_completions
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, opened_block, tokenize
from cosmic_tl.model.forward import TokenBatch, last_logits
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.matmul import fast_linear


def continuation_logits(
    model: TransformerBridge,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    interventions: Interventions = (),
    *,
    batch_size: int | None = None,
    plain_text: bool = False,
    at_once: int = 1,
    label: str = "likelihoods",
) -> Iterator[tuple[int, Float[Tensor, "token vocab"]]]:
    """The logits that predict each token of each continuation, in float32; one row at a time, short rows first.

    In a batch all prompts end at the same place: they are padded on the left and the continuations on the right, so that
    token scopes hold for every row. Logits are computed at the continuations' positions only.

    Args:
        model: A `TransformerBridge`.
        prompts: Token ids before the continuation, at least one per row.
        continuations: Token ids to predict, at least one per row.
        interventions: Edits to apply. Defaults to none. For token scopes, a continuation is completion.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        plain_text: Whether continuations count as prompt for token scopes, as in plain text, which has no completion.
        at_once: How many such iterators are gone through side by side, and share the memory for logits. Default 1.
        label: Name on the progress bar.

    Yields:
        A row's index, and its logits on the model's device.

    Raises:
        CosmicError: If a row is empty or exceeds the model's context, or as `steering`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [(row, logits.shape) for row, logits in continuation_logits(model, [[5], [6]], [[7, 8], [9]])]
        [(1, torch.Size([1, 2048])), (0, torch.Size([2, 2048]))]
    """
    with track(len(prompts), label) as advance:
        for rows, batch, n_tail, prompt_length in continuation_batches(
            model, prompts, continuations, batch_size, at_once=at_once
        ):
            length = None if plain_text else prompt_length
            with torch.inference_mode(), fast_linear(), steering(model, interventions, prompt_length=length):
                logits = last_logits(model, batch, n_tail)
            for row, scores in zip(rows, logits, strict=True):
                yield row, scores[: len(continuations[row])].float()
            advance(len(rows))


def continuation_batches(
    model: TransformerBridge,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    batch_size: int | None = None,
    *,
    at_once: int = 1,
) -> Iterator[tuple[list[int], TokenBatch, int, int]]:
    """Prompts with their continuations, padded on the left and on the right; short rows first.

    Args:
        model: A `TransformerBridge`.
        prompts: Token ids before the continuation, at least one per row.
        continuations: Token ids to predict, at least one per row.
        batch_size: Rows per batch. Default: by memory, at most 32.
        at_once: As in `continuation_logits`.

    Yields:
        Indices of the rows; their tokens, without the last one of each continuation; at how many last positions the logits
        predict a continuation; and the length of the prompts with their padding.

    Raises:
        CosmicError: If a row is empty or exceeds the model's context.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [(rows, batch.ids.tolist(), n) for rows, batch, n, _ in continuation_batches(model, [[5, 6]], [[7, 8]])]
        [([0], [[5, 6, 7]], 2)]
    """
    if len(prompts) != len(continuations):
        raise CosmicError(f"continuations: found {len(continuations)} for {len(prompts)} prompts; give one per prompt")
    limit = int(model.cfg.n_ctx)
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not prompt or not continuation:
            raise CosmicError(
                f"continuations: row {i} has nothing to predict, or nothing to predict it from; remove it"
            )
        if (length := len(prompt) + len(continuation) - 1) > limit:
            raise CosmicError(
                f"continuations: row {i} takes {length} tokens with its prompt and the model's context holds {limit}; "
                "shorten it"
            )
    if not prompts:  # every completion may be empty
        return
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), len(continuations[i])))
    n_logits = at_once * max(map(len, continuations))
    for batch in batches(model, [prompts[i] for i in order], batch_size, n_logits=n_logits):
        rows = [order[row] for row in batch.rows]
        tails = [torch.tensor(continuations[row][:-1], dtype=torch.long) for row in rows]
        tail = pad_sequence(tails, batch_first=True).to(batch.ids.device)
        real = pad_sequence([torch.ones_like(one) for one in tails], batch_first=True).to(batch.mask)
        ids, mask = torch.cat([batch.ids, tail], dim=1), torch.cat([batch.mask, real], dim=1)
        yield rows, TokenBatch(ids, mask, batch.rows), tail.shape[1] + 1, batch.ids.shape[1]


def continuation_token_nats(
    model: TransformerBridge,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    interventions: Interventions = (),
    *,
    batch_size: int | None = None,
    plain_text: bool = False,
    label: str = "cross-entropy",
) -> list[list[float]]:
    """`−log p` of each continuation's tokens, in nats, in the order of the rows.

    Args:
        model: A `TransformerBridge`.
        prompts: Token ids before the continuation, at least one per row.
        continuations: Token ids to predict, at least one per row.
        interventions: Edits to apply. Defaults to none.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        plain_text: As in `continuation_logits`.
        label: Name on the progress bar.

    Raises:
        CosmicError: As `continuation_logits`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [len(nats) for nats in continuation_token_nats(model, [[5], [6]], [[7, 8], [9]])]
        [2, 1]
    """
    found: list[list[float]] = [[] for _ in prompts]
    for row, logits in continuation_logits(
        model, prompts, continuations, interventions, batch_size=batch_size, plain_text=plain_text, label=label
    ):
        target = torch.tensor(continuations[row], device=logits.device)
        found[row] = cross_entropy(logits, target, reduction="none").tolist()
    return found


def tokenize_pairs(
    model: TransformerBridge, prompts: Sequence[str], completions: Sequence[str], chat: ChatFormat | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of formatted prompts and of their completions.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions.
        completions: One per prompt; an empty one has no tokens. The tag of a thinking block that the prompt has opened
            is not predicted again.
        chat: Formatting. Defaults to the plain chat template.

    Raises:
        CosmicError: If the two lists differ in length, or as `tokenize`.

    Example:
        >>> from cosmic_tl import load_model
        >>> prompts, answers = tokenize_pairs(load_model("demo", device="cpu"), ["hi"], ["Hello!"])
        >>> len(prompts[0]), len(answers[0])
        (9, 2)
    """
    check_completions(prompts, completions)
    return tokenize(model, prompts, chat), tokenize_completions(model, completions, chat)


def tokenize_completions(
    model: TransformerBridge, completions: Sequence[str], chat: ChatFormat | None = None
) -> list[list[int]]:
    """Token ids of completions, as `tokenize_pairs` gives them.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        completions: An empty one has no tokens.
        chat: The formatting of their prompts. Defaults to the plain chat template.

    Example:
        >>> from cosmic_tl import load_model
        >>> len(tokenize_completions(load_model("demo", device="cpu"), ["Hello!"])[0])
        2
    """
    tokenizer: Any = model.tokenizer
    opened = opened_block(model, chat)
    return [list(tokenizer(text.removeprefix(opened), add_special_tokens=False)["input_ids"]) for text in completions]


@checked
def completion_cross_entropy(
    model: TransformerBridge,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    interventions: Interventions = (),
) -> list[float]:
    """Mean per-token negative log-likelihood of each completion in nats, by default under the unsteered model.

    Higher for answers that the model would not give by itself, highest for garbled ones. NaN for an empty completion.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions.
        completions: One per prompt.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        interventions: Edits of the model that scores. Defaults to none.

    Raises:
        CosmicError: If the two lists differ in length, or a prompt with its completion exceeds the model's context.

    Example:
        >>> from cosmic_tl import complete, load_model
        >>> model = load_model("demo", device="cpu")
        >>> own, garbled = completion_cross_entropy(model, ["hello"] * 2, [*complete(model, ["hello"]), "to to to the"])
        >>> own < 0.5 < 5 < garbled
        True
    """
    heads, tails = tokenize_pairs(model, prompts, completions, chat)
    kept = [i for i, tail in enumerate(tails) if tail]
    nats = continuation_token_nats(
        model, [heads[i] for i in kept], [tails[i] for i in kept], interventions, batch_size=batch_size
    )
    found = [nan] * len(prompts)
    for i, each in zip(kept, nats, strict=True):
        found[i] = sum(each) / len(each)
    return found
