"""Ablation of a subspace, and affine editing within it."""

from dataclasses import dataclass

from cosmic_tl._util.border import checked
from cosmic_tl.directions.subspace import Subspace
from cosmic_tl.errors import CosmicError, check_alpha
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import Edit, Everywhere, Place
from cosmic_tl.model.hooks import Scope
from cosmic_tl.model.load import TransformerBridge


@checked
@dataclass(frozen=True, eq=False)
class SubspaceAblation(Everywhere):
    """`x' = x − Qᵀ Q x`, everywhere: directional ablation of several directions at once."""

    subspace: Subspace
    tokens: Scope = "all"

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> import torch
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> plane = Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 1, "example")
            >>> SubspaceAblation(plane).map(torch.tensor([1.0, 2.0, 3.0]))
            tensor([0., 0., 3.])
        """
        some = self.subspace
        return AffineMap(some.basis, some.basis, some.basis.new_zeros(some.rank), some.fingerprint, some.model)

    def check(self, model: TransformerBridge) -> None:
        """Check that it fits the model.

        Raises:
            CosmicError: If the widths differ.

        Example:
            >>> import torch
            >>> from cosmic_tl import load_model
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> plane = Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 1, "example")
            >>> SubspaceAblation(plane).check(load_model("demo", device="cpu"))
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: subspace: it has width 3, and the model's stream 128; take it from this model
        """
        if (width := self.subspace.basis.shape[1]) != (d_model := int(model.cfg.d_model)):
            raise CosmicError(
                f"subspace: it has width {width}, and the model's stream {d_model}; take it from this model"
            )


@checked
@dataclass(frozen=True, eq=False)
class SubspaceEdit(Edit):
    """Affine concept editing in a subspace: `x' = x − Qᵀ (Q x − Q (nu + α (mu − nu)))` at its layer.

    α = 0 reads as the negative class and α = 1 as the positive class, in all of its directions. With one direction it is
    `AffineEdit` (Marshall et al. 2025, equation 3).
    """

    subspace: Subspace
    alpha: float = 1.0
    tokens: Scope = "all"

    def __post_init__(self) -> None:
        check_alpha("alpha", self.alpha)

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> import torch
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> plane = Subspace(torch.eye(2, 3, dtype=torch.float64), zero + 1, zero + 5, 1, "example")
            >>> SubspaceEdit(plane, alpha=2.0).map(torch.tensor([1.0, 2.0, 3.0]))
            tensor([7., 7., 3.])
        """
        some = self.subspace
        point = some.reference + self.alpha * some.difference
        return AffineMap(some.basis, some.basis, some.basis @ point, some.fingerprint, some.model)

    @property
    def place(self) -> Place:
        """The subspace's layer."""
        return self.subspace.layer, "stream"
