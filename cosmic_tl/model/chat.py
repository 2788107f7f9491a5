"""Instructions to tokens: chat templates, thinking blocks, post-instruction positions, left-padded batches.

All activations are read at the last positions, so prompts are padded on the left, and the mask is kept with the tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.errors import CosmicError, check_texts, first_line
from cosmic_tl.model.batching import batches
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.model.options import ChatFormat as ChatFormat
from cosmic_tl.model.weightless import is_on_paper

THINKING_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
"""Tags that open and close a thinking block."""
Messages = Sequence[Mapping[str, str]]
"""Messages, each with a "role" and a "content", as chat templates take them."""
_answers_begin: WeakKeyDictionary[TransformerBridge, dict[tuple[str, str], bool]] = WeakKeyDictionary()


def _message_text(model: TransformerBridge, chat: ChatFormat, user: str, merge_system: bool = False) -> str:
    """The rendered template of one exchange, up to the beginning of the answer."""
    return _rendered(model, chat, [{"role": "user", "content": user}], merge_system)


def _rendered(model: TransformerBridge, chat: ChatFormat, messages: Messages, merge_system: bool) -> str:
    """The rendered template of a conversation; up to the beginning of the answer, if the last message is the user's."""
    tokenizer: Any = model.tokenizer
    options = dict(chat.template_options)
    if chat.thinking == "close" and "enable_thinking" in str(tokenizer.chat_template):
        options.setdefault("enable_thinking", False)
    first, *rest = messages
    if chat.system is not None and merge_system:
        messages = [{**first, "content": f"{chat.system}\n\n{first['content']}"}, *rest]
    elif chat.system is not None:
        messages = [{"role": "system", "content": chat.system}, *messages]
    asked = messages[-1]["role"] == "user"
    try:
        rendered: str = tokenizer.apply_chat_template(
            [*messages], tokenize=False, add_generation_prompt=asked, **options
        )
    except Exception as error:  # a template is a program, and can raise anything
        raise CosmicError(
            f"chat template: it rejects the {messages[-1]['role']} message {messages[-1]['content'][:40]!r} "
            f"({first_line(error)}); set template_options or use_template=False"
        ) from error
    return rendered


def uses_template(model: TransformerBridge, chat: ChatFormat) -> bool:
    """Whether prompts are formatted with a chat template.

    Raises:
        CosmicError: If a template is required and the tokenizer has none.

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
    """How every prompt is formatted, determined once on a probe."""

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
    except CosmicError:
        merge_system = chat.system is not None
        if not merge_system:
            raise
    if merge_system:
        notes.append("The chat template takes no system prompt: it was put before the user's text.")
        text = _message_text(model, chat, probe, merge_system=True)
    if probe not in text:
        raise CosmicError(
            "chat template: the user's message is missing from the prompt, or changed in it; set another template or "
            "use_template=False"
        )
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
    """Whether the model's greedy answer begins with a tag; a vocabulary may hold tags that the model never
    generates.
    """
    token = model.tokenizer.get_added_vocab().get(tag)
    if token is None or is_on_paper(model):  # which gives no answer
        return False
    said = _answers_begin.setdefault(model, {})
    if (prompt, tag) not in said:
        row = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = next_token_logits(model, next(batches(model, [row], 1)))
        said[prompt, tag] = int(logits[0].argmax()) == token
    return said[prompt, tag]


def opened_block(model: TransformerBridge, chat: ChatFormat | None = None) -> str:
    """The tag of a thinking block that every prompt leaves open; empty if there is none.

    Answers then begin inside the block, without a tag of their own.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        chat: Formatting. Defaults to the plain chat template.

    Example:
        >>> from cosmic_tl import load_model
        >>> opened_block(load_model("demo", device="cpu"), ChatFormat(prefix="<think>"))
        '<think>'
    """
    chat = chat or ChatFormat()
    return _plan(model, chat).opened if uses_template(model, chat) else _left_open(chat.prefix)


def chat_notes(model: TransformerBridge, chat: ChatFormat | None = None) -> tuple[str, ...]:
    """What a user should know about the formatting, in sentences.

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
    """Formatted instructions, as text.

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


def tokenize(
    model: TransformerBridge, instructions: Sequence[str], chat: ChatFormat | None = None, answer: int = 0
) -> list[list[int]]:
    """Token ids of each formatted instruction, unpadded.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        instructions: User texts.
        chat: Formatting. Defaults to the plain chat template.
        answer: Tokens that must have room after each of them. Default 0.

    Raises:
        CosmicError: If `instructions` is not a list of texts or is empty, or one of them is blank or, with its answer,
            exceeds the model's context.

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
    return _rows(model, render(model, instructions, chat), not uses_template(model, chat), answer)


