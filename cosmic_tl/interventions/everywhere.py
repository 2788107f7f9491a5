"""Affine concept editing of the whole stream, at every layer with one direction and one target."""

from dataclasses import dataclass

from cosmic_tl._util.border import checked
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import Ablation, AffineEdit, Everywhere, OfDirection
from cosmic_tl.model.hooks import Scope, Site


@checked
@dataclass(frozen=True, eq=False)
class AffineEverywhere(Everywhere, OfDirection):
    """Affine concept editing everywhere: the stream's component along the direction is `nu·r̂ + α‖r‖` at every layer.

    What enters the stream is set to it, and nothing that is added to the stream writes along the direction: directional ablation
    (Arditi et al. 2024, equation 4) with the target of affine concept editing (Marshall et al. 2025, equation 3) in place of
    zero. Unlike an affine edit of one layer above the first it equals a change of weights, so that a checkpoint can carry it.

    Raises:
        CosmicError: If α is not finite, or the direction has no reference.
    """

    alpha: float = 1.0
    tokens: Scope = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.direction.known_reference()

    @property
    def map(self) -> AffineMap:
        """The map of what enters a block.

        Example:
            >>> import torch
            >>> from cosmic_tl import Direction
            >>> AffineEverywhere(Direction(torch.ones(4), torch.ones(4), 1, -1), alpha=0.5).map(torch.zeros(4))
            tensor([1.5000, 1.5000, 1.5000, 1.5000])
        """
        return AffineEdit(self.direction, self.alpha).map

    def map_at(self, site: Site) -> AffineMap:
        """The same for what enters a block, and ablation for what attention and MLP add.

        Example:
            >>> import torch
            >>> from cosmic_tl import Direction
            >>> edit = AffineEverywhere(Direction(torch.ones(4), torch.ones(4), 1, -1), alpha=0.5)
            >>> edit.map_at("hook_mlp_out")(torch.ones(4)).tolist()
            [0.0, 0.0, 0.0, 0.0]
        """
        return self.map if site == "hook_resid_pre" else Ablation(self.direction).map
