"""Instructions to tokens: chat templates, thinking blocks, post-instruction positions, left-padded batches.

Everything downstream reads the last positions, so prompts are padded on the left and the mask travels with the tokens.
"""

import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.errors import CosmicError, check_texts, one_of

BATCH_SIZE = 32
"""Prompts a forward pass, where no one says otherwise and nothing depends on the memory at hand."""
THINKING_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
"""Markers with which models open and close a thinking block."""
_PROBES = (
    "How to go",
    "alpha",
    "x\n",
    *(f"a {character}" for character in string.punctuation + string.ascii_letters + "7é中"),
)
"""User texts that end in different tokens, so that only the template's own tokens are common to all."""
_BASE_POSITIONS = 5
_answers_begin: WeakKeyDictionary[TransformerBridge, dict[tuple[str, str], bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ChatFormat:
    """How an instruction becomes a prompt."""

    system: str | None = None
    """System prompt. Where the template has no system role, it goes before the user's text."""
    prefix: str = ""
    """Text that the assistant's answer begins with."""
    thinking: Literal["close", "open"] = "close"
    """"close": a thinking block that the template or the model opens is closed at once, so that positions and
    judgements come after it. A model thinks if its template speaks of it, or if its own answer begins with a thinking tag; a
    tag in the vocabulary alone is none. "open": leave the template as it is."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as `enable_thinking`."""
    use_template: bool | None = None
    """False feeds instructions as they are; None uses the tokenizer's template where it has one."""

    def __post_init__(self) -> None:
        one_of("thinking", self.thinking, ("close", "open"))


@dataclass(frozen=True)
class Positions:
    """The last `len(labels)` token positions of every prompt, `-n … -1`."""

    labels: tuple[str, ...]
    """Each position's token as text (for a base model, whose last tokens differ, its index)."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def indices(self) -> tuple[int, ...]:
        """Positions counted from the end.

        Example:
            >>> Positions(("<|im_end|>", "assistant")).indices
            (-2, -1)
        """
        return tuple(range(-len(self.labels), 0))


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Left-padded prompts."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    """1 on real tokens, 0 on padding."""
    rows: tuple[int, ...]
    """Which of the prompts these are."""


def _message_text(model: TransformerBridge, chat: ChatFormat, user: str, merge_system: bool = False) -> str:
    """The template's rendering of one exchange up to where the answer begins."""
    tokenizer: Any = model.tokenizer
    options = dict(chat.template_options)
    if chat.thinking == "close" and "enable_thinking" in str(tokenizer.chat_template):
        options.setdefault("enable_thinking", False)
    messages = [{"role": "user", "content": user}]
    if chat.system is not None and merge_system:
        messages = [{"role": "user", "content": f"{chat.system}\n\n{user}"}]
    elif chat.system is not None:
        messages.insert(0, {"role": "system", "content": chat.system})
    rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return rendered


def uses_template(model: TransformerBridge, chat: ChatFormat) -> bool:
    """Whether prompts go through a chat template.

    Raises:
        CosmicError: If a template is asked for and the tokenizer has none.

    Example:
        >>> from cosmic_tl import load_model
        >>> uses_template(load_model("demo", device="cpu"), ChatFormat())
        True
    """
    if model.tokenizer is None:
        raise CosmicError("model: it has no tokenizer; boot it with tokenizer=…")
    has = bool(model.tokenizer.chat_template)
    if chat.use_template and not has:
        raise CosmicError("use_template: the tokenizer has no chat template; pass use_template=False or set one")
    if chat.system is not None and not (has and chat.use_template is not False):
        raise CosmicError("system: a model without a chat template takes no system prompt; leave it out")
    return has if chat.use_template is None else chat.use_template


@dataclass(frozen=True)
class _Rendering:
    """What has to be done to every prompt, found once on a probe."""

    merge_system: bool
    suffix: str
    notes: tuple[str, ...]
    opened: str
    """The tag of a thinking block that the prompt leaves open, or nothing."""


def _plan(model: TransformerBridge, chat: ChatFormat) -> _Rendering:
    notes: list[str] = []
    merge_system = False
    probe = "sphinx of black quartz"
    try:
        text = _message_text(model, chat, probe)
        merge_system = chat.system is not None and chat.system.strip() not in text
    except TemplateError as error:
        merge_system = chat.system is not None
        if not merge_system:
            raise CosmicError(
                f"chat template: it rejects a plain user message ({error}); set template_options or use_template=False"
            ) from error
    if merge_system:
        notes.append("The chat template takes no system prompt: it was put before the user's text.")
        text = _message_text(model, chat, probe, merge_system=True)
    after = text.rpartition(probe)[2]
    suffix = chat.prefix
    if chat.thinking == "close":
        template = str(model.tokenizer.chat_template)
        for opening, closing in THINKING_TAGS:
            if after.rfind(opening) > after.rfind(closing):
                suffix = ("" if after.endswith("\n") else "\n") + f"{closing}\n\n{chat.prefix}"
                notes.append(
                    f"The template opens a thinking block ({opening}): it was closed; positions come after it."
                )
            elif closing in after:
                notes.append(f"The template's thinking block ({opening}) is closed and empty; positions come after it.")
            elif opening in template or closing in template or _begins_with(model, text, opening):
                suffix = f"{opening}\n\n{closing}\n\n{chat.prefix}"
                notes.append(f"The model may think ({opening}): an empty, closed block was put before its answer.")
            else:
                continue
            break
    return _Rendering(merge_system, suffix, tuple(notes), _left_open(after + suffix))


def _left_open(text: str) -> str:
    return next((opening for opening, closing in THINKING_TAGS if text.rfind(opening) > text.rfind(closing)), "")


def _begins_with(model: TransformerBridge, prompt: str, tag: str) -> bool:
    """Whether the model's greedy answer begins with a tag; a vocabulary may hold tags that the model never says."""
    token = model.tokenizer.get_added_vocab().get(tag)
    if token is None:
        return False
    from cosmic_tl.forward import next_token_logits  # which imports TokenBatch from here

    said = _answers_begin.setdefault(model, {})
    if (prompt, tag) not in said:
        row = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = next_token_logits(model, next(batches(model, [row], 1)))
        said[prompt, tag] = int(logits[0].argmax()) == token
    return said[prompt, tag]


def opened_block(model: TransformerBridge, chat: ChatFormat | None = None) -> str:
    """The tag of the thinking block that every prompt leaves open; empty if there is none.

    Answers then begin inside of the block, and do not say so themselves.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        chat: Formatting; default plain.

    Example:
        >>> from cosmic_tl import load_model
        >>> opened_block(load_model("demo", device="cpu"), ChatFormat(prefix="<think>"))
        '<think>'
    """
    chat = chat or ChatFormat()
    return _plan(model, chat).opened if uses_template(model, chat) else _left_open(chat.prefix)


def chat_notes(model: TransformerBridge, chat: ChatFormat | None = None) -> tuple[str, ...]:
    """What the formatting does that a user would want to be told, in sentences.

    Example:
        >>> from cosmic_tl import load_model
        >>> chat_notes(load_model("demo", device="cpu"))
        ()
    """
    chat = chat or ChatFormat()
    if not uses_template(model, chat):
        return ("The tokenizer's chat template is not used: instructions are fed as they are.",)
    return _plan(model, chat).notes


def render(model: TransformerBridge, instructions: Sequence[str], chat: ChatFormat | None = None) -> list[str]:
    """Instructions as the model will see them, in text.

    Example:
        >>> from cosmic_tl import load_model
        >>> render(load_model("demo", device="cpu"), ["hi"])
        ['<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n']
    """
    chat = chat or ChatFormat()
    if not uses_template(model, chat):
        return [instruction + chat.prefix for instruction in instructions]
    plan = _plan(model, chat)
    return [_message_text(model, chat, text, plan.merge_system) + plan.suffix for text in instructions]


def tokenize(model: TransformerBridge, instructions: Sequence[str], chat: ChatFormat | None = None) -> list[list[int]]:
    """Token ids of each formatted instruction, unpadded.

    Args:
        model: Any bridge with a tokenizer.
        instructions: User texts.
        chat: System prompt, prefix and template options; default none.

    Raises:
        CosmicError: If they are no list of texts, there are none, one of them is blank, or one exceeds the model's context.

    Example:
        >>> from cosmic_tl import load_model
        >>> [len(row) for row in tokenize(load_model("demo", device="cpu"), ["hi", "hello there"])]
        [9, 10]
    """
    check_texts("prompts", instructions)
    if not instructions:
        raise CosmicError("prompts: none given; pass at least one instruction")
    if blank := [i for i, text in enumerate(instructions) if not text.strip()]:
        raise CosmicError(f"prompts: instruction {blank[0]} is blank; remove it")
    chat = chat or ChatFormat()
    add_special = not uses_template(model, chat)
    tokenizer: Any = model.tokenizer
    rows: list[list[int]] = tokenizer(render(model, instructions, chat), add_special_tokens=add_special)["input_ids"]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if len(rows[longest]) > (limit := int(model.cfg.n_ctx)):
        raise CosmicError(
            f"prompts: instruction {longest} takes {len(rows[longest])} tokens and the model's context holds {limit}; "
            "shorten it"
        )
    return rows


def batches(
    model: TransformerBridge, rows: Sequence[Sequence[int]], size: int, overhead: int | None = None
) -> Iterator[TokenBatch]:
    """Left-padded batches, prompts of like length together; of one length where the model would not mask the padding.

    Args:
        model: Gives the padding token and the device.
        rows: Token ids from `tokenize`.
        size: Prompts a batch, at most.
        overhead: What a pass costs besides its tokens, in tokens: prompts are split so that padding and passes together cost
            the least. Default: every batch but the last has `size` prompts, unless the model takes no padding
            (`forward.masks_padding`).

    Raises:
        CosmicError: If `size` is not positive.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, [[5, 6, 7], [8]], size=2))
        >>> batch.mask.tolist(), batch.rows
        ([[0, 0, 1], [1, 1, 1]], (1, 0))
        >>> [batch.rows for batch in batches(model, [[5, 6, 7], [8]], size=2, overhead=1)]
        [(1,), (0,)]
    """
    if size < 1:
        raise CosmicError(f"batch_size: must be at least 1, found {size}")
    from cosmic_tl.forward import masks_padding  # which imports TokenBatch from here

    paddable = len({len(row) for row in rows}) == 1 or masks_padding(model)
    pad = model.tokenizer.pad_token_id if model.tokenizer is not None else None
    device = torch.device(str(model.cfg.device))
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    for start, end in _cuts([len(rows[i]) for i in order], size, overhead, paddable):
        chosen = order[start:end]
        width = len(rows[chosen[-1]])
        ids = torch.full((len(chosen), width), 0 if pad is None else pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(chosen):
            ids[i, width - len(rows[row]) :] = torch.tensor(rows[row])
            mask[i, width - len(rows[row]) :] = 1
        yield TokenBatch(ids.to(device), mask.to(device), tuple(chosen))


def _cuts(lengths: Sequence[int], size: int, overhead: int | None, paddable: bool) -> list[tuple[int, int]]:
    """Where to split prompts, sorted by length, into batches."""
    cuts: list[tuple[int, int]] = []
    if overhead is None:
        start = 0
        while start < len(lengths):
            end = start + size if paddable else min(start + size, bisect_right(lengths, lengths[start]))
            cuts.append((start, min(end, len(lengths))))
            start = end
        return cuts
    # The cheapest split of the first prompts, one prompt more at a time.
    cheapest = [(0, 0)]
    for end, longest in enumerate(lengths, 1):
        first = max(0, end - size) if paddable else max(end - size, bisect_left(lengths, longest))
        cheapest.append(
            min((cheapest[start][0] + (end - start) * longest + overhead, start) for start in range(first, end))
        )
    end = len(lengths)
    while end:
        cuts.append((cheapest[end][1], end))
        end = cuts[-1][0]
    return cuts[::-1]


def post_instruction_positions(
    model: TransformerBridge, chat: ChatFormat | None = None, n: int | None = None
) -> Positions:
    """The tokens that the template puts after the user's text, found in token space.

    Several texts that end differently are formatted, and the tokens at the end that all of them share are counted, so
    that a token merged from the text's end and the template's beginning is not mistaken for the template's.

    Args:
        model: Any bridge with a tokenizer.
        chat: The formatting in use.
        n: Take the last `n` tokens instead. Without a template: 5.

    Raises:
        CosmicError: If `n` is not positive, or the template puts nothing after the text and `n` is not given.

    Example:
        >>> from cosmic_tl import load_model
        >>> post_instruction_positions(load_model("demo", device="cpu")).labels
        ('<|im_end|>', '\\n', '<|im_start|>', 'assistant', '\\n')
    """
    chat = chat or ChatFormat()
    if n is not None and n < 1:
        raise CosmicError(f"positions: must be at least 1, found {n}")
    rows = tokenize(model, _PROBES, chat)
    shared = 0
    while shared < min(map(len, rows)) and len({row[-1 - shared] for row in rows}) == 1:
        shared += 1
    if shared == 0 and uses_template(model, chat) and n is None:
        raise CosmicError("positions: the chat template puts nothing after the user's text; pass positions=5, say")
    count = n or shared or _BASE_POSITIONS
    tokenizer: Any = model.tokenizer
    labels = [tokenizer.decode([token]) for token in rows[0][-min(count, shared) :]] if shared else []
    fill = [str(-i) for i in range(count, len(labels), -1)]
    return Positions((*fill, *labels))
