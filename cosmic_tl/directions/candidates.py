"""Candidates: one direction for each layer and position."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_whole_number
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label


@dataclass(frozen=True, eq=False)
class Candidates:
    """One direction for each layer and post-instruction position."""

    vectors: Float64[Tensor, "layer position d_model"]
    references: Float64[Tensor, "layer position d_model"]
    method: str
    fingerprint: str = ""
    """`model_fingerprint` of the model they were found in; "" for unknown."""
    model: str = ""
    """That model's name, for people."""
    shuffled: Mapping[int, Float64[Tensor, "layer position d_model"]] = field(default_factory=dict)
    """By seed, the difference in means of the same prompts with random labels."""

    def __repr__(self) -> str:
        n_layers, n_positions, d_model = self.vectors.shape
        return f"Candidates({self.method}, {n_layers} layers × {n_positions} positions, d_model {d_model})"

    def check(self, layer: int, position: int) -> None:
        """Check that there is such a candidate.

        Args:
            layer: From 0.
            position: Counted from the end, so negative.

        Raises:
            CosmicError: If there is none.

        Example:
            >>> import torch
            >>> ones = torch.ones(2, 3, 4, dtype=torch.float64)
            >>> Candidates(ones, 0 * ones, "example").check(1, 0)
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: position: found 0, and the candidates have positions -3 to -1; -1 is the last
        """
        n_layers, n_positions, _ = self.vectors.shape
        check_whole_number("layer", layer)
        check_whole_number("position", position)
        if not 0 <= layer < n_layers:
            raise CosmicError(
                f"layer: found {layer}, and the candidates have layers 0 to {n_layers - 1}; name one of them"
            )
        if not -n_positions <= position < 0:
            raise CosmicError(
                f"position: found {position}, and the candidates have positions {-n_positions} to -1; -1 is the last"
            )

    def direction(self, layer: int, position: int, model: TransformerBridge | None = None) -> Direction:
        """One of them as an artifact.

        Args:
            layer: From 0.
            position: Counted from the end, so negative.
            model: Whose fingerprint and name it gets. Default: the one that the candidates were found in.

        Raises:
            CosmicError: If there is no such candidate, or its vector is zero or not finite.

        Example:
            >>> import torch
            >>> ones = torch.ones(2, 3, 4, dtype=torch.float64)
            >>> Candidates(ones, 0 * ones, "example").direction(1, -2)
            Direction(example, layer 1, position -2, norm 2, any model)
        """
        self.check(layer, position)
        return Direction(
            self.vectors[layer, position],
            self.references[layer, position],
            layer,
            position,
            self.method,
            model_fingerprint(model) if model is not None else self.fingerprint,
            short_label(model) if model is not None else self.model,
        )

    def moved(self, direction: Direction, layer: int) -> Direction:
        """The same vector to apply at another layer, with the reference of that layer, which `AffineEdit` needs.

        Args:
            direction: One of these candidates, or another direction of the same model.
            layer: Where it shall be applied, from 0.

        Raises:
            CosmicError: If the candidates have no such layer, or do not reach to the direction's position.

        Example:
            >>> import torch
            >>> ones = torch.ones(2, 3, 4, dtype=torch.float64)
            >>> some = Candidates(ones, torch.stack([0 * ones[0], ones[0]]), "example")
            >>> moved = some.moved(some.direction(0, -2), layer=1)
            >>> moved, moved.reference
            (Direction(example, layer 1, position -2, norm 2, any model), tensor([1., 1., 1., 1.]))
        """
        self.check(layer, direction.position)
        return replace(direction, layer=layer, reference=self.references[layer, direction.position])

    def shuffled_directions(self, like: Direction) -> dict[int, Direction]:
        """Placebos: what the same prompts with random labels give at the same place, scaled to the same norm.

        Args:
            like: The direction to stand beside, one of these candidates.

        Returns:
            By seed of the labels; those that vanish are left out (before the first block, say).

        Example:
            >>> import torch
            >>> ones = torch.ones(2, 3, 4, dtype=torch.float64)
            >>> some = Candidates(ones, 0 * ones, "example", shuffled={7: 5 * ones})
            >>> some.shuffled_directions(some.direction(1, -2))
            {7: Direction(shuffled labels (seed 7), layer 1, position -2, norm 2, any model)}
        """
        found = {seed: vectors[like.layer, like.position].float() for seed, vectors in self.shuffled.items()}
        return {
            seed: replace(like, vector=vector / vector.norm() * like.norm, method=f"shuffled labels (seed {seed})")
            for seed, vector in found.items()
            if vector.norm() > 1e-6 * like.norm
        }
