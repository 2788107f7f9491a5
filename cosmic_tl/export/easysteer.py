"""EasySteer: a direction vector or a linear map, as a specification for its fork of vLLM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from cosmic_tl.export.formats import EDITS, EXACT, Verdict
from cosmic_tl.export.scripts import write_script
from cosmic_tl.export.vllm_format import VllmFormat
from cosmic_tl.interventions.edits import Addition, Edit
from cosmic_tl.model.load import TransformerBridge

SCRIPT = '''"""{about}

    from vllm import LLM
    from {stem} import spec
    LLM(…, enable_steer_vector=True, steer_algorithms=["{algorithm}"]).generate(prompts, steering=spec())  # EasySteer's vLLM
"""

from pathlib import Path

from safetensors.torch import load_file
from vllm.steer_vectors import ApplySpec, {payload}, SteeringSpec, VectorSpec

BLOCKS = {blocks}  # whose outputs are edited: what enters block l is what block l - 1 gives
APPLY = {apply}


def spec(file=Path(__file__).with_suffix(".safetensors")):
    tensors = load_file(file)
    vector = VectorSpec(data={data}, algorithm="{algorithm}", layers=BLOCKS, apply=ApplySpec(**APPLY))
    return SteeringSpec(vectors=[vector])
'''
APPLY = {
    "all": {"prompt": "all", "generation": "all"},
    "prompt": {"prompt": "all"},
    "completion": {"generation": "all"},
}
INSIDE = Verdict("impossible", "it edits what blocks give, not what enters the first one or is added within one")


class EasySteer(VllmFormat):
    """A script that makes EasySteer's `SteeringSpec`, and a safetensors file.

    EasySteer adds up the two halves that many vLLM models split the stream into, transforms the sum and writes the difference to
    one half, so that a map of the whole stream is exact. A `LinearMap` is a full matrix, of `d_model` squared numbers.
    """

    name = "easysteer"
    title = "EasySteer direction vector or linear map, for vLLM"
    file, beside = "steer_easysteer.py", ".safetensors"
    reader = "EasySteer"
    carries: ClassVar[Mapping[str, Verdict]] = dict.fromkeys(EDITS, EXACT) | {
        "Ablation": INSIDE,
        "AffineEverywhere": INSIDE,
        "SubspaceAblation": INSIDE,
    }
    scopes = tuple(APPLY)

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the script, and beside it its tensors."""
        left, right, offset = (one.double() for one in (edit.map.left, edit.map.right, edit.map.offset))
        constant = offset @ left
        if isinstance(edit, Addition):
            data, algorithm, tensors = (
                'DirectionVector(dict.fromkeys(BLOCKS, tensors["vector"]))',
                "direct",
                {"vector": constant},
            )
        else:
            data, algorithm = 'LinearMap(tensors["weight"], tensors["bias"])', "linear"
            tensors = {"weight": torch.eye(left.shape[1], dtype=torch.float64) - left.T @ right, "bias": constant}
        text = (
            SCRIPT.replace("{payload}", data.partition("(")[0])
            .replace("{blocks}", str([edit.place[0] - 1]))
            .replace("{apply}", str(APPLY[str(edit.tokens)]))
            .replace("{data}", data)
            .replace("{algorithm}", algorithm)
        )
        write_script(path, text, tensors, about, "cosmic_tl/easysteer/1")
