"""Ways to steer by a direction with a strength, for sweeps.

Marshall et al. 2025 compare three, all at the direction's own layer:

===================  ===================================  ===========================================
method               edit                                 origin
===================  ===================================  ===========================================
addition (CAA)       `x + α r`                            where the prompt happens to be
ablation + addition  `x − (x·r̂) r̂ + α r`                  the component along `r̂` is 0
affine (ACE)         `x − (x·r̂) r̂ + (nu·r̂) r̂ + α r`       the negative class's mean
===================  ===================================  ===========================================
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from cosmic_tl.directions.direction import Direction
from cosmic_tl.interventions.edits import Addition, AffineEdit, Interventions

Method = Callable[[Direction, float], Interventions]


def ablation_addition(direction: Direction, alpha: float) -> AffineEdit:
    """`x' = x − (x·r̂) r̂ + α r` at the source layer: ACE with the origin as its reference.

    Example:
        >>> edit = ablation_addition(Direction(torch.ones(4), torch.ones(4), 0, -1), alpha=0.5)
        >>> edit.map(torch.tensor([3.0, 1.0, 1.0, 3.0]))
        tensor([ 1.5000, -0.5000, -0.5000,  1.5000])
    """
    return AffineEdit(replace(direction, reference=torch.zeros_like(direction.vector)), alpha)


METHODS: Mapping[str, Method] = {
    "addition": Addition,
    "ablation + addition": ablation_addition,
    "affine": AffineEdit,
}
