"""vllm-lens: a steering vector, or a hook with any affine map, for `SamplingParams.extra_args`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cosmic_tl.export.formats import EDITS, EXACT, Verdict
from cosmic_tl.export.scripts import write_script
from cosmic_tl.export.vllm_format import VllmFormat
from cosmic_tl.interventions.edits import EVERYWHERE, Addition, Edit
from cosmic_tl.model.load import TransformerBridge

HEAD = '''"""{about}

    from vllm import LLM, SamplingParams
    from {stem} import extra_args
    LLM(…).generate(prompts, SamplingParams(extra_args=extra_args()))  # with vllm-lens installed
"""

from pathlib import Path

from safetensors.torch import load_file
'''
VECTOR = """from vllm_lens import SteeringVector


def extra_args(file=Path(__file__).with_suffix(".safetensors")):
    vector = SteeringVector(  # added to what block {block} gives, which enters block {layer}
        activations=load_file(file)["activations"],
        layer_indices=[{block}],
        scale=1.0,
        norm_match=False,
        position_indices=None,
    )
    return {"apply_steering_vectors": [vector]}
"""
HOOK = """from vllm_lens import Hook

PLACES = {places}  # layer_indices, and whether before these blocks (pre) or after them


def extra_args(file=Path(__file__).with_suffix(".safetensors")):
    tensors = load_file(file)
    factors = [tensors[name] for name in ("left", "right", "offset")]

    def edit(context, x):  # x' = x − leftᵀ (right x − offset); inside, so that it travels with its tensors
        left, right, offset = (factor.to(x.device) for factor in factors)
        wide = x.float()
        return (wide - (wide @ right.T - offset) @ left).to(x.dtype)

    return {"apply_hooks": [Hook(fn=edit, layer_indices=blocks, pre=pre) for blocks, pre in PLACES]}
"""
WITHIN_BLOCKS = Verdict(
    "approximate", "it edits between blocks, and within a block the MLP still reads what the attention wrote"
)


class VllmLens(VllmFormat):
    """A script that makes vllm-lens's `SteeringVector` or `Hook`, and a safetensors file.

    In vLLM what a block is given and gives is split in two for many models, and a hook before a block sees one half only. Before
    the first block there is one half; elsewhere the hook is after the block below, where vllm-lens adds the halves up.
    """

    name = "vllm-lens"
    title = "vllm-lens steering vector or hook, for vLLM"
    file, beside = "steer_vllm.py", ".safetensors"
    reader = "vllm-lens"
    carries: ClassVar[Mapping[str, Verdict]] = dict.fromkeys(EDITS, EXACT) | {
        "Ablation": WITHIN_BLOCKS,
        "AffineEverywhere": WITHIN_BLOCKS,
        "SubspaceAblation": WITHIN_BLOCKS,
    }
    blocks = ("model.layers.", "model.language_model.layers.", "model.decoder.layers.")
    first_layer = 0

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the script, and beside it its tensors."""
        layer, _ = edit.place
        if isinstance(edit, Addition) and layer > 0:
            text = VECTOR.replace("{block}", str(layer - 1)).replace("{layer}", str(layer))
            tensors = {"activations": (edit.map.offset.double() @ edit.map.left.double())[None]}
        else:
            places: list[tuple[list[int], bool]] = [([layer - 1], False)]
            if layer == 0:
                places = [([0], True)]
            elif edit.place == EVERYWHERE:
                places = [([0], True), (list(range(int(model.cfg.n_layers))), False)]
            text = HOOK.replace("{places}", str(places))
            tensors = {"left": edit.map.left, "right": edit.map.right, "offset": edit.map.offset}
        write_script(path, HEAD + text, tensors, about, "cosmic_tl/vllm-lens/1")
