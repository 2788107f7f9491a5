"""Linear and affine mode: what removal and induction of a concept are in each."""

from typing import Literal

from cosmic_tl.directions.artifact import Direction
from cosmic_tl.interventions import Ablation, Addition, AffineEdit, Intervention

Mode = Literal["linear", "affine"]


def removal(direction: Direction, mode: Mode) -> Intervention:
    """The intervention that takes the concept out.

    Example:
        >>> import torch
        >>> type(removal(Direction(torch.ones(2), torch.ones(2), 0, -1), "linear")).__name__
        'Ablation'
    """
    return Ablation(direction) if mode == "linear" else AffineEdit(direction, alpha=0.0)


def induction(direction: Direction, mode: Mode, alpha: float = 1.0) -> Intervention:
    """The intervention that puts the concept in.

    Example:
        >>> import torch
        >>> type(induction(Direction(torch.ones(2), torch.ones(2), 0, -1), "affine")).__name__
        'AffineEdit'
    """
    return Addition(direction, alpha) if mode == "linear" else AffineEdit(direction, alpha)
