"""Objects of the package `steering-vectors`, which has no file format: a safetensors file, and how to load it there."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.sealed import read_sealed, write_sealed
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.block_outputs import added, block_before
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.control_vector import check_suffix
from cosmic_tl.export.foreign import ForeignVectors, reading, sorted_out
from cosmic_tl.export.formats import EXACT, Format, Logits, Verdict
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.load import TransformerBridge

FORMAT = "cosmic_tl/steering-vectors/1"
LAYER_TYPE = "decoder_block"


class SteeringVectors(Format):
    """A safetensors file with a tensor `layer.L` for each block whose output is added to, α folded in.

    There, with `to_steering_vector` or without this package::

        from safetensors.torch import load_file
        from steering_vectors import SteeringVector

        tensors = load_file("steering_vector.safetensors")
        vector = SteeringVector({int(name.removeprefix("layer.")): tensor for name, tensor in tensors.items()})
        with vector.apply(model):  # a plain transformers model
            ...
    """

    name = "steering-vectors"
    title = "vector for the package steering-vectors (safetensors)"
    file = "steering_vector.safetensors"
    reader = "steering_vectors"
    carries: ClassVar[Mapping[str, Verdict]] = {"Addition": EXACT}
    first_layer = 1
    otherwise = Verdict("impossible", "it is added to the stream, whatever is there")

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file; what is known of it is in its header."""
        check_suffix(path, ".safetensors", self.name)
        block = block_before(model, edit)
        settings = {"format": FORMAT, "layer_type": LAYER_TYPE, "n_layers": int(model.cfg.n_layers), **about}
        write_sealed(path, {f"layer.{block}": added(edit)}, settings)

    @contextmanager
    def applied(self, path: Path, model: TransformerBridge) -> Iterator[Logits]:
        """Run the package's own `apply` on a plain model."""
        plain: Any = plain_model(model)
        with to_steering_vector(path).to(plain.device).apply(plain):
            yield lambda ids, _: plain(ids).logits


@checked
def to_steering_vector(path: str | Path) -> Any:
    """A `steering_vectors.SteeringVector` from a file that was exported for it.

    Args:
        path: The file.

    Returns:
        The package's own object: `with to_steering_vector(path).apply(model): …` on a plain `transformers` model.

    Raises:
        CosmicError: If the package is not installed, or the file is missing, damaged or another.

    Example:
        >>> to_steering_vector("nowhere.safetensors")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.safetensors'; give the path of a file for steering-vectors
    """
    _, found = _read(Path(path))
    try:
        kind = import_module("steering_vectors").SteeringVector
    except ImportError as error:
        raise CosmicError(
            "reader: steering-vectors is not installed; pip install --no-deps steering-vectors (it asks for transformers 4, and "
            "runs with 5)"
        ) from error
    return kind(layer_activations=found, layer_type=LAYER_TYPE)


def _read(path: Path) -> tuple[dict[str, Any], dict[int, Tensor]]:
    with reading(path, "a file for steering-vectors"):
        settings, tensors = read_sealed(path)
        if (form := settings.get("format")) != FORMAT:
            raise ValueError(f"its format is {form!r} and not {FORMAT!r}")
        if odd := [name for name in tensors if not re.fullmatch(r"layer\.[0-9]{1,6}", name)]:
            raise ValueError(f"it has a tensor {odd[0]!r}")
        return settings, {int(name.removeprefix("layer.")): tensor for name, tensor in tensors.items()}


def read(path: Path, n_layers: int | None = None) -> ForeignVectors:
    """The vectors of a file for steering-vectors, by our layer; no code is run.

    Args:
        path: The file.
        n_layers: Number of blocks of the model, by which its last one is known. Defaults to None: as the file says.

    Returns:
        `layer.L` at layer L + 1: what is added at multiplier 1.

    Raises:
        CosmicError: If it is missing, damaged or another.

    Example:
        >>> read(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.safetensors'; give the path of a file for steering-vectors
    """
    settings, found = _read(path)
    with reading(path, "a file for steering-vectors"):
        return sorted_out(
            found,
            shift=1,
            n_layers=n_layers or int(settings["n_layers"]),
            name="layer.",
            method=settings.get("method"),
            model=settings.get("model"),
        )
