"""Differences between centres that a few extreme values do not move."""

from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.directions.pca import Rows

QUANTILE = 0.995
"""Of a prompt's absolute activations, at which larger ones are cut off."""
STEPS, TOLERANCE = 1000, 1e-10
"""Of the search for the geometric median: at most so many, and the relative change at which it ends."""


def winsorized_difference(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """Difference in means of winsorized activations: a prompt's entries beyond the 99.5 % quantile of its absolute values are set
    to that, with their sign.

    Source: heretic's `winsorization_quantile`. Trap: it cuts off a few very large entries ("massive activations"), which many
    models have at fixed dimensions, whether or not they carry the concept.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Example:
        >>> import torch
        >>> rows = torch.ones(1, 400).double()
        >>> rows[0, 0] = -1000.0
        >>> winsorized_difference(rows, 0 * rows)[:2]
        tensor([-1.,  1.], dtype=torch.float64)
    """
    centres = []
    for rows in (positive, negative):
        limits = rows.abs().quantile(QUANTILE, dim=1, keepdim=True)
        centres.append(rows.clamp(-limits, limits).mean(0))
    found: Tensor = centres[0] - centres[1]
    return found


def median_difference(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """Difference between the classes' geometric medians: the points with the least sum of distances to the prompts.

    Source: heretic; Weiszfeld's algorithm. Trap: it moves towards where most prompts are, so a class of two kinds of prompts is
    represented by the larger kind.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 900.0], [0.0, -1.0]]).double()
        >>> median_difference(rows, torch.full((1, 2), 5.0).double()).round(decimals=3)
        tensor([-5., -5.], dtype=torch.float64)
    """
    return _geometric_median(positive) - _geometric_median(negative)


def _geometric_median(rows: Rows) -> Float64[Tensor, " d_model"]:
    """By Vardi and Zhang's form of Weiszfeld's steps, which does not get stuck at a prompt."""
    at: Tensor = rows.mean(0)
    scale = (rows - at).norm(dim=1).mean()
    if not scale > 0:
        return at
    for _ in range(STEPS):
        distances = (rows - at).norm(dim=1)
        apart = distances > 1e-12 * scale
        weights = apart / distances.clamp(min=1e-300)
        there = weights @ rows / weights.sum()
        here = int((~apart).sum())
        pull = float((weights @ (rows - at)).norm())
        stay = min(1.0, here / pull) if here and pull > 0 else float(here > 0)
        moved: Tensor = (1 - stay) * there + stay * at
        if float((moved - at).norm()) <= TOLERANCE * float(scale):
            return moved
        at = moved
    return at
