"""What a direction says: the tokens that it promotes and suppresses, beside those of random directions (logit lens)."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.readout import read_out

RANDOM = 128
"""Random directions that a token's logit is compared with."""
LEVEL = 0.95
LEAST = 16
DEAD = 1e-6
"""Share of the median standard deviation below which a token's logit does not depend on the direction."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Readout(Result):
    """Tokens that a direction promotes (+) and suppresses (−)."""

    table: pd.DataFrame
    """One row per sign and token: sign ("+" or "-"), token (text), id, logit, z (in standard deviations of random directions'
    logits of this token), and beyond_chance (whether z exceeds `chance`)."""
    chance: float
    """The z that the best token of a random direction stays below in 95 % of the cases."""
    direction: Direction

    def _lines(self) -> list[str]:
        counts = self.table[self.table.beyond_chance].groupby("sign").size().to_dict()
        return [
            f"Readout({self.direction!r}): of the shown tokens {counts.get('+', 0)} promoted and {counts.get('-', 0)} suppressed "
            f"ones are beyond chance (|z| > {self.chance:.1f})"
        ]


@checked
def read_tokens(
    model: TransformerBridge, direction: Direction, *, n: int = 10, n_random: int = RANDOM, seed: int = 0
) -> Readout:
    """Tokens whose logits a direction raises and lowers most, if it is read by the final norm and the unembedding alone.

    The direction goes through the final norm and the unembedding (logit lens). Tokens with long unembedding vectors get large
    logits from any direction, so each token's logit is taken in standard deviations of the logits that random directions give
    it, and tokens are ranked by that. Even a random direction has a best token: `chance` says how large its z is.

    A direction of an early layer acts through all later ones, so that this need not be what it makes the model say.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        direction: Whose `r̂` is read, and its opposite.
        n: Tokens per sign. Default 10.
        n_random: Random directions. Default 128.
        seed: Of the random directions. Default 0.

    Raises:
        CosmicError: If a number is too small, the direction does not fit, or the architecture has no such readout.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = read_tokens(load_model("demo", device="cpu"), Direction(torch.ones(128), None, 3, -1), n=2)
        >>> found.table.sign.tolist(), found.table.columns.tolist()
        (['+', '+', '-', '-'], ['sign', 'token', 'id', 'logit', 'z', 'beyond_chance'])
    """
    check_count("n", n)
    check_count("n_random", n_random)
    if n_random < LEAST:
        raise CosmicError(f"n_random: found {n_random}; take at least {LEAST}, which a standard deviation needs")
    direction.check(model)
    noise = torch.randn(n_random, len(direction.unit), generator=torch.Generator().manual_seed(seed))
    random = noise / noise.norm(dim=1, keepdim=True)
    scale = len(direction.unit) ** 0.5  # as large as a stream's entries, so that a norm's epsilon plays no part
    logits = read_out(model, scale * torch.stack([direction.unit, -direction.unit]))
    others = read_out(model, scale * random).double()
    apart = others - others.mean(0)
    sd = apart.square().sum(0).div(n_random - 1).sqrt()
    sd[sd < DEAD * sd.median()] = torch.inf  # a token that no direction moves
    z = (logits - others.mean(0)) / sd
    chance = float((_without_itself(apart) * sd.isfinite()).amax(1).quantile(LEVEL))
    tokenizer: Any = model.tokenizer
    rows = []
    for sign, values, scores in zip("+-", logits, z, strict=True):
        for token in scores.topk(min(n, len(scores))).indices.tolist():
            score = float(scores[token])
            rows.append(
                {"sign": sign, "token": tokenizer.decode([token]), "id": token, "logit": float(values[token])}
                | {"z": score, "beyond_chance": score > chance}
            )
    return Readout(pd.DataFrame(rows), chance, direction)


def _without_itself(apart: Float64[Tensor, "n vocab"]) -> Float64[Tensor, "n vocab"]:
    """Each random direction's z by the mean and standard deviation of the others; `apart` has mean 0."""
    n = len(apart)
    mean = -apart / (n - 1)
    variance = (apart.square().sum(0) - apart.square() - (n - 1) * mean.square()) / (n - 2)
    return (apart - mean) / variance.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
