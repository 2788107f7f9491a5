"""Options of experiments that the command line derives its own from; imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from cosmic_tl.interventions.options import WrittenPart

Treatment = Literal["interchange", "removal"]
Span = Literal["at", "up-to", "from"]


@dataclass(frozen=True, kw_only=True)
class CausalOptions:
    """What a causal map exchanges, and where."""

    treatment: Treatment = "interchange"
    """interchange: give what a place writes the other class's mean component along the direction. removal: none, on positive
    prompts alone."""
    part: WrittenPart = "block"
    """What is exchanged: what the whole block adds, what its attention or its mlp adds, or the stream that enters it."""
    span: Span = "at"
    """One layer at a time, all layers up-to each, or all from it on."""
    n_positions: int | None = None
    """How many of the last token positions. Default every post-instruction token."""
    n_placebos: int = 1
    """Random directions."""
    whole: bool = True
    """Replace whole activations too."""
    seed: int = 0
    """Of the placebos and the resampling."""
