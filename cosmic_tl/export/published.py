"""Tensors that others published: the single-direction and COSMIC programs' files, and plain ones of torch and numpy."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from cosmic_tl._util.foreign_formats import ForeignCells
from cosmic_tl.errors import CosmicError, check_whole_number, first_line
from cosmic_tl.export import lm_eval_steered

Cells = dict[tuple[int | None, int | None], Tensor]
BESIDE = "direction_metadata.json"
"""Where the programs keep the place of `direction.pt`."""
_OTHER_SITES = ("outputs of attention", "outputs of MLPs", "outputs of blocks")
"""What COSMIC's program stacks below the inputs of blocks."""
_LAYER = re.compile(r"(?:layer[ ._-]?)?(\d+)|blocks\.(\d+)\.hook_resid_(pre|post)")


def read_torch(path: Path) -> ForeignCells:
    """Read a `.pt` file without running code from it.

    `direction.pt` has its layer and position beside it, in `direction_metadata.json`. `mean_diffs.pt` has shape
    `(position, layer, d_model)`, and its positions are the last ones of the prompt; COSMIC's first has a further axis of four
    sites, of which the inputs of blocks come first. A dict with steering vectors is lm-eval's. All others are plain tensors: a
    vector, a row per layer, or a dict with a vector per layer.

    Raises:
        CosmicError: If it holds anything else, or is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(torch.ones(5, 8, 16), f"{folder}/mean_diffs.pt")
        ...     found = read_torch(Path(folder, "mean_diffs.pt"))
        >>> len(found.cells), min(found.cells), found.method
        (40, (0, -5), 'difference-in-means')
    """
    try:
        held = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a foreign file makes torch raise
        raise CosmicError(
            f"file: {str(path)!r} is damaged, or holds more than tensors ({first_line(error)}); save tensors alone"
        ) from error
    if isinstance(held, Mapping):
        if any(isinstance(one, Mapping) and "steering_vector" in one for one in held.values()):
            return lm_eval_steered.read_vectors(path)
        return _by_names(path, held)
    held = _tensor(path, held)
    if path.stem == "direction" and (beside := path.with_name(BESIDE)).is_file():
        layer, position = _place(beside)
        sites = held if held.ndim == 2 and len(held) == 1 + len(_OTHER_SITES) else held[None]
        if sites.ndim != 2:
            raise CosmicError(f"file: {str(path)!r} has shape {tuple(held.shape)}; a direction has shape (d_model,)")
        return ForeignCells({(layer, position): sites[0]}, _OTHER_SITES[: len(sites) - 1], "difference-in-means")
    if "mean_diffs" in path.stem and held.ndim in (3, 4):
        return _mean_diffs(path, held)
    return ForeignCells(_plain(path, held))


def read_arrays(path: Path) -> ForeignCells:
    """Read a `.npy` or `.npz` file: a vector, a row per layer, or names of layers to vectors.

    Raises:
        CosmicError: If it holds anything else, or is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", layer_3=np.ones(2))
        ...     read_arrays(Path(folder, "a.npz")).cells
        {(3, None): tensor([1., 1.], dtype=torch.float64)}
    """
    try:
        held: Any = np.load(path, allow_pickle=False)
        arrays = dict(held) if isinstance(held, Mapping) else held
    except Exception as error:  # whatever a foreign file makes numpy raise
        raise CosmicError(f"file: {str(path)!r} is damaged, or holds no numbers ({first_line(error)})") from error
    return _by_names(path, arrays) if isinstance(arrays, dict) else ForeignCells(_plain(path, _tensor(path, arrays)))


def read_safetensors(path: Path) -> ForeignCells:
    """Read a `.safetensors` file that others wrote: a vector, a row per layer, or names of layers to vectors.

    Raises:
        CosmicError: If it holds anything else, or is damaged.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"blocks.3.hook_resid_post": torch.ones(2)}, f"{folder}/a.safetensors")
        ...     read_safetensors(Path(folder, "a.safetensors")).cells
        {(4, None): tensor([1., 1.])}
    """
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever a foreign file makes safetensors raise
        raise CosmicError(f"file: {str(path)!r} is damaged ({first_line(error)})") from error
    return _by_names(path, held)


def _tensor(path: Path, found: object, name: str = "") -> Tensor:
    """One tensor of floating-point numbers."""
    if isinstance(found, np.ndarray) and found.dtype.kind == "f":
        found = torch.from_numpy(found.astype(np.float64))
    if isinstance(found, Tensor) and found.is_floating_point() and found.layout == torch.strided:
        return found.detach()
    kind = getattr(found, "dtype", type(found).__name__)
    raise CosmicError(
        f"file: {str(path)!r} holds {kind}{f' ({name})' if name else ''}, and directions are floating-point tensors; save them"
    )


def _place(beside: Path) -> tuple[int, int]:
    """Layer and position of `direction.pt`."""
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        layer, position = said["layer"], said["pos"]
        check_whole_number("layer", layer)
        check_whole_number("pos", position)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CosmicError(
            f"file: {str(beside)!r} has no layer and pos ({first_line(error)}); fix or remove it"
        ) from error
    return layer, position


def _mean_diffs(path: Path, held: Tensor) -> ForeignCells:
    """Differences in means by position and layer."""
    sites = held if held.ndim == 4 else held[None]
    if len(sites) not in (1, 1 + len(_OTHER_SITES)):
        raise CosmicError(f"file: {str(path)!r} has shape {tuple(held.shape)}, expected (position, layer, d_model)")
    n_positions, n_layers, _ = sites[0].shape
    cells: Cells = {
        (layer, position): sites[0][position, layer] for layer in range(n_layers) for position in range(-n_positions, 0)
    }
    return ForeignCells(cells, _OTHER_SITES[: len(sites) - 1], "difference-in-means")


def _plain(path: Path, held: Tensor) -> Cells:
    """A vector whose place is not known, or a row per layer."""
    if held.ndim == 1:
        return {(None, None): held}
    if held.ndim == 2:
        return {(layer, None): row for layer, row in enumerate(held)}
    raise CosmicError(
        f"file: {str(path)!r} has shape {tuple(held.shape)}; give (d_model,) or (layer, d_model), call it mean_diffs.pt if it is "
        "(position, layer, d_model), or use Candidates.from_vectors"
    )


def _by_names(path: Path, held: Mapping[Any, Any]) -> ForeignCells:
    """A vector per layer; a single one may have any name."""
    tensors = {str(name): _tensor(path, one, str(name)) for name, one in held.items()}
    matches = {name: _LAYER.fullmatch(name) for name in tensors}
    if len(tensors) == 1 and not all(matches.values()):
        return ForeignCells(_plain(path, *tensors.values()))
    cells: Cells = {}
    for name, match in matches.items():
        if match is None:
            raise CosmicError(
                f"file: {str(path)!r} holds {name[:60]!r}; name vectors by layers, as layer_3 or blocks.3.hook_resid_pre"
            )
        bare, block, side = match.groups()
        # What leaves a block enters the next one.
        layer = int(bare or block) + (side == "post")
        if tensors[name].ndim != 1 or (layer, None) in cells:
            raise CosmicError(
                f"file: {str(path)!r} holds {name!r} of shape {tuple(tensors[name].shape)}; give a vector per layer"
            )
        cells[layer, None] = tensors[name]
    return ForeignCells(cells)
