"""How much more than a random direction a direction says, reads or writes."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl.errors import CosmicError, check_count

RANDOM = 128
"""Random directions that each number is compared with."""
LEVEL = 0.95
LEAST = 16
DEAD = 1e-6
"""Share of the median standard deviation below which a number does not depend on the direction."""


def with_random(unit: Float[Tensor, " d_model"], n_random: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """A unit vector, and random ones after it.

    Raises:
        CosmicError: If there are too few for a standard deviation.

    Example:
        >>> with_random(torch.eye(4)[0], 16, seed=0).norm(dim=1).mean()
        tensor(1.)
    """
    check_count("n_random", n_random)
    if n_random < LEAST:
        raise CosmicError(f"n_random: found {n_random}; take at least {LEAST}, which a standard deviation needs")
    noise = torch.randn(n_random, len(unit), generator=torch.Generator().manual_seed(seed))
    return torch.cat([unit[None], torch.nn.functional.normalize(noise, dim=1)])


def beside(
    own: Float[Tensor, "direction number"], others: Float[Tensor, "random number"]
) -> tuple[Float64[Tensor, "direction number"], Float64[Tensor, "random number"]]:
    """Numbers in standard deviations of what random directions give, and each random direction's own beside the others.

    Args:
        own: What some directions give.
        others: What random ones give for the same.

    Example:
        >>> z, random = beside(torch.tensor([[3.0]]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
        >>> round(float(z), 2), random.shape
        (2.6, torch.Size([4, 1]))
    """
    n, values = len(others), others.double()
    apart = values - values.mean(0)
    sd = apart.square().sum(0).div(n - 1).sqrt()
    sd[sd < DEAD * sd.median()] = torch.inf
    return (own - values.mean(0)) / sd, _without_itself(apart) * sd.isfinite()


def chance_of(best: Float64[Tensor, " random"]) -> float:
    """What the best of many numbers stays below in 95 % of the cases by chance.

    Args:
        best: The best one of each random direction.

    Example:
        >>> chance_of(torch.arange(101.0).double())
        95.0
    """
    return float(best.quantile(LEVEL))


def _without_itself(apart: Float64[Tensor, "n number"]) -> Float64[Tensor, "n number"]:
    """Each random direction's z by the mean and standard deviation of the others; `apart` has mean 0."""
    n = len(apart)
    mean = -apart / (n - 1)
    variance = (apart.square().sum(0) - apart.square() - (n - 1) * mean.square()) / (n - 2)
    return (apart - mean) / variance.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
