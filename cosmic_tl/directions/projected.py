"""Differences in means without what lies along the reference."""

from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.directions.pca import Rows


def projected_difference(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """`r − (r·ν̂) ν̂`: the difference in means, made orthogonal to the negative class's mean.

    Affine editing with α = 0 then equals ablation at its layer, because the reference has no component along the direction.
    Source: "projected abliteration" (heretic, jim-plus). Trap: it is orthogonal to the reference of its own layer and position
    only.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[2.0, 1.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
        >>> projected_difference(a, b)
        tensor([0., 1.], dtype=torch.float64)
    """
    reference = negative.mean(0)
    unit = reference / reference.norm().clamp(min=1e-300)
    difference = positive.mean(0) - reference
    found: Tensor = difference - (difference @ unit) * unit
    return found
