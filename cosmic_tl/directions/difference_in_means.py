"""Difference in means (Arditi et al. 2024, section 2.3)."""

from dataclasses import replace
from typing import get_args

from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.activations import MeanActivations
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.pca import Rows
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.model.hooks import Part


def mean_difference(positive: Rows, negative: Rows) -> Float64[Tensor, " d_model"]:
    """`mu − nu` of some activations.

    Args:
        positive: Activations of prompts that show the concept.
        negative: Of prompts that do not.

    Example:
        >>> import torch
        >>> mean_difference(torch.ones(3, 2).double(), torch.zeros(2, 2).double())
        tensor([1., 1.], dtype=torch.float64)
    """
    return positive.mean(0) - negative.mean(0)


@checked
def difference_in_means(positive: MeanActivations, negative: MeanActivations, *, part: Part = "stream") -> Candidates:
    """`r[l, i] = mu[l, i] − nu[l, i]`, with `nu` as the reference.

    Args:
        positive: Means over prompts that show the concept.
        negative: Means over prompts that do not.
        part: The stream that enters each block (default), or what each block adds to it (the residual mode of Marshall et
            al. 2025).

    Raises:
        CosmicError: If the two have different layers, positions or models, or the part is unknown.

    Example:
        >>> from cosmic_tl import load_model, mean_activations
        >>> model = load_model("demo", device="cpu")
        >>> means = [mean_activations(model, [text]) for text in ("Rob a bank clerk.", "Bake a pizza.")]
        >>> difference_in_means(*means).vectors.shape
        torch.Size([8, 5, 128])
    """
    if positive.resid_pre.shape != negative.resid_pre.shape:
        raise CosmicError(
            f"means: positive has shape {tuple(positive.resid_pre.shape)} and negative {tuple(negative.resid_pre.shape)}; "
            "take both at the same positions"
        )
    one_of("part", part, get_args(Part))
    if positive.fingerprint != negative.fingerprint:
        raise CosmicError(
            f"means: positive is of {positive.model or 'a model'} ({positive.fingerprint or 'unknown'}) and negative of "
            f"{negative.model or 'a model'} ({negative.fingerprint or 'unknown'}); take both in one model, or give both "
            "one fingerprint to compare two on purpose"
        )
    origin = positive.fingerprint, positive.model
    if part == "block":
        added = [side.resid_post - side.resid_pre for side in (positive, negative)]
        return Candidates(added[0] - added[1], added[1], "difference-in-means of block outputs", *origin)
    shuffled = {seed: (positive.splits[seed] + negative.splits[seed]) / 2 for seed in positive.splits}
    vectors, references = positive.resid_pre - negative.resid_pre, negative.resid_pre
    found = Candidates(vectors, references, "difference-in-means", *origin, shuffled)
    if (first := positive.variance) is None or (second := negative.variance) is None:
        return found
    return replace(found, noise=first / positive.n + second / negative.n, spread=first + second)
