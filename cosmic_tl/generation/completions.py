"""Batched completions, with or without interventions."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.spreading import Piece
from cosmic_tl.errors import CosmicError
from cosmic_tl.generation.sampling import Sampling, generation_config, only, random_state_kept
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.batching import BATCH_SIZE, batches
from cosmic_tl.model.chat import THINKING_TAGS, ChatFormat, opened_block, tokenize
from cosmic_tl.model.copies import copies_of
from cosmic_tl.model.forward import tiny_batch
from cosmic_tl.model.hooks import probed
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.matmul import fast_linear
from cosmic_tl.model.shortcuts import out_of_memory

MOST_ANSWERS = 128
"""Largest default number of answers that are written at once. A step takes little longer for more of them; but all go on
until the longest ends."""
ANSWER_TOKENS = 16_384
"""Tokens of prompts and answers above which the default batches are smaller, for the key-value cache's sake."""


@checked
def complete(
    model: TransformerBridge,
    prompts: Sequence[str],
    interventions: Interventions = (),
    *,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    label: str = "completions",
    sampling: Sampling | None = None,
) -> list[str]:
    """The model's answers, in the order of the prompts.

    Generates with the underlying Hugging Face model and its key-value cache; the hooks act at every step. Of the
    checkpoint's `generation_config` only the end and padding tokens are used, and no repetition penalty, top-k or
    top-p. If the prompt leaves a thinking block open, the answer begins with its tag, so that the thinking can be
    recognised; an answer that is cut off inside the block consists of thinking only (`strip_thinking`).

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions.
        interventions: Edits to apply. Defaults to none.
        chat: Formatting. Defaults to the plain chat template.
        max_new_tokens: Maximum number of new tokens per answer. Default 64.
        temperature: 0 (default) is greedy. Above 0, samples with a separate random state, seeded by `seed`.
        seed: Seed for sampling. Default 0.
        batch_size: Prompts per batch. Default: by memory, at most 128.
        label: Name on the progress bar.
        sampling: Top-k, top-p and repetition penalty. Defaults to none of them.

    Raises:
        CosmicError: If a number is out of range, or a prompt or an intervention does not fit.

    Example:
        >>> from cosmic_tl import load_model
        >>> complete(load_model("demo", device="cpu"), ["hello"])
        ['Hello! What would you like to do today?']
    """
    return answers_to(
        model,
        tokenize(model, prompts, chat, max_new_tokens),
        interventions,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        label=label,
        sampling=sampling,
    )


def answers_to(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    interventions: Interventions = (),
    *,
    chat: ChatFormat | None = None,
    **settings: Any,
) -> list[str]:
    """As `complete`, for prompts that are tokens already.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        rows: Token ids from `tokenize`, with room for the answer.
        interventions: Edits to apply. Defaults to none.
        chat: The formatting that the rows were made with. Defaults to the plain chat template.
        **settings: As `complete` takes them.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> answers_to(model, tokenize(model, ["hello"]))
        ['Hello! What would you like to do today?']
    """
    opened = opened_block(model, chat)
    return [opened + text for text in answer_texts(model, new_tokens(model, rows, interventions, **settings))]


