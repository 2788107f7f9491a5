"""IBM activation-steering's `.svec`: JSON of vectors, which its `MalleableModel.steer` adds to the inputs of blocks."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch

from cosmic_tl._util.files import write_atomically
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.block_outputs import added
from cosmic_tl.export.control_vector import check_suffix
from cosmic_tl.export.foreign import ForeignVectors, reading, sorted_out
from cosmic_tl.export.formats import EXACT, Format, Logits, Verdict
from cosmic_tl.export.places import module_places
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.load import TransformerBridge

SUFFIX = ".svec"


class Svec(Format):
    """A `.svec` file: `MalleableModel.steer(behavior_vector=SteeringVector.load(…), behavior_layer_ids=[l])` adds it at layer l.

    The strength is 1, its default. That tool edits the first sequence of a batch only.
    """

    name = "svec"
    title = "steering vector of IBM's activation-steering"
    file = "vector.svec"
    reader = "activation_steering"
    carries: ClassVar[Mapping[str, Verdict]] = {"Addition": EXACT}
    otherwise = Verdict("impossible", "it is added to the stream, whatever is there")

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file; what is known of it is under its key `cosmic_tl`."""
        check_suffix(path, SUFFIX, self.name)
        layer, _ = edit.place
        [(block, _)] = module_places(model, [(layer, "hook_resid_pre")])
        if block != f"model.layers.{layer}":
            raise CosmicError(
                f"edit: activation-steering finds blocks at model.layers alone, and here they are at {block.rpartition('.')[0]}; "
                "use the format steer.py"
            )
        content = {
            "model_type": str(model.original_model.config.model_type),
            "directions": {str(layer): added(edit).tolist()},
            "explained_variances": {str(layer): 1.0},
            "cosmic_tl": dict(about),
        }
        write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")

    def applied(self, path: Path, model: TransformerBridge) -> AbstractContextManager[Logits]:
        """The tool does not run here."""
        raise CosmicError(
            "reader: activation-steering is on no package index and takes transformers 4; use the format steering-vectors or "
            "steer.py to have the same addition checked"
        )


def read(path: Path, n_layers: int | None = None) -> ForeignVectors:
    """The vectors of a `.svec` file, whoever wrote it, by the layer at whose input they are added; no code is run.

    activation-steering finds the vector of a number at the *output* of that block and adds it to the block's *input*. What counts
    here is where it is added.

    Args:
        path: The file.
        n_layers: Number of blocks of the model; vectors of others are left out. Defaults to None: all are kept.

    Raises:
        CosmicError: If it is missing, damaged or none.

    Example:
        >>> read(Path("nowhere.svec"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.svec'; give the path of a steering vector of activation-steering
    """
    with reading(path, "a steering vector of activation-steering"):
        content = json.loads(path.read_bytes())
        found: dict[int, torch.Tensor] = {}
        for number, values in content["directions"].items():
            found[int(number)] = torch.tensor(values, dtype=torch.float64).float()
        about = content.get("cosmic_tl", {})
        return sorted_out(
            found,
            shift=0,
            n_layers=n_layers,
            name="the vector of layer ",
            method=about.get("method", "PCA (activation-steering)"),
            model=about.get("model") or content["model_type"],
        )
