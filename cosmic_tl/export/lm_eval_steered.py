"""The file of lm-eval's model `steered`: what to add to, or to set along a direction of, the outputs of modules."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from cosmic_tl._util.files import write_atomically
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.formats import EXACT, Format, Logits, Verdict
from cosmic_tl.export.places import module_before, module_places
from cosmic_tl.interventions.edits import Addition, Edit
from cosmic_tl.model.load import TransformerBridge


class LmEvalSteered(Format):
    """A `.pt` file of plain dicts and tensors, a pickle by its nature; what is known of it is in a JSON file beside it."""

    name = "lm-eval"
    title = "steer_path of lm-eval's model `steered`"
    file = "steered.pt"
    reader = "lm_eval"
    carries: ClassVar[Mapping[str, Verdict]] = {"Addition": EXACT, "Ablation": EXACT, "AffineEdit": EXACT}
    otherwise = Verdict("impossible", "it knows one direction per module")

    def files(self, path: Path) -> tuple[Path, ...]:
        """The file, and what is known of it."""
        return path, path.with_name(f"{path.name}.json")

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file, and beside it what is known of it."""
        if path.suffix not in (".pt", ".pth"):
            raise CosmicError(f"out: found {path.name!r}; lm-eval takes files that end in .pt")
        n_layers, prefix = int(model.cfg.n_layers), f"{model.original_model.base_model_prefix}."
        names = []
        for layer, site in edit.points(n_layers):
            if site != "hook_resid_pre":
                names += [name for name, _ in module_places(model, [(layer, site)])]
            elif layer == 0 or edit.place[0] >= 0:  # elsewhere an ablation has taken it from all that was added before
                if (before := module_before(model, layer)) is None:
                    raise CosmicError(
                        f"edit: in {type(model.original_model).__name__} no module's output is the input of block {layer}, and "
                        "lm-eval edits outputs; use the format steer.py"
                    )
                names.append(before)
        if foreign := [name for name in names if not name.startswith(prefix)]:
            raise CosmicError(
                f"edit: {foreign[0]} is not below the model's {prefix[:-1]}, where lm-eval looks; use steer.py"
            )
        how: dict[str, Any] = {"action": "clamp", "steering_coefficient": float(edit.map.offset[0])}
        if isinstance(edit, Addition):
            how["action"] = "add"  # along the unit vector, so that the coefficient has the same meaning
        entry = how | {"steering_vector": edit.map.left[0].float().clone(), "head_index": None, "bias": None}
        buffer = io.BytesIO()
        torch.save({name.removeprefix(prefix): entry for name in names}, buffer)
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
        loaded = steered(pretrained=plain, steer_path=str(path), tokenizer=model.tokenizer, device=str(plain.device))
        yield lambda ids, _: loaded._model_call(ids)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a file, by module, read without running code from it.

    Raises:
        CosmicError: If it is anything but dicts of tensors and numbers.

    Example:
        >>> read(Path("nowhere.pt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: 'nowhere.pt' is not lm-eval's (...); export it again
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
        return {
            str(name): {**entry, "steering_vector": entry["steering_vector"].float()} for name, entry in found.items()
        }
    except Exception as error:  # whatever a foreign file makes torch raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CosmicError(f"file: {str(path)!r} is not lm-eval's ({first}); export it again") from error
