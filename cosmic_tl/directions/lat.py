"""Linear artificial tomography: PCA of differences between randomly paired prompts (Zou et al. 2023)."""

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.directions.pca import Rows, first_right_vector

SEED = 0
"""Of the shuffle."""


def lat_direction(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """Shuffle all prompts, pair the first half with the second, and take the first principal component of the differences, each
    of length 1.

    Source: Zou et al. 2023, "Representation engineering", section 3.1; SteeringSafety's `lat` generator. Trap: about half of the
    pairs are of one class, so its sign says nothing (here it is set by the true classes, which the released file does not do),
    and it varies with the shuffle, which here has a fixed seed.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Returns:
        A unit vector of either sign.

    Example:
        >>> x = torch.tensor([[3.0, 0.1], [3.0, -0.1], [5.0, 0.0]]).double()
        >>> lat_direction(x, -x).abs().round(decimals=1)
        tensor([1., 0.], dtype=torch.float64)
    """
    rows = torch.cat([positive, negative])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))]
    half = len(rows) // 2
    apart = torch.nn.functional.normalize(rows[:half] - rows[half : 2 * half], dim=1)
    return first_right_vector(apart - apart.mean(0))
