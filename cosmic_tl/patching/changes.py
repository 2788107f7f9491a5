"""What is changed, and where."""

from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.interventions.options import WrittenPart
from cosmic_tl.model.hooks import Site

SITES: dict[str, Site] = {
    "stream": "hook_resid_pre",
    "attention": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "block": "hook_resid_post",
}


@checked
@dataclass(frozen=True, eq=False)
class Change:
    """What happens to one part of one block, at the patch's token: `x' = x + ((target − x)·read) write`, or `x' = target`.

    Raises:
        CosmicError: If the part is unknown, or has no heads or neurons and one is named.
    """

    layer: int
    part: WrittenPart
    target: Float[Tensor, "*group d_model"]
    """What the part is to be, along `read`, or altogether; one for all prompts, or one for each group of them."""
    read: Float[Tensor, " d_model"] | None = None
    """A unit vector; None replaces the whole activation."""
    write: Float[Tensor, " d_model"] | None = None
    """A unit vector; default `read`. Another one moves the activation as far, in another direction: a placebo."""
    position: int | None = None
    """At another token than the patch's, after it; default the patch's."""
    index: int | None = None
    """Change only what this head of the attention, or this neuron of the MLP, writes; default all of it."""

    def __post_init__(self) -> None:
        one_of("part", self.part, get_args(WrittenPart))
        if self.index is not None and self.part not in ("attention", "mlp"):
            raise CosmicError(
                f"index: found {self.index}, and only attention has heads and an mlp neurons; leave it out"
            )


@checked
@dataclass(frozen=True, eq=False)
class Patch:
    """Changes at one token or at several, in one block or in several.

    Raises:
        CosmicError: If there are none, or a position is not negative, or before the patch's.
    """

    position: int
    """Counted from the end: −1 is the last token. Where passes begin."""
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        for position in (self.position, *(one.position for one in self.changes if one.position is not None)):
            if position >= 0:
                raise CosmicError(f"position: found {position}; positions count from the end, and -1 is the last")
            if position < self.position:
                raise CosmicError(
                    f"position: found a change at {position}, before the patch's {self.position}; begin there"
                )
        if not self.changes:
            raise CosmicError("changes: found none; give at least one")

    @property
    def first(self) -> int:
        """The lowest changed block.

        Example:
            >>> import torch
            >>> Patch(-1, tuple(Change(layer, "mlp", torch.zeros(4)) for layer in (5, 3))).first
            3
        """
        return min(change.layer for change in self.changes)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Patches of one kind share a pass: they have the same places, up to which head or neuron."""
        places = (
            (
                one.layer,
                one.part,
                one.position or self.position,
                one.read is None,
                one.index is None,
                one.target.ndim,
            )
            for one in self.changes
        )
        return self.position, self.first, tuple(places)
