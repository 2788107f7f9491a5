"""Options of experiments that the command line derives its own from; imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal, get_args

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count, one_of

Treatment = Literal["interchange", "paired", "removal"]
CausalPart = Literal["stream", "attention", "mlp", "block", "head"]
Span = Literal["at", "up-to", "from"]
TokenSpan = Literal["at", "from"]


@checked
@dataclass(frozen=True, kw_only=True)
class CausalOptions:
    """What a causal map exchanges, and where.

    Raises:
        CosmicError: If a name is unknown, a number out of range, a span of layers is asked for with the stream or with heads, or
            no layers are named for heads.
    """

    treatment: Treatment = "interchange"
    """interchange: give what a place writes the other class's mean component along the direction. paired: that of the prompt's
    own counterpart, where the set has pairs. removal: none, on positive prompts alone."""
    part: CausalPart = "block"
    """What is exchanged: what the whole block adds, what its attention, its mlp or each single head adds, or the stream that
    enters it."""
    layers: tuple[int, ...] | None = None
    """Layers of the map, such as 12,14; by default all. For single heads name some."""
    span: Span = "at"
    """One layer at a time, all layers up-to each, or all from it on."""
    token_span: TokenSpan = "at"
    """One token at a time, or all from it on."""
    n_positions: int | None = None
    """How many of the last token positions. Default every post-instruction token."""
    n_placebos: int = 1
    """Random directions."""
    whole: bool = True
    """Replace whole activations too."""
    seed: int = 0
    """Of the placebos and the resampling."""

    def __post_init__(self) -> None:
        for name, known in (("treatment", Treatment), ("part", CausalPart), ("span", Span), ("token_span", TokenSpan)):
            one_of(name, getattr(self, name), get_args(known))
        check_count("positions", self.n_positions)
        check_count("n_placebos", self.n_placebos)
        if self.layers is not None:  # a set of layers: order and repetition mean nothing
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if self.layers == () or (self.layers is None and self.part == "head"):
            raise CosmicError("layers: name at least one; of single heads those where part='attention' does most, say")
        if self.part == "head" and self.span != "at":
            raise CosmicError(
                f'span: found {self.span!r}, and single heads are exchanged one layer at a time; use "at"'
            )
        if self.part == "stream" and self.span != "at":
            raise CosmicError(
                f'span: found {self.span!r}, and the stream holds all that was written before; use "at", or another part'
            )
