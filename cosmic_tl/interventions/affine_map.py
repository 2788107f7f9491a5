"""The affine map that every intervention of the three papers is a case of."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cosmic_tl._util.border import checked


@checked
@dataclass(frozen=True, eq=False)
class AffineMap:
    """`x' = x − leftᵀ (right x − offset)`, held as its low-rank factors.

    ===========================  =======  =======  =================
    case                         left     right    offset
    ===========================  =======  =======  =================
    addition of `α r`            `r̂`      0        `α‖r‖`
    directional ablation         `r̂`      `r̂`      0
    affine ablation (ACE, α 0)   `r̂`      `r̂`      `nu·r̂`
    affine concept editing       `r̂`      `r̂`      `nu·r̂ + α‖r‖`
    LEACE, orthogonal eraser     `L`      `R`      `R` of the mean
    ===========================  =======  =======  =================

    LEACE's `Lᵀ R` is its projection, in two factors.

    Example:
        >>> along = torch.tensor([[1.0, 0.0]])
        >>> AffineMap(along, along, torch.tensor([0.5]))(torch.tensor([3.0, 4.0]))
        tensor([0.5000, 4.0000])
    """

    left: Float[Tensor, "rank d_model"]
    """Written vectors, one per row."""
    right: Float[Tensor, "rank d_model"]
    """Read vectors, one per row."""
    offset: Float[Tensor, " rank"]
    """The values after the edit, if `right leftᵀ` is the identity."""
    fingerprint: str = ""
    """`model_fingerprint` of the model it was made from; "" applies to any."""
    model: str = ""
    """Name of that model, for people."""

    def __repr__(self) -> str:
        rank, d_model = self.left.shape
        return f"AffineMap(rank {rank}, d_model {d_model})"

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The edited activations, computed in float32 or better and returned in the dtype of `x`."""
        return apply(x.reshape(1, -1, x.shape[-1]), *placed(stack([self]), x)).view(x.shape)


def stack(
    maps: Sequence[AffineMap],
) -> tuple[Float[Tensor, "edit rank d_model"], Float[Tensor, "edit rank d_model"], Float[Tensor, "edit 1 rank"]]:
    """Factors of several maps, padded with zeros to the same rank.

    Example:
        >>> [t.shape for t in stack([AffineMap(torch.ones(2, 4), torch.ones(2, 4), torch.zeros(2))] * 3)]
        [torch.Size([3, 2, 4]), torch.Size([3, 2, 4]), torch.Size([3, 1, 2])]
    """
    left, right, offset = (
        pad_sequence([getattr(one, name) for one in maps], batch_first=True) for name in ("left", "right", "offset")
    )
    return left, right, offset[:, None]


def placed(
    factors: tuple[Tensor, Tensor, Tensor], x: Float[Tensor, "*batch d_model"]
) -> tuple[Float[Tensor, "edit rank d_model"], Float[Tensor, "edit rank d_model"], Float[Tensor, "edit 1 rank"]]:
    """Factors from `stack` on the device of `x`, in the dtype for editing it: float64 for float64, else float32.

    They are cast before they are moved, since not every device has float64.

    Example:
        >>> factors = stack([AffineMap(torch.eye(1, 2), torch.eye(1, 2), torch.zeros(1, dtype=torch.float64))])
        >>> [factor.dtype for factor in placed(factors, torch.ones(3, 2, dtype=torch.bfloat16))]
        [torch.float32, torch.float32, torch.float32]
    """
    left, right, offset = (factor.to(_working(x.dtype)).to(x.device) for factor in factors)
    return left, right, offset


def _working(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def apply(
    x: Float[Tensor, "edit token d_model"],
    left: Float[Tensor, "edit rank d_model"],
    right: Float[Tensor, "edit rank d_model"],
    offset: Float[Tensor, "edit 1 rank"],
) -> Float[Tensor, "edit token d_model"]:
    """Apply one map per first entry of `x`, in float32 or better; the result has the dtype of `x`.

    Takes the factors that `placed` returns.

    Example:
        >>> maps = [AffineMap(torch.eye(1, 2), torch.eye(1, 2), torch.tensor([a])) for a in (0.0, 1.0)]
        >>> apply(torch.full((2, 1, 2), 7.0), *stack(maps))[:, 0].tolist()
        [[0.0, 7.0], [1.0, 7.0]]
    """
    work = x.to(_working(x.dtype))
    return torch.baddbmm(work, offset - work @ right.mT, left).to(x.dtype)
