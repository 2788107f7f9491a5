"""Candidates: one direction for each layer and position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.packing import write_packed
from cosmic_tl.activations import mean_activations
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.directions.loading import check_fit, foreign_candidates, is_foreign_file, saved_candidates
from cosmic_tl.errors import CosmicError, check_whole_number
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, short_label
from cosmic_tl.model.positions import post_instruction_positions

Cells = Mapping[tuple[int, int], Any]
"""Layer and position to a vector: a tensor, an array or a list of floats."""


@checked
@dataclass(frozen=True, eq=False)
class Candidates:
    """One direction for each layer and post-instruction position."""

    vectors: Float64[Tensor, "layer position d_model"]
    references: Float64[Tensor, "layer position d_model"]
    """Mean of the negative class at the same places; NaN if unknown. Affine edits refuse unknown references."""
    method: str
    fingerprint: str = ""
    """`model_fingerprint` of the model they were found in; "" for unknown."""
    model: str = ""
    """Name of that model, for people."""
    shuffled: Mapping[int, Float64[Tensor, "layer position d_model"]] = field(default_factory=dict)
    """Seed to the difference in means of the same prompts with random labels."""
    names: tuple[str, ...] = ()
    """Names of the columns if they are not token positions; empty for positions."""
    noise: Float64[Tensor, "layer position"] | None = None
    """`T`, the expected squared length of a vector's sampling error: the classes' variances, each over its number of prompts.
    None for unknown."""
    spread: Float64[Tensor, "layer position"] | None = None
    """The classes' variances (traces of their covariances), added. None for unknown."""

    @property
    def repeatability(self) -> Float64[Tensor, "layer position"] | None:
        """Expected cosine between the directions of two fresh samples of as many prompts, `max(0, (‖r‖² − T) / ‖r‖²)`, or None
        if the noise is not known.

        `‖r‖² − T` estimates the squared length of the classes' true difference, and each sample adds noise of squared length
        `T` to it. Exact where noise is nearly orthogonal to the difference, that is, in many dimensions.

        Example:
            >>> import torch
            >>> r = torch.tensor([[[3.0, 1.0]]]).double()
            >>> Candidates(r, 0 * r, "example", noise=torch.tensor([[1.0]]).double()).repeatability
            tensor([[0.9000]], dtype=torch.float64)
        """
        if self.noise is None:
            return None
        lengths = self.vectors.square().sum(-1)
        return ((lengths - self.noise) / lengths).clamp(min=0)

    def prompts_needed(self, cosine: float = 0.95) -> Float64[Tensor, "layer position"] | None:
        """Prompts per side with which two fresh samples' directions have this expected cosine; infinite where no number is known
        to suffice, None if the noise is not known.

        Args:
            cosine: Between 0 and 1. Default 0.95.

        Raises:
            CosmicError: If the cosine is not between 0 and 1.

        Example:
            >>> import torch
            >>> r = torch.tensor([[[3.0, 1.0]]]).double()
            >>> one = torch.ones(1, 1).double()
            >>> Candidates(r, 0 * r, "example", noise=one, spread=90 * one).prompts_needed()
            tensor([[190.]], dtype=torch.float64)
        """
        if not 0 < cosine < 1:
            raise CosmicError(f"cosine: expected a number between 0 and 1, found {cosine}")
        if self.noise is None or self.spread is None:
            return None
        signal = self.vectors.square().sum(-1) - self.noise
        needed = cosine / (1 - cosine) * self.spread / signal
        return torch.where(signal > 0, needed.round(decimals=9).ceil(), torch.inf)

    @classmethod
    def from_vectors(
        cls,
        vectors: Cells,
        *,
        references: Cells | None = None,
        n_layers: int,
        method: str = "given",
        names: Sequence[str] = (),
    ) -> "Candidates":
        """Candidates from anywhere: probes, sparse autoencoders, another tool's directions.

        Args:
            vectors: Layer and position (counted from the end) to a vector: a tensor, an array or a list of floats. Its length
                is what α = 1 adds. Missing cells are not candidates.
            references: Mean activations of the negative class at the same cells, if known. Affine edits need them;
                `with_reference` measures them.
            n_layers: Layers of the model.
            method: Origin of the vectors, for people.
            names: Names of the columns, if they are not token positions.

        Raises:
            CosmicError: If there are none, a cell is outside the model, or the widths differ.

        Example:
            >>> Candidates.from_vectors({(2, -1): [1.0, 0.0], (3, -1): [0.0, 2.0]}, n_layers=8)
            Candidates(given, 8 layers × 1 positions, d_model 2)
        """
        if not vectors:
            raise CosmicError("vectors: found none; give at least one, by (layer, position)")
        given = {"vectors": vectors, "references": references or {}}
        width = len(next(iter(vectors.values())))
        n_positions = max(-position for _, position in vectors)
        filled = {name: torch.full((n_layers, n_positions, width), nan, dtype=torch.float64) for name in given}
        for name, some in given.items():
            for (layer, position), vector in some.items():
                one = torch.as_tensor(vector, dtype=torch.float64).detach().cpu()
                if not (0 <= layer < n_layers and -n_positions <= position < 0):
                    raise CosmicError(
                        f"{name}: found cell ({layer}, {position}); layers are 0 to {n_layers - 1}, and positions count from "
                        "the end: -1 is the last"
                    )
                if one.shape != (width,):
                    raise CosmicError(
                        f"{name}: ({layer}, {position}) has shape {tuple(one.shape)}, expected ({width},)"
                    )
                filled[name][layer, position] = one
        return cls(filled["vectors"], filled["references"], method, names=tuple(names))

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, completely or not at all.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Candidates.from_vectors({(2, -1): [1.0, 0.0]}, n_layers=8).save(f"{folder}/candidates.safetensors")
            ...     Candidates.load(f"{folder}/candidates.safetensors")
            Candidates(given, 8 layers × 1 positions, d_model 2)
        """
        write_packed(Path(path), self)

    @classmethod
    def load(
        cls, path: str | Path, model: TransformerBridge | None = None, *, position: int | None = None
    ) -> "Candidates":
        """Read a file that `save` wrote, the candidates of a run or a saved selection, or all vectors of another tool's file.

        The tools, and how layers are counted, are those of `Direction.load`. Zero vectors are not candidates. The last block's
        output has no place here: a warning names it.

        Args:
            path: Path of the file, or the directory of a run.
            model: If given, check that the candidates belong to it. Without one there are as many layers as the file names.
            position: Where vectors belong whose file does not say, counted from the end. Default −1.

        Raises:
            CosmicError: If the file is missing or damaged, holds no candidates, says no layers or another position, or does not
                belong to the model.

        Example:
            >>> Candidates.load("nowhere.gguf")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: candidates: no file 'nowhere.gguf'; give the path of saved candidates
        """
        path, n_layers = Path(path), None if model is None else int(model.cfg.n_layers)
        if is_foreign_file("candidates", path, "give the path of saved candidates"):
            vectors, n_layers, method, found_in = foreign_candidates(path, position, n_layers)
            found = replace(cls.from_vectors(vectors, n_layers=n_layers, method=method), model=found_in)
        else:
            found = saved_candidates(path, position, cls)
        if model is not None:
            check_fit(model, found.vectors, found.fingerprint, found.model)
        return found

    def with_reference(
        self,
        model: TransformerBridge,
        prompts: Prompts,
        *,
        chat: ChatFormat | None = None,
        batch_size: int | None = None,
    ) -> "Candidates":
        """The same candidates with the references that affine edits need, measured on negative training prompts.

        Args:
            model: The model that the candidates belong to.
            prompts: A contrast set, whose training prompts are taken, or a pair of lists: positive and negative prompts.
            chat: Formatting. Defaults to the plain chat template.
            batch_size: Prompts per forward pass. Default: by memory, at most 32.

        Raises:
            CosmicError: If they do not fit the model, or a prompt is blank, too long, or shorter than the positions.

        Example:
            >>> from cosmic_tl import load_model
            >>> some = Candidates.from_vectors({(2, -1): [1.0] * 128}, n_layers=8)
            >>> asked = ["Rob a bank clerk."], ["Bake a pizza."]
            >>> measured = some.with_reference(load_model("demo", device="cpu"), asked)
            >>> bool(measured.references.isfinite().all())
            True
        """
        check_fit(model, self.vectors, self.fingerprint, self.model)
        _, negative = sides_of(prompts, "train")
        n_positions = 1 if self.names else self.vectors.shape[1]
        positions = post_instruction_positions(model, chat, n_positions)
        means = mean_activations(model, negative, positions=positions, chat=chat, batch_size=batch_size)
        return replace(self, references=means.resid_pre.expand_as(self.vectors).clone())

    def __repr__(self) -> str:
        n_layers, n_positions, d_model = self.vectors.shape
        return f"Candidates({self.method}, {n_layers} layers × {n_positions} positions, d_model {d_model})"

    def check(self, layer: int, position: int) -> None:
        """Check that a candidate exists.

        Args:
            layer: From 0.
            position: Counted from the end, so negative.

        Raises:
            CosmicError: If it does not exist.

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
        """One candidate as a `Direction`.

        Args:
            layer: From 0.
            position: Counted from the end, so negative.
            model: Model whose fingerprint and name it gets. Defaults to the one that the candidates were found in.

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
            self._reference(layer, position),
            layer,
            position,
            f"{self.method}: {self.names[position]}" if self.names else self.method,
            model_fingerprint(model) if model is not None else self.fingerprint,
            short_label(model) if model is not None else self.model,
        )

    def by_layer(self, position: int = -1) -> dict[str, Direction]:
        """The candidates of all layers at one position, by "layer 0", "layer 1", …; without those that do not exist.

        Args:
            position: Counted from the end. Default −1.

        Raises:
            CosmicError: If there is no such position.

        Example:
            >>> import torch
            >>> vectors = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]]).double()
            >>> Candidates(vectors, 0 * vectors, "example").by_layer()
            {'layer 1': Direction(example, layer 1, position -1, norm 1, any model)}
        """
        self.check(0, position)
        known = [vector.isfinite().all() and vector.any() for vector in self.vectors[:, position]]
        return {f"layer {layer}": self.direction(layer, position) for layer, there in enumerate(known) if there}

    def _reference(self, layer: int, position: int) -> Float64[Tensor, " d_model"] | None:
        reference = self.references[layer, position]
        return None if reference.isnan().any() else reference

    def moved(self, direction: Direction, layer: int) -> Direction:
        """The same vector for another layer, with that layer's reference, which `AffineEdit` needs.

        Args:
            direction: One of these candidates, or another direction of the same model.
            layer: The layer at which to apply it, from 0.

        Raises:
            CosmicError: If the candidates do not have this layer, or not the direction's position.

        Example:
            >>> import torch
            >>> ones = torch.ones(2, 3, 4, dtype=torch.float64)
            >>> some = Candidates(ones, torch.stack([0 * ones[0], ones[0]]), "example")
            >>> moved = some.moved(some.direction(0, -2), layer=1)
            >>> moved, moved.reference
            (Direction(example, layer 1, position -2, norm 2, any model), tensor([1., 1., 1., 1.]))
        """
        self.check(layer, direction.position)
        return replace(direction, layer=layer, reference=self._reference(layer, direction.position))

    def shuffled_directions(self, like: Direction) -> dict[int, Direction]:
        """Placebos: directions from the same prompts with random labels, at the same place, scaled to the same norm.

        Args:
            like: The direction to compare with, one of these candidates.

        Returns:
            Seed of the labels to direction, without zero vectors (as before the first block).

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
