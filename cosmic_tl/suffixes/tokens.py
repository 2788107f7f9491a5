"""The place of a suffix among a prompt's tokens, and which tokens survive a round trip as text.

A suffix is searched as tokens and used as text. Tokens that merge when the text is tokenized again would be another
suffix, so only those that survive between the instruction and the end of the template are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.chat import ChatFormat, n_shared, tokenize
from cosmic_tl.model.load import TransformerBridge

Tokens = tuple[int, ...]
_PROBES = (" x", " Q", " 7", " a,")
"""Suffixes that begin and end in different tokens, so that only the surrounding tokens are common to all."""
_DRAWS = 1000


@dataclass(frozen=True)
class Frame:
    """The tokens of a prompt before and after the end of its text."""

    prompt: str
    before: Tokens
    """The beginning of the template and the instruction."""
    after: Tokens
    """The template's tokens after the user's text."""


def frames(model: TransformerBridge, prompts: Sequence[str], chat: ChatFormat | None = None) -> list[Frame]:
    """The tokens before and after the place of a suffix.

    Raises:
        CosmicError: As `tokenize`.

    Example:
        >>> from cosmic_tl import load_model
        >>> frame = frames(load_model("demo", device="cpu"), ["hi"])[0]
        >>> len(frame.before), len(frame.after)
        (4, 5)
    """
    tokenize(model, prompts, chat)  # a blank prompt is an error here, not one of the probes
    rows = tokenize(model, [prompt + probe for prompt in prompts for probe in _PROBES], chat)
    found = []
    for i, prompt in enumerate(prompts):
        some = rows[i * len(_PROBES) : (i + 1) * len(_PROBES)]
        row, n_after = some[0], n_shared([row[::-1] for row in some])
        found.append(Frame(prompt, tuple(row[: n_shared(some)]), tuple(row[len(row) - n_after :])))
    return found


def surviving_texts(
    model: TransformerBridge, places: Sequence[Frame], suffixes: Sequence[Tokens], chat: ChatFormat | None = None
) -> list[str | None]:
    """Each suffix as text, or None if the text does not give its tokens back or does not begin with a space.

    Without the space it would merge with the last word of other instructions.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        places: The place of each suffix.
        suffixes: Token sequences, one per place.
        chat: Formatting. Defaults to the plain chat template.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> encode = lambda text: tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        >>> surviving_texts(model, frames(model, ["hi"]) * 2, [encode(" pizza"), encode(" pi") + encode("zza")])
        [' pizza', None]
    """
    tokenizer: Any = model.tokenizer
    # Decoded after a token, since some tokenizers drop a leading space.
    anchors = [place.before[-1:] for place in places]
    skips = [len(text) for text in tokenizer.batch_decode(anchors, clean_up_tokenization_spaces=False)]
    joined = [[*anchor, *suffix] for anchor, suffix in zip(anchors, suffixes, strict=True)]
    decoded = tokenizer.batch_decode(joined, clean_up_tokenization_spaces=False)
    texts = [text[skip:] for text, skip in zip(decoded, skips, strict=True)]
    rows = tokenize(model, [place.prompt + text for place, text in zip(places, texts, strict=True)], chat)
    return [
        text if text[:1].isspace() and row == [*place.before, *suffix, *place.after] else None
        for place, suffix, text, row in zip(places, suffixes, texts, rows, strict=True)
    ]


def usable_tokens(model: TransformerBridge, ascii_only: bool = True) -> list[int]:
    """Tokens that a suffix may consist of: printable text without special tokens.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        ascii_only: Whether to use ASCII characters only. Default True, as in Zou et al. 2023.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> model.tokenizer.eos_token_id in usable_tokens(model)
        False
    """
    tokenizer: Any = model.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [
        i
        for i, text in zip(ids, texts, strict=True)
        if text.strip() and text.isprintable() and "\ufffd" not in text and (text.isascii() or not ascii_only)
    ]


def draw_suffixes(
    model: TransformerBridge,
    places: Sequence[Sequence[Frame]],
    n_tokens: int,
    generator: torch.Generator,
    chat: ChatFormat | None = None,
    ascii_only: bool = True,
) -> list[tuple[Tokens, str]]:
    """Random suffixes, drawn token by token, uniformly among those that survive; as tokens and text.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        places: For each suffix, the prompts after which it must survive.
        n_tokens: Length in tokens.
        generator: Random generator, on the CPU.
        chat: Formatting. Defaults to the plain chat template.
        ascii_only: As in `usable_tokens`.

    Raises:
        CosmicError: If no token survives.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [(ids, text)] = draw_suffixes(model, [frames(model, ["hi"])], 3, torch.Generator().manual_seed(0))
        >>> len(ids), surviving_texts(model, frames(model, ["hi"]), [ids]) == [text]
        (3, True)
    """
    usable = usable_tokens(model, ascii_only)
    found: list[Tokens] = [()] * len(places)
    texts = [""] * len(places)
    for _ in range(n_tokens):
        open_, draws = list(range(len(places))), 0
        while open_:
            if (draws := draws + 1) > _DRAWS:
                raise CosmicError(
                    "suffix: no random tokens survive a round trip as text; try ascii_only=False or fewer tokens"
                )
            drawn = torch.randint(len(usable), (len(open_),), generator=generator).tolist()
            longer = {i: (*found[i], usable[j]) for i, j in zip(open_, drawn, strict=True)}
            pairs = [(i, place) for i in open_ for place in places[i]]
            survived = surviving_texts(model, [place for _, place in pairs], [longer[i] for i, _ in pairs], chat)
            lost = {i for (i, _), text in zip(pairs, survived, strict=True) if text is None}
            for (i, _), text in zip(pairs, survived, strict=True):
                if i not in lost and text is not None:
                    found[i], texts[i] = longer[i], text
            open_ = [i for i in open_ if i in lost]
    return list(zip(found, texts, strict=True))


@checked
def random_suffixes(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    n_tokens: int,
    chat: ChatFormat | None = None,
    seed: int = 0,
    ascii_only: bool = True,
) -> list[str]:
    """Placebos: one random suffix per prompt (Arditi et al. 2024, section 5.1).

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions.
        n_tokens: Length of each suffix in tokens.
        chat: Formatting. Defaults to the plain chat template.
        seed: Random seed. Default 0.
        ascii_only: As in `usable_tokens`.

    Raises:
        CosmicError: If a prompt is blank or too long, or no token survives a round trip as text.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> random_suffixes(model, ["hi", "hello"], n_tokens=3) == random_suffixes(model, ["hi", "hello"], n_tokens=3)
        True
    """
    check_count("n_tokens", n_tokens)
    generator = torch.Generator().manual_seed(seed)
    places = [[frame] for frame in frames(model, prompts, chat)]
    return [text for _, text in draw_suffixes(model, places, n_tokens, generator, chat, ascii_only)]
