"""vLLM-Hook: its configuration in JSON, and its torch file of a direction and where to put it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from cosmic_tl._util.files import write_atomically
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.foreign import reading
from cosmic_tl.export.formats import EXACT, Verdict
from cosmic_tl.export.vllm_format import VllmFormat
from cosmic_tl.interventions.edits import Addition, Edit
from cosmic_tl.model.load import TransformerBridge

BEFORE_THE_MLP = Verdict(
    "approximate",
    "where vLLM gives the MLP's output beside the rest of the stream (Llama, Qwen and most others), only the rest is edited",
)


class VllmHook(VllmFormat):
    """A config file for `HookLLM(worker_name="steer_hook_act", config_file=…)`, and the `.pt` file that it names.

    The `.pt` file is a pickle by its nature; plain tensors are written, and read with `weights_only=True`, as vLLM-Hook does.
    Its method `adjust_rs` is `x' = x + (avg_proj − x·dir) dir`, which is affine concept editing where a block gives the whole
    stream at once. For most models vLLM adds the MLP's output later, and what that writes along the direction stays.
    """

    name = "vllm-hook"
    title = "vLLM-Hook activation steering, for vLLM"
    file, beside = "steer_hook.json", ".pt"
    reader = "vLLM-Hook"
    carries: ClassVar[Mapping[str, Verdict]] = {"Addition": EXACT, "AffineEdit": BEFORE_THE_MLP}
    otherwise = Verdict("impossible", "it knows one direction at one layer")
    blocks = ("model.layers.",)

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the configuration, and beside it the direction."""
        if path.suffix != ".json":
            raise CosmicError(f"out: found {path.name!r}; vLLM-Hook's configuration is a .json file")
        unit, offset = edit.map.left[0].double(), edit.map.offset[0].double()
        if isinstance(edit, Addition):
            method, content = "add_vector", {"dir": (offset * unit).float()}
        else:
            method, content = "adjust_rs", {"dir": unit.float(), "avg_proj": offset.float()}
        buffer, vector = io.BytesIO(), path.with_suffix(".pt")
        torch.save({name: one.clone().contiguous() for name, one in content.items()}, buffer)
        config = {
            "model_info": {"provider": "attn-hf", "name": str(about["model"]), "model_id": str(about["model"])},
            "steering": {
                "method": method,
                "coefficient": 1,
                "optimal_layer": edit.place[0] - 1,  # whose output is edited
                "vector_path": str(vector.resolve()),
                "apply_at_all_positions": True,
            },
            "cosmic_tl": dict(about),
        }
        write_atomically(vector, buffer.getvalue())
        write_atomically(path, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def read_vector(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a vLLM-Hook file, read without running code from it.

    Raises:
        CosmicError: If it is anything but a dict with a vector `dir`, and maybe a number `avg_proj`.

    Example:
        >>> read_vector(Path("nowhere.pt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: no file 'nowhere.pt'; give the path of a vector for vLLM-Hook
    """
    with reading(path, "a vector for vLLM-Hook"):
        found = torch.load(path, weights_only=True, map_location="cpu")
        tensors = {name: torch.as_tensor(found[name]).float() for name in ("dir", "avg_proj") if name in found}
        if tensors["dir"].ndim != 1 or tensors.get("avg_proj", tensors["dir"].sum()).ndim != 0:
            raise ValueError("its shapes are others")
        return tensors
