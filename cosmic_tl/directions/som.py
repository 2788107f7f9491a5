"""A self-organising map of activations (AAAI 2026): several directions of one concept, one per neuron."""

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.directions.pca import Rows

SIDE = 4
"""The map is a grid of this many neurons in each direction."""
SIGMA, RATE = 0.33, 0.01
"""Width of the neighbourhood, in steps of the grid, and learning rate."""
ROUNDS, SEED = 100, 0
"""How often every prompt is shown, and the seed of their order and of where neurons begin."""


def som_neurons(rows: Rows, k: int) -> Float64[Tensor, "neuron d_model"]:
    """The neurons that are nearest to most rows, at most `k`; neurons that are nearest to none are left out.

    Neurons begin at rows. Rows are shown one by one; the nearest neuron and its neighbours move towards each. Source: "SOM
    directions" (AAAI 2026): 4 × 4 neurons, σ 0.33, learning rate 0.01, up to 7 directions. Trap: neighbours hardly move at this
    σ, so the map is close to k-means, and its directions are of groups of prompts, not of independent mechanisms.

    Args:
        rows: Positive prompts' activations minus the negative class's mean, so that neurons are directions.
        k: How many.

    Example:
        >>> two = torch.tensor([[5.0, 0.0], [5.1, 0.0], [4.9, 0.0], [0.0, 5.0], [0.0, 5.1]]).double()
        >>> found = som_neurons(two, 2)
        >>> [int(one.argmax()) for one in found]
        [0, 1]
    """
    generator = torch.Generator().manual_seed(SEED)
    n = SIDE * SIDE
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).reshape(n, 2).double()
    near = (-(torch.cdist(grid, grid) ** 2) / (2 * SIGMA**2)).exp()
    neurons = rows[torch.randint(len(rows), (n,), generator=generator)].clone()
    for _ in range(ROUNDS):
        for i in torch.randperm(len(rows), generator=generator).tolist():
            winner = int((neurons - rows[i]).square().sum(1).argmin())
            neurons += RATE * near[winner][:, None] * (rows[i] - neurons)
    hits = torch.bincount(torch.cdist(rows, neurons).argmin(1), minlength=n)
    order = hits.argsort(descending=True, stable=True)
    return neurons[order[: min(k, int((hits > 0).sum()))]]
