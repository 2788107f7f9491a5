"""Several directions at one place: subspaces, and ways to make them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.activations import stream_at
from cosmic_tl.data.contrast_set import ContrastSet, Prompts, sides_of
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.pca import Rows
from cosmic_tl.directions.som import som_neurons
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label

ORTHONORMAL = 1e-4
"""Largest entry of `Q Qᵀ − I`."""
SMALL = 1e-6
"""Share of the largest singular value below which a direction adds nothing to the others."""


@checked
@dataclass(frozen=True, eq=False)
class Subspace:
    """Orthonormal directions in the stream that enters one block, with the classes' means there.

    Raises:
        CosmicError: If the basis is not orthonormal or not finite, or widths differ.
    """

    basis: Float64[Tensor, "rank d_model"]
    """`Q`, the most important direction first."""
    difference: Float64[Tensor, " d_model"]
    """`mu − nu`."""
    reference: Float64[Tensor, " d_model"]
    """`nu`, the negative class's mean."""
    layer: int
    method: str
    fingerprint: str = ""
    """`model_fingerprint` of the model it was found in; "" applies to any."""
    model: str = ""
    """Name of that model, for people."""

    def __post_init__(self) -> None:
        if not self.basis.shape[1] == len(self.difference) == len(self.reference):
            raise CosmicError(
                f"subspace: the basis has width {self.basis.shape[1]}, difference {len(self.difference)} and reference "
                f"{len(self.reference)}; take them from one model"
            )
        off = (self.basis @ self.basis.T - torch.eye(self.rank, dtype=torch.float64)).abs().max()
        if not off <= ORTHONORMAL:
            raise CosmicError("subspace: its rows are not orthonormal; use `spanned_by(vectors)` for a basis")

    @property
    def rank(self) -> int:
        """Number of directions.

        Example:
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 4, "example").rank
            2
        """
        return len(self.basis)

    def first(self, k: int) -> "Subspace":
        """The subspace of its first `k` directions.

        Raises:
            CosmicError: If it has fewer.

        Example:
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 4, "example").first(1)
            Subspace(example, rank 1 of 3, layer 4)
        """
        check_count("k", k)
        if k > self.rank:
            raise CosmicError(f"k: found {k}, and the subspace has rank {self.rank}; ask for at most that")
        return replace(self, basis=self.basis[:k])

    def random(self, seed: int = 0) -> "Subspace":
        """A placebo: a random subspace of the same rank, at the same place, with the same means.

        Args:
            seed: Of the random numbers. Default 0.

        Example:
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 4, "example").random(7)
            Subspace(random (seed 7), rank 2 of 3, layer 4)
        """
        noise = torch.randn(self.basis.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return replace(self, basis=spanned_by(noise), method=f"random (seed {seed})")

    def __repr__(self) -> str:
        return f"Subspace({self.method}, rank {self.rank} of {self.basis.shape[1]}, layer {self.layer})"


def spanned_by(vectors: Float64[Tensor, "n d_model"]) -> Float64[Tensor, "rank d_model"]:
    """An orthonormal basis of the span of some vectors, each of which adds what is new in it (Gram-Schmidt, by QR).

    Raises:
        CosmicError: If one adds nothing to those before it.

    Example:
        >>> spanned_by(torch.tensor([[2.0, 0.0], [1.0, 3.0]]).double()).abs()
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    columns, upper = torch.linalg.qr((vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-300)).T)
    new = upper.diagonal().abs()
    if len(new) < len(vectors) or not bool((new > SMALL).all()):
        raise CosmicError(
            f"vectors: of {len(vectors)} one lies in the span of those before it, or is zero; leave it out"
        )
    basis: Tensor = columns.T.contiguous()
    return basis


@checked
def class_subspace(
    model: TransformerBridge,
    prompts: Prompts,
    layer: int,
    k: int,
    *,
    position: int = -1,
    n_train: int | None = None,
    method: str = "pca",
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Subspace:
    """`k` directions in which positive prompts differ from the negative class, at one layer and position.

    "pca": the first right singular vectors of `x − nu` over positive prompts, uncentred, so that the first is close to the
    difference in means and further ones are how prompts differ around it. "som": self-organising map (AAAI 2026): neurons that
    are trained on positive prompts, minus `nu`; those that are nearest to most prompts first.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose training prompts are taken, or a pair of lists: positive and negative prompts.
        layer: From 0.
        k: Rank; at most the number of positive prompts, and 16 for "som".
        position: Counted from the end. Default −1.
        n_train: Training prompts per side, of a contrast set. Default all.
        method: "pca" (default) or "som".
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a number is out of range, the method unknown, or there are fewer different directions.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> class_subspace(load_model("demo", device="cpu"), load_prompts("demo"), 4, k=3, n_train=8)
        Subspace(pca, rank 3 of 128, layer 4)
    """
    if method not in MAKERS:
        raise CosmicError(f"method: found {method!r}; use one of {', '.join(MAKERS)}")
    check_count("k", k)
    sides = prompts.sides("train", n_train) if isinstance(prompts, ContrastSet) else sides_of(prompts, "train")
    found = stream_at(model, [*sides[0], *sides[1]], layer, position, chat=chat, batch_size=batch_size)
    positive, negative = found[: len(sides[0])], found[len(sides[0]) :]
    reference = negative.mean(0)
    vectors = MAKERS[method](positive - reference, k)
    if len(vectors) < k:
        raise CosmicError(
            f"k: found {k}, and {method} gives {len(vectors)} directions here; ask for fewer, or give more prompts"
        )
    origin = model_fingerprint(model), short_label(model)
    return Subspace(spanned_by(vectors), positive.mean(0) - reference, reference, layer, method, *origin)


@checked
def stacked_subspace(candidates: Candidates, cells: Sequence[tuple[int, int]]) -> Subspace:
    """The span of several candidates, for the place of the first.

    Args:
        candidates: With references.
        cells: Layer and position of each, the most important first.

    Raises:
        CosmicError: If there is none, one does not exist, or one adds nothing to those before it.

    Example:
        >>> vectors = {(1, -1): [1.0, 0.0, 0.0], (2, -1): [1.0, 1.0, 0.0]}
        >>> some = Candidates.from_vectors(vectors, references={(1, -1): [0.0] * 3}, n_layers=3)
        >>> stacked_subspace(some, [(1, -1), (2, -1)])
        Subspace(stacked cells, rank 2 of 3, layer 1)
    """
    if not cells:
        raise CosmicError("cells: found none; name at least one")
    found = [candidates.direction(*cell) for cell in cells]
    basis = spanned_by(torch.stack([one.vector.double() for one in found]))
    first = found[0]
    return Subspace(
        basis,
        first.vector.double(),
        first.known_reference().double(),
        first.layer,
        "stacked cells",
        first.fingerprint,
        first.model,
    )


@checked
def principal_angles(one: Subspace, other: Subspace) -> Float[np.ndarray, " angle"]:
    """Angles between two subspaces in degrees, the smallest first: 0 where they share a direction, 90 where they share none.

    Raises:
        CosmicError: If their widths differ.

    Example:
        >>> zero = torch.zeros(3, dtype=torch.float64)
        >>> a, b = (Subspace(torch.eye(3, dtype=torch.float64)[some], zero, zero, 0, "example") for some in ([0, 1], [1, 2]))
        >>> principal_angles(a, b).round().tolist()
        [0.0, 90.0]
    """
    from scipy.linalg import subspace_angles

    if one.basis.shape[1] != other.basis.shape[1]:
        raise CosmicError(
            f"subspaces: widths {one.basis.shape[1]} and {other.basis.shape[1]} differ; take both in one model"
        )
    return np.sort(np.rad2deg(subspace_angles(one.basis.numpy().T, other.basis.numpy().T)))


def _pca(apart: Rows, k: int) -> Rows:
    _, singular, right = torch.linalg.svd(apart, full_matrices=False)
    some = right[: min(k, int((singular > SMALL * singular[0]).sum()))]
    found: Tensor = some * torch.where(some @ apart.mean(0) < 0, -1.0, 1.0)[:, None]
    return found


MAKERS = {"pca": _pca, "som": som_neurons}
"""Name to a function of positive prompts' activations minus the reference, and the rank, to vectors."""
