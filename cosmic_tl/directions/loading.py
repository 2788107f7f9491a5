"""What a file of another tool holds, for `Direction.load` and `Candidates.load`: which of its vectors, and where."""

import warnings
from pathlib import Path
from typing import TypeVar

from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.foreign_formats import READERS, RUN, ForeignCells, by_name, is_foreign, read_foreign, some
from cosmic_tl._util.packing import read_packed
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.fingerprint import check_origin
from cosmic_tl.model.load import TransformerBridge

T = TypeVar("T")

DEEPEST = 1000
"""A layer beyond this is a mistake in the file."""


def is_foreign_file(what: str, path: Path, todo: str) -> bool:
    """Whether this is another tool's file, and not one of ours or a directory.

    Args:
        what: The argument, for the error.
        path: The file.
        todo: What to give, for the error.

    Raises:
        CosmicError: If there is no such file, or it is neither.

    Example:
        >>> is_foreign_file("direction", Path("nowhere.gguf"), "give the path of a saved direction")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: direction: no file 'nowhere.gguf'; give the path of a saved direction
    """
    if not path.is_file() and not path.is_dir():
        raise CosmicError(f"{what}: no file {str(path)!r}; {todo}")
    return path.is_file() and is_foreign(path)


def known_endings() -> str:
    """Endings of the files that can be read, for a message.

    Example:
        >>> known_endings()
        '.gguf, .npy, .npz, .pt, .pth, .safetensors, .svec'
    """
    return ", ".join(sorted(READERS))


def foreign_direction(
    path: Path, layer: int | None, position: int | None, n_layers: int | None
) -> tuple[Float[Tensor, " d_model"], int, int, str, str]:
    """One vector of a file of another tool, with its layer and position, where it came from and the model's name.

    Args:
        path: The file.
        layer: Which layer's, or where it belongs if the file does not say.
        position: The same for the position; the last, if neither says.
        n_layers: Layers of the model, if it is known.

    Raises:
        CosmicError: If the file cannot be read, does not say enough, or says something else.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.ones((8, 4)))
        ...     foreign_direction(Path(folder, "a.npy"), None, None, None)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: layer: '.../a.npy' holds layers 0 to 7; give layer=, or load all with Candidates.load
    """
    found = read_foreign(path, n_layers)
    at_layer = _picked("layer", layer, {cell[0] for cell in found.cells}, path, found.left_out)
    if at_layer is None:
        raise CosmicError(
            f"layer: {str(path)!r} does not say at which layer its vector belongs; give layer=, the block at whose input it acts"
        )
    there = {cell[1]: vector for cell, vector in found.cells.items() if cell[0] in (None, at_layer)}
    at_position = _picked("position", position, set(there), path, ())
    if layer is None:
        _warn(found.left_out, path)
    vector = there.get(at_position, there.get(None))
    assert vector is not None
    return vector, at_layer, -1 if at_position is None else at_position, origin(found, path), found.model


def foreign_candidates(
    path: Path, position: int | None, n_layers: int | None
) -> tuple[dict[tuple[int, int], Float[Tensor, " d_model"]], int, str, str]:
    """All vectors of a file of another tool, the number of layers, where they came from and the model's name.

    Args:
        path: The file.
        position: Where they belong if the file does not say; the last by default.
        n_layers: Layers of the model; by default as many as the file speaks of.

    Raises:
        CosmicError: If the file cannot be read, names no layers or too many, or says another position.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", layer_1=np.ones(4), layer_3=np.ones(4))
        ...     cells, n_layers, *_ = foreign_candidates(Path(folder, "a.npz"), None, None)
        >>> [*cells], n_layers
        ([(1, -1), (3, -1)], 4)
    """
    found = read_foreign(path, n_layers)
    cells: dict[tuple[int, int], Tensor] = {}
    for (layer, at), vector in found.cells.items():
        if layer is None:
            raise CosmicError(
                f"candidates: {str(path)!r} does not say at which layer its vector belongs; use Direction.load with layer="
            )
        if at is not None and position is not None:
            raise CosmicError(f"position: found {position}, and {str(path)!r} has positions of its own; leave it out")
        cells[layer, at if at is not None else position if position is not None else -1] = vector
    if (deepest := max(layer for layer, _ in cells)) > DEEPEST:
        raise CosmicError(f"candidates: {str(path)!r} holds layer {deepest}, which no model has; make it again")
    depth = deepest + 1 if n_layers is None else n_layers
    if deepest >= depth:
        raise CosmicError(
            f"candidates: {str(path)!r} holds layer {deepest}, and the model has layers 0 to {depth - 1}; load the model it is of"
        )
    _warn(found.left_out, path)
    return cells, depth, origin(found, path), found.model


