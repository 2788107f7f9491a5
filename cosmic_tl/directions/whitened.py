"""Whitened differences in means: linear discriminant analysis, and the direction that LEACE reads."""

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.concept_erasure import concept_erasure
from cosmic_tl.directions.pca import Rows


def discriminant(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """`Σ⁻¹ (mu − nu)`, with Σ the classes' pooled covariance: the direction of linear discriminant analysis.

    Σ is shrunk towards a multiple of the identity by Ledoit and Wolf's formula, so that it is invertible for any number of
    prompts. Source: Fisher 1936; Marks and Tegmark 2024, "mass-mean probing" (section 5). Trap: as a probe's weight it *reads*
    the concept, and with few prompts shrinkage decides how far it turns away from the difference in means.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Example:
        >>> noise = torch.tensor([[0.0, 3.0], [0.0, -3.0], [0.1, 0.0], [-0.1, 0.0]]).double()
        >>> found = discriminant(noise + 1, noise)
        >>> bool(found[0] > 3 * found[1])  # where the classes vary less, their difference says more
        True
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    within = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
    n, width = within.shape
    shrinkage = float(ledoit_wolf_shrinkage(within.numpy(), assume_centered=True))
    floor = shrinkage * float(within.square().sum()) / (n * width)
    rest = (1 - shrinkage) / n
    difference = positive.mean(0) - negative.mean(0)
    found: Tensor
    if width <= n or not 0 < shrinkage < 1:
        covariance = rest * within.T @ within + floor * torch.eye(width, dtype=torch.float64)
        found = torch.linalg.pinv(covariance, hermitian=True) @ difference
    else:  # Woodbury: a system of as many equations as prompts
        inner = within @ within.T + floor / rest * torch.eye(n, dtype=torch.float64)
        found = difference - within.T @ torch.linalg.solve(inner, within @ difference)
    return found


def leace_direction(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """What LEACE reads of an activation to erase the concept: `Σ⁻¹ (mu − nu)`, with Σ the covariance of all prompts.

    Source: Belrose et al. 2023, equation 1; covariances with the concept-erasure package's optimal linear shrinkage. Trap:
    without shrinkage it is parallel to `discriminant`, since between the classes lies only `mu − nu` itself; LEACE *writes* along
    the plain difference in means (`fit_eraser` makes the whole map).

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Raises:
        CosmicError: If concept-erasure is not installed.

    Example:
        >>> noise = torch.tensor([[0.0, 3.0], [0.0, -3.0], [0.1, 0.0], [-0.1, 0.0]]).double()
        >>> found = leace_direction(noise + 1, noise)
        >>> bool(found[0] > found[1] > 0)
        True
    """
    width = positive.shape[1]
    fitter = concept_erasure().LeaceFitter(width, 1, constrain_cov_trace=False, shrinkage=True, dtype=torch.float64)
    labels = torch.arange(len(positive) + len(negative)) < len(positive)
    fitter.update(torch.cat([positive, negative]), labels)
    found: Tensor = torch.linalg.solve(fitter.sigma_xx, fitter.sigma_xz)[:, 0]
    return found
