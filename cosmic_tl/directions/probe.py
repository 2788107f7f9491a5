"""The weight of a logistic-regression probe."""

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.directions.pca import Rows

INVERSE_STRENGTH = 1.0
"""scikit-learn's `C`, where activations are scaled to a mean square of 1 per entry."""


def probe_direction(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """Weight of an L2-regularised logistic regression that tells the classes apart.

    Activations are centred and divided by one number, their root mean square, so that the weight is a direction of the stream.
    Computed in the span of the prompts, where the optimum lies. Source: Alain and Bengio 2017; Marks and Tegmark 2024. Trap: the
    weight is what *reads* the concept best. Where activations are correlated it differs from the direction that *writes* it, and
    steering along it may do little.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Returns:
        A vector that points to the positive class.

    Example:
        >>> x = torch.tensor([[3.0, 0.1], [3.0, -0.1], [5.0, 0.0]]).double()
        >>> torch.nn.functional.normalize(probe_direction(x, -x), dim=0).round(decimals=1)
        tensor([1., 0.], dtype=torch.float64)
    """
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([positive, negative])
    rows = rows - rows.mean(0)
    rows = rows / rows.square().mean().sqrt()
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    labels = [1] * len(positive) + [0] * len(negative)
    probe = LogisticRegression(C=INVERSE_STRENGTH, tol=1e-6, max_iter=10_000)
    probe.fit((left * singular).numpy(), labels)
    found: Tensor = torch.from_numpy(probe.coef_[0]) @ right
    return found
