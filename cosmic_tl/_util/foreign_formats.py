"""Files that other tools wrote, and what reads them: by name, since the readers are in rooms above."""

import json
from dataclasses import dataclass, replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from cosmic_tl._util.sealed import DAMAGE
from cosmic_tl.errors import CosmicError

READERS = {
    ".gguf": "export.control_vector:read",
    ".npy": "export.published:read_arrays",
    ".npz": "export.published:read_arrays",
    ".pt": "export.published:read_torch",
    ".pth": "export.published:read_torch",
    ".safetensors": "export.published:read_safetensors",
    ".svec": "export.svec:read",
}
"""Ending of a file's name to the function of `cosmic_tl` that reads it."""
PROJECTIVE = "export.glp:read"
"""For a `.gguf` that says how it projects."""
SEALED = {"cosmic_tl/steering-vectors/1": "export.steering_vectors:read"}
"""The same for files that were written here for another tool, by the format in their header."""
RUN = "runs.result:Run.load"
"""For the directory of a run."""
_HEADER = 1 << 20
"""Bytes in which a GGUF file has said what it is; tensors come last."""

_ANY_DEPTH = 1 << 30


@dataclass(frozen=True, eq=False)
class ForeignCells:
    """The vectors of a file that another tool wrote, by our layer (the input of block l) and position."""

    cells: dict[tuple[int | None, int | None], Float[Tensor, " d_model"]]
    """None where the file says no layer, or no position."""
    left_out: tuple[str, ...] = ()
    """What has no place here, such as the output of the last block."""
    method: str = ""
    """How they were made, as far as the file says."""
    model: str = ""
    """The model that they were made for, as far as the file says."""


def is_foreign(path: Path) -> bool:
    """Whether a file is another tool's, going by the end of its name; a file of ours is none, whatever its name.

    Example:
        >>> is_foreign(Path("vectors.gguf")), is_foreign(Path("vectors"))
        (True, False)
    """
    return _reader(path) is not None


def _reader(path: Path) -> str | None:
    """The function that reads a file; None for those that belong to `Direction` or a result."""
    suffix = path.suffix.lower()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except DAMAGE:  # no safetensors, or damaged: then it may have been ours
        return None if suffix == ".safetensors" else _by_suffix(path, suffix)
    # A changed byte must not make a file of ours one of theirs.
    if "settings" in metadata or any("cosmic_tl" in text for one in metadata.items() for text in one):
        try:
            return SEALED.get(json.loads(metadata["settings"])["format"])
        except DAMAGE:
            return None
    return READERS[suffix] if suffix == ".safetensors" else None


def _by_suffix(path: Path, suffix: str) -> str | None:
    if suffix == ".gguf" and path.is_file():
        with path.open("rb") as file:
            if b"glp.mode" in file.read(_HEADER):
                return PROJECTIVE
    return READERS.get(suffix)


def read_foreign(path: Path, n_layers: int | None = None) -> ForeignCells:
    """What a file of another tool holds.

    Args:
        path: The file.
        n_layers: Layers of the model. Defaults to None: as far as the file says.

    Raises:
        CosmicError: If it is damaged, or is not what its name says, or holds nothing that has a place here.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.ones(3))
        ...     read_foreign(Path(folder, "a.npy")).cells
        {(None, None): tensor([1., 1., 1.], dtype=torch.float64)}
    """
    if (reader := _reader(path)) is None:
        raise CosmicError(
            f"file: {str(path)!r} is of no known format; give one that ends in {', '.join(sorted(READERS))}"
        )
    # Where the depth is known, no reader has to infer it from the file, and what is too deep for the model is an error.
    depth = () if n_layers is None or reader.startswith("export.published:") else (_ANY_DEPTH,)
    found = by_name(reader)(path, *depth)
    if not isinstance(found, ForeignCells):
        by_layer: Any = {(layer, None): vector for layer, vector in found.vectors.items()}
        found = ForeignCells(by_layer, found.left_out, found.method, found.model)
    if odd := [cell for cell, vector in found.cells.items() if not vector.isfinite().all()]:
        place = "" if odd[0][0] is None else f" at layer {odd[0][0]}"
        raise CosmicError(f"file: {str(path)!r} holds NaN or infinite values{place}; make it again")
    # Such are the differences in means before the first block, where the template's tokens are the same in all prompts.
    cells = {cell: vector for cell, vector in found.cells.items() if vector.any()}
    left_out = found.left_out
    if any(cell[0] == n_layers is not None for cell in cells):
        # Hidden states have one more row than blocks, and whoever counts outputs has one for the last block.
        cells = {cell: vector for cell, vector in cells.items() if cell[0] != n_layers}
        left_out = (*left_out, f"layer {n_layers}, the output of the last block")
    if not cells:
        raise CosmicError(
            f"file: {str(path)!r} holds no vector that has a place here"
            f"{f' (left out: {some(left_out)})' if left_out else ', or only zeros'}; give another file"
        )
    return replace(found, cells=cells, left_out=left_out)


def some(names: tuple[str, ...]) -> str:
    """The first names of a list, for a message.

    Example:
        >>> some(("direction.31",)), some(("a", "b", "c", "d"))
        ('direction.31', 'a, b, c, …')
    """
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)


def by_name(target: str) -> Any:
    """A function of a room above, imported when it is needed.

    Args:
        target: Module below `cosmic_tl`, a colon, and the name in it.

    Example:
        >>> by_name("runs.result:Run.load").__name__
        'load'
    """
    module, _, name = target.partition(":")
    return reduce(getattr, name.split("."), import_module(f"cosmic_tl.{module}"))
