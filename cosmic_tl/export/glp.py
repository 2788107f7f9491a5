"""Projective control vectors (GLP): GGUF whose fields say whether to add its vectors or to project them out."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cosmic_tl.errors import CosmicError
from cosmic_tl.export.block_outputs import added, block_before
from cosmic_tl.export.control_vector import ARCHITECTURE, FIRST, check_suffix, depth, hints
from cosmic_tl.export.foreign import ForeignVectors, reading, sorted_out
from cosmic_tl.export.formats import EXACT, Format, Logits, Verdict
from cosmic_tl.export.gguf_file import numbered, read_gguf, write_gguf
from cosmic_tl.interventions.edits import Addition, Edit
from cosmic_tl.model.load import TransformerBridge, short_label
from cosmic_tl.model.paths import GGUF

OUTPUTS = Verdict(
    "approximate", "at the outputs of blocks alone, from block 1 on; within a block the direction remains"
)
HOOK = "residual_stream_post_layer"


class Glp(Format):
    """A projective control vector, as weightless's plugins for vLLM and SGLang read it: `h − α (h·d) d` at outputs of blocks.

    Directions are unit vectors and α is a field of its own, as projection demands. What is added has its length instead, and 1 in
    that field: readers that know nothing of the field, as llama.cpp itself, then add the same.
    """

    name = "glp"
    title = "projective control vector (GLP, GGUF)"
    file = "projective.gguf"
    reader = "weightless"
    carries: ClassVar[Mapping[str, Verdict]] = {
        "Addition": EXACT,
        "Ablation": OUTPUTS,
        "SubspaceAblation": OUTPUTS,
    }
    otherwise = Verdict("impossible", "no field for the constant")
    first_layer = FIRST + 1

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file; beside GLP's own fields, what is known of it is in `cosmic_tl.…`."""
        check_suffix(path, GGUF, self.name)
        if isinstance(edit, Addition):
            blocks = [block_before(model, edit)]
            basis = added(edit)[None]
        else:
            if (n_layers := int(model.cfg.n_layers)) == 1:
                raise CosmicError(
                    "edit: glp has no place for block 0, the only one of the model; use the format steer.py"
                )
            blocks = list(range(FIRST, n_layers))
            basis = edit.map.left.float().cpu().contiguous()
        tensors = {
            f"direction.{block}" + (f".{k}" if k else ""): row.clone()
            for block in blocks
            for k, row in enumerate(basis)
        }
        rank = len(basis)
        fields = {
            "general.type": ARCHITECTURE,
            "general.base_model.count": 1,
            "general.base_model.0.name": short_label(model),
            "glp": {
                "mode": "add" if isinstance(edit, Addition) else "project",
                "spec_version": 1 if rank == 1 else 2,
                "alpha_default": np.float32(1.0),
                "rank": rank,
                "orthonormal": not isinstance(edit, Addition),
                "hook_point": HOOK,
                "derived_at": HOOK,
                "method": about.get("method", ""),
                "contrast": about.get("contrast_set", ""),
                "layer_ids_zero_based": ",".join(map(str, blocks)),
                "content_sha256": _content(tensors),
                "created": date.today().isoformat(),
            },
            "cosmic_tl": about,
        }
        write_gguf(path, ARCHITECTURE, hints(model) | fields, tensors)

    def applied(self, path: Path, model: TransformerBridge) -> AbstractContextManager[Logits]:
        """No reader of it runs here."""
        raise CosmicError(
            "reader: projective vectors are read by plugins for vLLM and SGLang (weightless), which are on no package index; use "
            "llama.cpp for an addition and lm-eval for an ablation to have it checked"
        )


def _content(tensors: Mapping[str, Tensor]) -> str:
    found = sha256()
    for tensor in tensors.values():
        found.update(tensor.numpy().astype("<f4").tobytes())
    return found.hexdigest()


def read(path: Path, n_layers: int | None = None) -> ForeignVectors:
    """The vectors of a projective control vector, or of one without its fields, which is for addition; no code is run.

    The last block's output has no place here, and is left out.

    Args:
        path: The file.
        n_layers: Number of blocks of the model, by which its last one is known. Defaults to None: by what the file says, if it
            has a vector for each block.

    Returns:
        `direction.L` at layer L + 1: what is added at strength 1, or the unit vectors that are projected out.

    Raises:
        CosmicError: If it is missing, damaged or none, of another place than the outputs of blocks, or has several directions per
            layer, which are a subspace.

    Example:
        >>> read(Path("nowhere.gguf"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.gguf'; give the path of a projective control vector
    """
    with reading(path, "a projective control vector"):
        fields, tensors = read_gguf(path)
        mode, hook, rank = (fields.get(f"glp.{name}") for name in ("mode", "hook_point", "rank"))
        if (kind := fields.get("general.architecture")) != ARCHITECTURE:
            raise ValueError(f"its architecture is {kind!r}")
        if mode not in (None, "add", "project") or hook not in (None, HOOK):
            raise ValueError(f"it has mode {mode!r} at {hook!r}")
        if rank not in (None, 1):
            raise ValueError(f"it has {rank} directions per layer, a subspace, and no single direction")
        if fields.get("glp.content_sha256", (real := _content(tensors))) != real:
            raise ValueError("its checksum is another")
        found = numbered(tensors)
        strength = float(fields.get("glp.alpha_default", 1.0)) if mode == "add" else 1.0
        method = fields.get("cosmic_tl.method") or fields.get("glp.method")
        return sorted_out(
            {block: vector if strength == 1 else torch.mul(vector, strength) for block, vector in found.items()},
            shift=1,
            n_layers=n_layers or depth(fields, found),
            name="direction.",
            method=f"{method or 'GLP'}, to be projected out" if mode == "project" else method,
            model=fields.get("cosmic_tl.model")
            or fields.get("general.base_model.0.name")
            or fields.get(f"{ARCHITECTURE}.model_hint"),
        )
