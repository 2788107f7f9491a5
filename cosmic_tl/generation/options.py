"""How the next token is chosen: the options, without imports that take seconds."""

from dataclasses import dataclass
from math import isfinite

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError


@checked
@dataclass(frozen=True)
class Sampling:
    """Changes to the model's next-token distribution besides the temperature. Defaults to none.

    Checkpoints come with defaults (`generation_config.json`: a repetition penalty, top-k, top-p) that `transformers`
    applies by itself. They are not used here, so that greedy means the most likely token, and temperature 1 the model's
    own distribution.

    Raises:
        CosmicError: If a value is out of range.

    Example:
        >>> Sampling(top_p=0.9)
        Sampling(top_k=None, top_p=0.9, repetition_penalty=1.0)
    """

    top_k: int | None = None
    """Sample only from this many of the most likely tokens. By default from all."""
    top_p: float | None = None
    """Sample only from the most likely tokens whose probabilities sum to this. By default from all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are already in the prompt or the completion become less likely, in greedy decoding too. 1 means no
    penalty; the checkpoint's own default is never used."""

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise CosmicError(f"top_k: must be at least 1, found {self.top_k}; leave it out to sample from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CosmicError(f"top_p: must be above 0 and at most 1, found {self.top_p}")
        if not (isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise CosmicError(f"repetition_penalty: must be positive, found {self.repetition_penalty}; 1 is none")

    def check(self, temperature: float) -> None:
        """Check that it can be combined with a temperature.

        Raises:
            CosmicError: If the temperature is negative or not finite, or 0 with a top-k or top-p, which greedy decoding
                ignores.

        Example:
            >>> Sampling(top_k=20).check(temperature=0.0)
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: top_k, top_p: greedy decoding ignores them; set a temperature above 0, or leave them out
        """
        if not 0 <= temperature < float("inf"):
            raise CosmicError(f"temperature: must be 0 (greedy) or positive, found {temperature}")
        if temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise CosmicError(
                "top_k, top_p: greedy decoding ignores them; set a temperature above 0, or leave them out"
            )
