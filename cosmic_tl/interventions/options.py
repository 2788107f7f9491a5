"""Names of modes and token scopes; imports nothing heavy."""

from typing import Literal, get_args

from cosmic_tl.errors import CosmicError, one_of

Mode = Literal["linear", "affine"]
InductionTokens = Literal["all", "prompt"]


def check_induction(mode: Mode, layer: int | None, tokens: InductionTokens) -> None:
    """Check the options of an induction.

    Raises:
        CosmicError: If a name is unknown, or another layer is given for ACE.

    Example:
        >>> check_induction("affine", 3, "all")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: induction_layer: found 3, and ACE's reference belongs to the direction's own layer; ...
    """
    one_of("mode", mode, get_args(Mode))
    one_of("induction_tokens", tokens, get_args(InductionTokens))
    if layer is not None and mode != "linear":
        raise CosmicError(
            f"induction_layer: found {layer}, and ACE's reference belongs to the direction's own layer; leave it out, or use "
            "mode='linear'"
        )
