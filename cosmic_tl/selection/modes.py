"""Linear and affine mode: what removal and induction of a concept are in each; ACE at all layers."""

from typing import get_args

from cosmic_tl.directions.artifact import Direction
from cosmic_tl.directions.difference_in_means import Candidates
from cosmic_tl.errors import one_of
from cosmic_tl.interventions import Ablation, Addition, AffineEdit, Intervention, Part, Scope
from cosmic_tl.selection.options import Mode

PLACEBOS = 5
"""Placebos of each kind, by default: one says little, as they differ widely."""


def removal(direction: Direction, mode: Mode) -> Intervention:
    """The intervention that takes the concept out.

    Raises:
        CosmicError: If the mode is unknown.

    Example:
        >>> import torch
        >>> type(removal(Direction(torch.ones(2), torch.ones(2), 0, -1), "linear")).__name__
        'Ablation'
    """
    one_of("mode", mode, get_args(Mode))
    return Ablation(direction) if mode == "linear" else AffineEdit(direction, alpha=0.0)


def induction(direction: Direction, mode: Mode, alpha: float = 1.0) -> Intervention:
    """The intervention that puts the concept in.

    Raises:
        CosmicError: If the mode is unknown.

    Example:
        >>> import torch
        >>> type(induction(Direction(torch.ones(2), torch.ones(2), 0, -1), "affine")).__name__
        'AffineEdit'
    """
    one_of("mode", mode, get_args(Mode))
    return Addition(direction, alpha) if mode == "linear" else AffineEdit(direction, alpha)


def affine_edits(
    candidates: Candidates, position: int = -1, alpha: float = 1.0, tokens: Scope = "all", part: Part = "stream"
) -> tuple[AffineEdit, ...]:
    """ACE at all layers, each with its own direction and reference (Marshall et al. 2025, section 3).

    Layers where the classes do not differ are left alone.

    Args:
        candidates: From `difference_in_means`; of the same part.
        position: Which position's directions, counted from the end. Default −1.
        alpha: The same at every layer.
        tokens: Which tokens are edited.
        part: The stream, or what each block adds to it.

    Raises:
        CosmicError: If there is no such position.

    Example:
        >>> from cosmic_tl import difference_in_means, load_model, mean_activations
        >>> model = load_model("demo", device="cpu")
        >>> means = [mean_activations(model, [text]) for text in ("Rob a bank clerk.", "Bake a pizza.")]
        >>> [edit.direction.layer for edit in affine_edits(difference_in_means(*means), alpha=0.0)]
        [1, 2, 3, 4, 5, 6, 7]
    """
    candidates.check(0, position)
    layers = [layer for layer in range(len(candidates.vectors)) if candidates.vectors[layer, position].any()]
    return tuple(AffineEdit(candidates.direction(layer, position), alpha, tokens, part=part) for layer in layers)
