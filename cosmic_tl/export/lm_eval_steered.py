"""The file of lm-eval's model `steered`: what to add to, or to set along a direction of, the outputs of modules."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.files import write_atomically
from cosmic_tl._util.foreign_formats import ForeignCells
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.foreign import reading
from cosmic_tl.export.formats import EXACT, IN_OTHER_ARITHMETIC, Format, Logits, Verdict
from cosmic_tl.export.places import module_places, modules_before
from cosmic_tl.interventions.edits import Addition, Edit
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge

EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "drop", "emb_dropout")
"""Modules whose output enters the first block, unless the model scales it first."""


class LmEvalSteered(Format):
    """A `.pt` file of plain dicts and tensors, a pickle by its nature; what is known of it is in a JSON file beside it."""

    name = "lm-eval"
    title = "steer_path of lm-eval's model `steered`"
    file, beside = "steered.pt", ".json"
    reader = "lm_eval"
    carries: ClassVar[Mapping[str, Verdict]] = dict.fromkeys(
        ("Addition", "Ablation", "AffineEdit", "AffineEverywhere"), EXACT
    )
    otherwise = Verdict("impossible", "it knows one direction per module")
    precision = IN_OTHER_ARITHMETIC

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file, and beside it what is known of it."""
        if path.suffix not in (".pt", ".pth"):
            raise CosmicError(f"out: found {path.name!r}; lm-eval takes files that end in .pt")
        n_layers, prefix = int(model.cfg.n_layers), f"{model.original_model.base_model_prefix}."
        points = edit.points(n_layers)
        before = modules_before(model, [layer for layer, site in points if site == "hook_resid_pre"])
        names: dict[str, Site] = {}
        for (layer, site), (name, _) in zip(points, module_places(model, points), strict=True):
            if (output := before[layer] if site == "hook_resid_pre" else name) is None:
                raise CosmicError(
                    f"edit: in {type(model.original_model).__name__} no module's output is the input of block {layer}, and "
                    "lm-eval edits outputs; use the format steer.py"
                )
            names[output] = site
        if foreign := [name for name in names if not name.startswith(prefix)]:
            raise CosmicError(
                f"edit: {foreign[0]} is not below the model's {prefix[:-1]}, where lm-eval looks; use steer.py"
            )
        # What is added goes along the unit vector, so that the coefficient has the same meaning in both.
        same = {"action": "add" if isinstance(edit, Addition) else "clamp", "head_index": None, "bias": None}
        entries = {
            name.removeprefix(prefix): same
            | {"steering_coefficient": float(found.offset[0]), "steering_vector": found.left[0].float().clone()}
            for name, site in names.items()
            for found in [edit.map_at(site)]
        }
        buffer = io.BytesIO()
        torch.save(entries, buffer)
        write_atomically(path, buffer.getvalue())
        write_atomically(self.files(path)[1], json.dumps(about, indent=1, ensure_ascii=False) + "\n")

    @contextmanager
    def applied(self, path: Path, model: TransformerBridge) -> Iterator[Logits]:
        """Run lm-eval's own class."""
        try:
            steered = import_module("lm_eval.models.hf_steered").SteeredModel
        except ImportError as error:
            raise CosmicError("reader: lm-eval is not installed; pip install 'cosmic_tl[capability]'") from error
        read(path)  # before lm-eval unpickles it
        plain: Any = plain_model(model)
        tokenizer = deepcopy(model.tokenizer)  # lm-eval gives it a padding token
        loaded = steered(pretrained=plain, steer_path=str(path), tokenizer=tokenizer, device=str(plain.device))
        yield lambda ids, _: loaded._model_call(ids)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a file, by module, read without running code from it.

    Raises:
        CosmicError: If it is anything but dicts of tensors and numbers.

    Example:
        >>> read(Path("nowhere.pt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.pt'; give the path of a file for lm-eval's steered
    """
    with reading(path, "a file for lm-eval's steered"):
        found = torch.load(path, weights_only=True, map_location="cpu")
        return {
            str(name): {**entry, "steering_vector": entry["steering_vector"].float()} for name, entry in found.items()
        }


def read_vectors(path: Path) -> ForeignCells:
    """The vectors of a file at our layers; the output of module `layers.N` is the input of block N + 1.

    A vector that is added has the length that lm-eval adds; one that is set has length 1. A file that takes one vector out of the
    outputs of many modules is an ablation at every layer: its vector has no layer of its own.

    Raises:
        CosmicError: If the file is anything but lm-eval's, or edits nothing in the stream.

    Example:
        >>> import tempfile
        >>> entry = {"steering_vector": torch.ones(4), "steering_coefficient": 2.0, "action": "add"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"layers.2": entry}, f"{folder}/steered.pt")
        ...     read_vectors(Path(folder, "steered.pt")).cells
        {(3, None): tensor([2., 2., 2., 2.])}
    """
    entries = read(path)
    vectors = {name: _vector(path, name, entry) for name, entry in entries.items()}
    layers = {name: _layer(name) if entry.get("head_index") is None else None for name, entry in entries.items()}
    placed = {layer: vectors[name] for name, layer in layers.items() if layer is not None}
    left_out = tuple(name for name, layer in layers.items() if layer is None)
    if len(placed) + len(left_out) < len(entries):
        raise CosmicError(f"file: {str(path)!r} edits the input of a block twice; keep one of each")
    actions = sorted({entry["action"] for entry in entries.values()})
    first, *others = vectors.values()
    if left_out and actions == ["clamp"] and all(torch.allclose(one, first, atol=1e-6) for one in others):
        return ForeignCells({(None, None): first}, (), "lm-eval clamp at every layer")
    cells: dict[tuple[int | None, int | None], Tensor] = {(layer, None): placed[layer] for layer in sorted(placed)}
    return ForeignCells(cells, left_out, f"lm-eval {' and '.join(actions)}")


def _layer(module: str) -> int | None:
    """The block whose input is the output of a module; None for parts of blocks."""
    if (block := re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", module)) is not None:
        return int(block[1]) + 1
    return 0 if module.rpartition(".")[2] in EMBEDDINGS else None


def _vector(path: Path, name: str, entry: Mapping[str, Any]) -> Float[Tensor, " d_model"]:
    vector, action = entry["steering_vector"].detach(), entry.get("action")
    strength = entry.get("steering_coefficient", 1.0)
    if vector.ndim != 1 or action not in ("add", "clamp") or not isinstance(strength, int | float):
        raise CosmicError(
            f"file: {str(path)!r} has at {name[:60]!r} the action {action!r}, strength {strength!r} and a vector of shape "
            f"{tuple(vector.shape)}; lm-eval adds or clamps one of shape (d_model,)"
        )
    scaled: Tensor = vector * strength if action == "add" else vector / vector.norm()
    return scaled
