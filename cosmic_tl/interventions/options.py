"""Names of modes and token scopes; imports nothing heavy."""

from typing import Literal, get_args

from cosmic_tl.errors import CosmicError, one_of

Mode = Literal["linear", "affine", "ace"]
"""How a direction is removed and induced; "ace" is accepted for "affine"."""
WrittenPart = Literal["stream", "attention", "mlp", "block"]
"""A part of the model at one layer: the stream that enters a block, what its attention or its MLP adds, or what the whole block
adds."""
InductionTokens = Literal["all", "prompt"]


def as_mode(found: Mode) -> Mode:
    """The mode by its one name.

    Raises:
        CosmicError: If there is no such mode.

    Example:
        >>> as_mode("ace")
        'affine'
    """
    mode: Mode = "affine" if found == "ace" else found
    one_of("mode", mode, ("linear", "affine"))
    return mode


def check_induction(mode: Mode, layer: int | None, tokens: InductionTokens) -> None:
    """Check the options of an induction.

    Raises:
        CosmicError: If a name is unknown, or another layer is given for ACE.

    Example:
        >>> check_induction("affine", 3, "all")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: induction_layer: found 3, and ACE's reference belongs to the direction's own layer; ...
    """
    one_of("induction_tokens", tokens, get_args(InductionTokens))
    if layer is not None and as_mode(mode) != "linear":
        raise CosmicError(
            f"induction_layer: found {layer}, and ACE's reference belongs to the direction's own layer; leave it out, or use "
            "mode='linear'"
        )
