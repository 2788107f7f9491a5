"""Affine concept editing of the whole stream, at every layer with one direction and one target."""

from dataclasses import dataclass

from cosmic_tl._util.border import checked
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import check_alpha
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import EVERYWHERE, Ablation, AffineEdit, Edit, Place, written
from cosmic_tl.model.hooks import Scope, Site
from cosmic_tl.model.load import TransformerBridge


@checked
@dataclass(frozen=True, eq=False)
class AffineEverywhere(Edit):
    """Affine concept editing everywhere: the stream's component along the direction is `nu·r̂ + α‖r‖` at every layer.

    What enters the stream is set to it, and nothing that is added to the stream writes along the direction: directional ablation
    (Arditi et al. 2024, equation 4) with the target of affine concept editing (Marshall et al. 2025, equation 3) in place of
    zero. Unlike an affine edit of one layer above the first it equals a change of weights, so that a checkpoint can carry it.

    Raises:
        CosmicError: If α is not finite, or the direction has no reference.
    """

    direction: Direction
    alpha: float = 1.0
    tokens: Scope = "all"

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)
        self.direction.known_reference()

    @property
    def map(self) -> AffineMap:
        """The map of what enters a block.

        Example:
            >>> import torch
            >>> AffineEverywhere(Direction(torch.ones(4), torch.ones(4), 1, -1), alpha=0.5).map(torch.zeros(4))
            tensor([1.5000, 1.5000, 1.5000, 1.5000])
        """
        return AffineEdit(self.direction, self.alpha).map

    def map_at(self, site: Site) -> AffineMap:
        """The same for what enters a block, and ablation for what attention and MLP add.

        Example:
            >>> import torch
            >>> edit = AffineEverywhere(Direction(torch.ones(4), torch.ones(4), 1, -1), alpha=0.5)
            >>> edit.map_at("hook_mlp_out")(torch.ones(4)).tolist()
            [0.0, 0.0, 0.0, 0.0]
        """
        return self.map if site == "hook_resid_pre" else Ablation(self.direction).map

    @property
    def place(self) -> Place:
        """Everywhere."""
        return EVERYWHERE

    def points(self, n_layers: int) -> list[tuple[int, Site]]:
        """Whatever enters or is added to the stream, in every block.

        Example:
            >>> import torch
            >>> len(AffineEverywhere(Direction(torch.ones(4), torch.ones(4), 1, -1)).points(8))
            24
        """
        return written(n_layers)

    def check(self, model: TransformerBridge) -> None:
        """Check that it fits the model.

        Raises:
            CosmicError: If width or depth of the direction differ.

        Example:
            >>> import torch
            >>> from cosmic_tl import load_model
            >>> edit = AffineEverywhere(Direction(torch.ones(128), torch.zeros(128), 3, -1))
            >>> edit.check(load_model("demo", device="cpu"))
        """
        self.direction.check_shape(model)
