"""Post-instruction positions: the tokens that the chat template puts after the user's text, and the last one of the text."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.chat import ChatFormat, n_shared, render, tokenize, uses_template

_ENDINGS = string.punctuation + string.ascii_letters + "7é中"
_PROBES = ("How to go", "alpha", "x\n", *(f"a {character}" for character in _ENDINGS))
"""User texts that end in different tokens, so that only the template's own tokens are common to all."""
_BASE_POSITIONS = 5
INSTRUCTION = "end of the text"
"""Label of the position where the user's text ends, whose token differs from prompt to prompt."""


@checked
@dataclass(frozen=True)
class Positions:
    """The last `len(labels)` token positions of every prompt, `-n … -1`."""

    labels: tuple[str, ...]
    """Each position's token as text; where the tokens differ, as those of a base model do, its index, or "end of the text"."""

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


@checked
def post_instruction_positions(
    model: TransformerBridge, chat: ChatFormat | None = None, n: int | None = None, *, instruction: bool = False
) -> Positions:
    """Find the tokens that the template puts after the user's text.

    Formats several texts with different endings and counts the final tokens that all of them share, so that a token
    merged from the end of the text and the template is not mistaken for a template token.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        chat: Formatting. Defaults to the plain chat template.
        n: Take the last `n` tokens instead. Defaults to the template's tokens, or 5 without a template.
        instruction: Take the last token of the user's text too, as the first position. Default False. Of a text that does not end
            in white space, which a tokenizer may merge with the template.

    Raises:
        CosmicError: If `n` is not positive, or the template puts nothing after the text and `n` is not given; or if the text's
            last token is asked for, and has no place of its own before the template's.

    Example:
        >>> from cosmic_tl import load_model
        >>> post_instruction_positions(load_model("demo", device="cpu")).labels
        ('<|im_end|>', '\\n', '<|im_start|>', 'assistant', '\\n')
        >>> post_instruction_positions(load_model("demo", device="cpu"), instruction=True).labels[0]
        'end of the text'
    """
    chat = chat or ChatFormat()
    check_count("positions", n)
    rows = tokenize(model, _PROBES, chat)
    shared = n_shared([row[::-1] for row in rows])
    if instruction:
        if n is not None or not uses_template(model, chat):
            raise CosmicError(
                "instruction: the text's last token is found before those of a chat template; leave out n, and use a template"
            )
        shared = _n_after(model, chat)
        n = shared + 1
    if shared == 0 and uses_template(model, chat) and n is None:
        raise CosmicError("positions: the chat template puts nothing after the user's text; pass positions=5, say")
    count = n or shared or _BASE_POSITIONS
    tokenizer: Any = model.tokenizer
    labels = [tokenizer.decode([token]) for token in rows[0][-min(count, shared) :]] if shared else []
    fill = [INSTRUCTION if labels and i == shared + 1 else str(-i) for i in range(count, len(labels), -1)]
    return Positions((*fill, *labels))


def instruction_tokens(model: TransformerBridge, row: Sequence[int], chat: ChatFormat | None = None) -> range:
    """Which tokens of a formatted prompt hold the user's text. All others are the chat format's, and the same in every prompt.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        row: Token ids of the prompt, from `tokenize`.
        chat: Formatting. Defaults to the plain chat template.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> instruction_tokens(model, tokenize(model, ["hello there"])[0])
        range(3, 5)
    """
    rows = [row, *tokenize(model, _PROBES, chat)]
    return range(n_shared(rows), len(row) - n_shared([one[::-1] for one in rows]))


def _n_after(model: TransformerBridge, chat: ChatFormat) -> int:
    """Number of tokens after the user's text, which are as many whatever it ends in, but for white space."""
    texts = [f"sphinx of black quartz {ending}" for ending in ("go", "alpha", *_ENDINGS)]
    rendered = render(model, texts, chat)
    heads = [whole[: whole.rindex(text) + len(text)] for whole, text in zip(rendered, texts, strict=True)]
    tokenizer: Any = model.tokenizer
    known = tokenizer(heads, add_special_tokens=False)["input_ids"]
    rows = tokenize(model, texts, chat)
    pairs = list(zip(rows, known, strict=True))
    found = {len(row) - len(head) for row, head in pairs}
    if len(found) != 1 or any(row[: len(head)] != head for row, head in pairs):
        raise CosmicError(
            "instruction: the tokenizer merges the end of some texts with the chat template, so their last token has no place "
            "of its own; take candidates at the template's tokens"
        )
    return found.pop()