def new_tokens(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    interventions: Interventions = (),
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    label: str = "completions",
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """The tokens that the model writes after each row of tokens, with the one that ends its answer.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        rows: Token ids from `tokenize`, with room for the answer.
        interventions: Edits to apply. Defaults to none.
        max_new_tokens: Maximum number of new tokens per row. Default 64.
        temperature: 0 (default) is greedy.
        seed: Seed for sampling. Default 0.
        batch_size: Rows per batch. Default: by memory, at most 128.
        label: Name on the progress bar.
        sampling: Top-k, top-p and repetition penalty. Defaults to none of them.

    Raises:
        CosmicError: As `complete`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [len(row) for row in new_tokens(model, tokenize(model, ["hello"]), max_new_tokens=4)]
        [4]
    """
    config = generation_config(model, max_new_tokens, temperature, sampling)
    some = answer_batches(model, rows, max_new_tokens, batch_size, seed)
    found: list[list[int]] = [[] for _ in rows]
    with random_state_kept(), track(len(rows), label) as advance:
        check_cache(model)
        written: Iterable[tuple[int, list[list[int]]]]
        if (copies := copies_of(model)) is None or len(some) < 2:
            written = enumerate(_batch_tokens(model, rows, interventions, config, *batch) for batch in some)
        else:
            pieces = [Piece(f"{label}, batch {number} of {len(some)}", batch) for number, batch in enumerate(some, 1)]
            written = copies.map("completions", _batch_tokens, (rows, interventions, config), pieces)
        for number, answers in written:
            for row, answer in zip(some[number][0], answers, strict=True):
                found[row] = answer
            advance(len(answers))
    return found


def answer_batches(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[tuple[tuple[int, ...], int]]:
    """Which rows are answered at once, and the seed for sampling them.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        rows: Token ids from `tokenize`.
        max_new_tokens: Maximum number of new tokens per row.
        batch_size: Rows per batch. Default: by memory, at most 128.
        seed: Of the first batch. Others have seeds of their own, so that answers do not depend on who samples which batch.

    Returns:
        Per batch the numbers of its rows, and its seed.

    Example:
        >>> from cosmic_tl import load_model
        >>> batches = answer_batches(load_model("demo", device="cpu"), [[5, 6, 7], [8], [9]], 4, batch_size=2)
        >>> [rows for rows, seed in batches]
        [(1, 2), (0,)]
    """
    longest = max(map(len, rows), default=0) + max_new_tokens
    most = min(MOST_ANSWERS, max(BATCH_SIZE, ANSWER_TOKENS // longest))
    return [
        (batch.rows, _seed(seed, number)) for number, batch in enumerate(batches(model, rows, batch_size, most=most))
    ]


def _seed(seed: int, number: int) -> int:
    """Of one batch of several."""
    return Random(f"{seed} {number}").getrandbits(32) if number else seed


def _batch_tokens(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    interventions: Interventions,
    config: GenerationConfig,
    numbers: Sequence[int],
    seed: int,
) -> list[list[int]]:
    """The tokens written after the rows of one batch; if memory runs out, after half of them at a time."""
    try:
        return _written(model, [rows[i] for i in numbers], interventions, config, seed)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(numbers) == 1:
            raise CosmicError("memory: not enough for one answer; use a shorter prompt or fewer new tokens") from error
    torch.cuda.empty_cache()  # after the handler, which still held the failed pass's tensors
    middle = len(numbers) // 2
    return [
        answer
        for number, half in enumerate((numbers[:middle], numbers[middle:]))
        for answer in _batch_tokens(model, rows, interventions, config, half, _seed(seed, number))
    ]


def _written(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    interventions: Interventions,
    config: GenerationConfig,
    seed: int,
) -> list[list[int]]:
    (batch,) = batches(model, rows, len(rows))
    prompt_length, ends = batch.ids.shape[1], set(config.eos_token_id or ())
    torch.manual_seed(seed)
    with (
        torch.inference_mode(),
        fast_linear(),
        steering(model, interventions, prompt_length=prompt_length),
        only(model, config),
    ):
        tokens = model.original_model.generate(batch.ids, attention_mask=batch.mask, generation_config=config)
    answers = tokens[:, prompt_length:].tolist()
    # What follows the end is padding.
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row)) + 1] for row in answers]


def answer_texts(model: TransformerBridge, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text, without special tokens other than thinking tags.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> answer_texts(model, new_tokens(model, tokenize(model, ["hello"])))
        ['Hello! What would you like to do today?']
    """
    tokenizer: Any = model.tokenizer
    # Thinking tags are special tokens of some tokenizers, and are kept.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    special -= {i for tag, i in tokenizer.get_added_vocab().items() if tag in sum(THINKING_TAGS, ())}
    answers = [[token for token in row if token not in special] for row in tokens]
    return [text.strip() for text in tokenizer.batch_decode(answers)]


def check_cache(model: TransformerBridge) -> None:
    """Check that the key-value cache changes no logits. With a transformers that hands its cache on under another name than
    TransformerLens expects (5.24 does), every token after the first is written without the context.

    Raises:
        CosmicError: If it does.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_cache(load_model("demo", device="cpu"))
    """

    def probe() -> bool:
        batch, found = tiny_batch(model), []
        for cached in (True, False):
            config = generation_config(model, 2)
            config.update(eos_token_id=None, use_cache=cached, output_logits=True, return_dict_in_generate=True)
            with torch.inference_mode(), only(model, config):
                out = model.original_model.generate(batch.ids, attention_mask=batch.mask, generation_config=config)
            found.append(out.logits[-1].float())
            if found[-1].isnan().any():
                raise CosmicError("model: its logits are not numbers; its weights are damaged: load them again")
        # Half precision may send a token to other experts.
        tolerance = 1e-2 if model.cfg.dtype in (torch.float32, torch.float64) else 0.5
        spread = (found[1] - found[1].mean()).norm()
        return not bool((found[0] - found[1]).norm() > tolerance * spread)

    if not probed(model, "cache", probe):
        raise CosmicError(
            "model: its answers with a key-value cache differ from those without, so they would be wrong; transformers "
            f"{version('transformers')} and TransformerLens {version('transformer_lens')} may not fit together: "
            "try 'transformers<5.24'"
        )
