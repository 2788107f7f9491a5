"""First principal components: of both classes, and of pairs about their midpoints."""

import torch
from jaxtyping import Float64
from torch import Tensor

Rows = Float64[Tensor, "_ d_model"]
"""Activations of some prompts at one layer and position."""
NOTHING = 1e-12
"""Length below which rows are rounding."""


def principal_component(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """The direction in which the prompts of both classes vary most: the first principal component of all of them.

    Source: SteeringSafety's `pca` generator. Trap: it is the concept's direction only where the concept is what varies most. It
    does not know the labels, and may be the prompts' length or topic.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Returns:
        A unit vector of either sign.

    Example:
        >>> x = torch.tensor([[3.0, 0.1], [3.0, -0.1], [5.0, 0.0]]).double()
        >>> principal_component(x, -x).abs().round(decimals=2)
        tensor([1., 0.], dtype=torch.float64)
    """
    rows = torch.cat([positive, negative])
    return first_right_vector(rows - rows.mean(0))


def paired_component(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """The first principal component of pairs' members about each pair's midpoint (pairwise PCA).

    That is the first right singular vector of the differences, which are not centred: a pair's members lie at ± half of its
    difference about the midpoint, so that their mean is zero already. Source: repeng's `pca_center`, IBM's activation-steering.
    Trap: centring the differences, as a plain PCA of them does, takes off their mean, which is the difference in means.

    Args:
        positive: Activations of the pairs' positive members.
        negative: Of the negative members, in the same order.

    Returns:
        A unit vector of either sign.

    Example:
        >>> a, b = torch.tensor([[9.0, 1.0], [1.0, 1.0]]).double(), torch.tensor([[9.0, 0.0], [1.0, 0.0]]).double()
        >>> paired_component(a, b).abs().round()
        tensor([0., 1.], dtype=torch.float64)
    """
    return first_right_vector(positive - negative)


def first_right_vector(rows: Rows) -> Float64[Tensor, " d_model"]:
    """The unit vector along which the rows are longest; zero if they are all zero, but for rounding.

    Example:
        >>> first_right_vector(torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()).abs()
        tensor([1., 0.], dtype=torch.float64)
    """
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    found: Tensor = right[0] * (singular[0] > NOTHING)
    return found
