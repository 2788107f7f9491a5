"""Whether two models can be compared token by token and weight by weight."""

import copy
from collections.abc import Sequence
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.components import plain_parameters
from cosmic_tl.model.load import model_label


def check_same_shape(base: TransformerBridge, edited: TransformerBridge) -> None:
    """Check that two models have the same layers, width and vocabulary, and weights of the same shapes.

    Raises:
        CosmicError: If not; it names the first difference.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_same_shape(*(load_model(name, device="cpu") for name in ("demo", "demo-weak")))
    """
    for name, what in (("n_layers", "layers"), ("d_model", "dimensions"), ("d_vocab", "tokens")):
        ours, theirs = (int(getattr(model.cfg, name)) for model in (base, edited))
        if ours != theirs:
            raise CosmicError(
                f"edited: {model_label(edited)!r} has {theirs} {what} and the base, {model_label(base)!r}, {ours}; give two "
                "models of one architecture"
            )
    known = {name: tuple(parameter.shape) for name, parameter in plain_parameters(base.original_model)}
    for name, parameter in plain_parameters(edited.original_model):
        if known.get(name, shape := tuple(parameter.shape)) != shape:
            raise CosmicError(
                f"edited: {name} of {model_label(edited)!r} has shape {shape} and that of the base {known[name]}; give two "
                "models of one architecture"
            )


@checked
def tokenizer_of(model: TransformerBridge) -> Any:
    """A copy of a model's tokenizer, as `load_model(…, tokenizer=…)` takes it for another model.

    TransformerLens would read a tokenizer anew that is not marked as complete, which it cannot where it came from a GGUF file.

    Example:
        >>> from cosmic_tl import load_model
        >>> demo = load_model("demo", device="cpu")
        >>> load_model("demo-weak", device="cpu", tokenizer=tokenizer_of(demo)).tokenizer.name_or_path.endswith("model")
        True
    """
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True  # the mark; what the tokenizer does is decided already
    return tokenizer


def check_same_tokens(
    base: TransformerBridge, edited: TransformerBridge, prompts: Sequence[str], chat: ChatFormat | None = None
) -> None:
    """Check that two tokenizers agree on their tokens, and chat templates on some prompts.

    Tokens that only one of them has may be padding of the vocabulary, and are left out.

    Raises:
        CosmicError: If not.

    Example:
        >>> from cosmic_tl import load_model
        >>> demo, weak = (load_model(name, device="cpu") for name in ("demo", "demo-weak"))
        >>> check_same_tokens(demo, weak, ["Bake a pie."])
    """
    ours, theirs = (model.tokenizer.get_vocab() for model in (base, edited))
    todo = (
        "compare a model with an edit of it, or load that with the base's tokenizer: tokenizer=tokenizer_of(base) "
        "(--base-tokenizer)"
    )
    if odd := next((token for token, i in ours.items() if theirs.get(token, i) != i), None):
        raise CosmicError(
            f"edited: its tokenizer has the number {theirs[odd]} for the token {odd!r} and the base's {ours[odd]}; {todo}"
        )
    if not set(ours) & set(theirs):
        raise CosmicError(f"edited: its tokenizer shares no token with the base's; {todo}")
    for prompt, one, other in zip(prompts, tokenize(base, prompts, chat), tokenize(edited, prompts, chat), strict=True):
        if one != other:
            raise CosmicError(
                f"edited: its tokenizer or chat template gives {prompt[:40]!r} other tokens than the base's; {todo}"
            )