def saved_candidates(path: Path, position: int | None, kind: type[T]) -> T:
    """The candidates that a file of ours or a run holds.

    Args:
        path: The file, or the run's directory.
        position: What was asked for, which such files say themselves.
        kind: The class of candidates.

    Raises:
        CosmicError: If it holds none, or a position was asked for.

    Example:
        >>> from cosmic_tl import Candidates
        >>> saved_candidates(Path("."), None, Candidates)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: run: '.' holds no run; give a directory that `cosmic-tl run` wrote
    """
    if position is not None:
        raise CosmicError(f"position: found {position}, and {str(path)!r} has positions of its own; leave it out")
    held = by_name(RUN)(path) if path.is_dir() else read_packed(path)
    held = getattr(held, "selection", held)  # of a run
    held = getattr(held, "candidates", held)  # of a selection
    if not isinstance(held, kind):
        raise CosmicError(f"candidates: {str(path)!r} holds {type(held).__name__}; give a file with candidates")
    return held


def check_fit(
    model: TransformerBridge, vectors: Float64[Tensor, "layer position d_model"], fingerprint: str, name: str
) -> None:
    """Check that candidates have a model's width and depth, and belong to it.

    Args:
        model: The model.
        vectors: The candidates'.
        fingerprint: Of the model that they were found in; "" fits any.
        name: That model's name, for people.

    Raises:
        CosmicError: If not.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> check_fit(load_model("demo", device="cpu"), torch.ones(9, 1, 128).double(), "", "other")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: candidates: they have 9 layers of width 128, and the model 8 of width 128; ...
    """
    d_model, n_layers = int(model.cfg.d_model), int(model.cfg.n_layers)
    if (vectors.shape[-1], len(vectors)) != (d_model, n_layers):
        raise CosmicError(
            f"candidates: they have {len(vectors)} layers of width {vectors.shape[-1]}, and the model {n_layers} of width "
            f"{d_model}; load the model they were found in ({name or 'unknown'}), or read their file with model="
        )
    check_origin(model, fingerprint, name, "candidates")


def origin(found: ForeignCells, path: Path) -> str:
    """Where vectors came from, for `method`.

    Example:
        >>> origin(ForeignCells({}, method="PCA"), Path("vectors/happy.gguf"))
        'PCA, from vectors/happy.gguf'
    """
    place = f"from {'/'.join(path.parts[-2:])}"
    return f"{found.method}, {place}" if found.method else place


def check_said(name: str, asked: int | None, said: int, path: Path) -> None:
    """Check that an argument does not contradict a file.

    Raises:
        CosmicError: If it does.

    Example:
        >>> check_said("layer", 3, 5, Path("d.safetensors"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: layer: found 3, and 'd.safetensors' says 5; leave it out
    """
    if asked is not None and asked != said:
        raise CosmicError(f"{name}: found {asked}, and {str(path)!r} says {said}; leave it out")


def _picked(name: str, asked: int | None, held: set[int | None], path: Path, left_out: tuple[str, ...]) -> int | None:
    """The layer or position to take: what was asked for, or the only one there."""
    if held == {None}:
        return asked
    known = sorted(one for one in held if one is not None)
    if asked in known or (asked is None and len(known) == 1):
        return asked if asked is not None else known[0]
    if len(known) == 1:
        check_said(name, asked, known[0], path)
    span = f"{name}s {known[0]} to {known[-1]}" if known[-1] - known[0] == len(known) - 1 else f"{name}s {known}"
    if asked is None:
        raise CosmicError(f"{name}: {str(path)!r} holds {span}; give {name}=, or load all with Candidates.load")
    out = f" (left out: {some(left_out)})" if left_out else ""
    raise CosmicError(f"{name}: found {asked}, and {str(path)!r} holds {span}{out}; give one of them")


def _warn(left_out: tuple[str, ...], path: Path) -> None:
    if left_out:
        warnings.warn(f"{path.name}: left out what has no place here ({some(left_out)})", stacklevel=5)