def tokenize_conversations(
    model: TransformerBridge, conversations: Sequence[Messages], chat: ChatFormat | None = None
) -> list[list[int]]:
    """Token ids of each conversation, unpadded. One that ends with the user's message goes on to the beginning of the answer.

    Args:
        model: A `TransformerBridge` whose tokenizer has a chat template.
        conversations: Lists of messages.
        chat: Formatting. Defaults to the plain chat template. A system prompt is put before conversations without one.

    Raises:
        CosmicError: If one is empty, a message lacks its role or content, there is no chat template, or it rejects them.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> asked = {"role": "user", "content": "hi"}
        >>> rows = tokenize_conversations(model, [[asked], [asked, {"role": "assistant", "content": "Hello!"}]])
        >>> rows[0] == tokenize(model, ["hi"])[0], rows[1][: len(rows[0])] == rows[0]
        (True, True)
    """
    chat = chat or ChatFormat()
    for messages in conversations:
        if not isinstance(messages, Sequence) or not messages or not all(map(_is_message, messages)):
            raise CosmicError(f"conversation: expected messages with a role and a content, found {str(messages)[:60]}")
    if not uses_template(model, chat):
        raise CosmicError("conversation: the chat template is not used, which it needs; give a text")
    plan = _plan(model, chat)
    texts = []
    for messages in conversations:
        own = replace(chat, system=None) if messages[0]["role"] == "system" else chat
        ending = plan.suffix if messages[-1]["role"] == "user" else ""
        texts.append(_rendered(model, own, messages, plan.merge_system) + ending)
    return _rows(model, texts, False, 0)


def _is_message(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(found.get(key), str) for key in ("role", "content"))


def _rows(model: TransformerBridge, texts: Sequence[str], add_special: bool, answer: int) -> list[list[int]]:
    """Formatted prompts as tokens that the model knows, and that fit into its context."""
    tokenizer: Any = model.tokenizer
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=add_special)["input_ids"]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if (most := max(map(max, filter(None, rows)), default=0)) >= int(model.cfg.d_vocab):
        raise CosmicError(
            f"model: its tokenizer gives the token {most}, and the model knows {int(model.cfg.d_vocab)}; give model and "
            "tokenizer that belong together"
        )
    if not all(rows):
        raise CosmicError("model: its tokenizer makes no tokens of a prompt; give a model with a tokenizer of its own")
    taken, limit = len(rows[longest]), int(model.cfg.n_ctx)
    if taken > limit:
        raise CosmicError(
            f"prompts: instruction {longest} takes {taken} tokens and the model's context holds {limit}; shorten it"
        )
    if taken + answer > limit:
        raise CosmicError(
            f"max_new_tokens: found {answer}, and instruction {longest} takes {taken} of the {limit} tokens that the model's "
            f"context holds; use at most {limit - taken}, or shorten it"
        )
    return rows


def n_shared(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens common to all rows.

    Example:
        >>> n_shared([[5, 6, 7], [5, 6, 8, 9]])
        2
    """
    columns = enumerate(zip(*rows, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, rows)))
