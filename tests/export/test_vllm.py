"""Files for vLLM's plugins: read back, and their arithmetic done at the place where the reader would do it.

The readers need a GPU. Their types stand here with the fields and checks of the published ones: vllm-lens 7d252f7,
EasySteer 312c6d8, vLLM-Hook 631b0f9.
"""

import json
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_exporting import edits

from cosmic_tl import CosmicError, load_model
from cosmic_tl.export import check_export, export_edit, format_table
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.names import FORMATS
from cosmic_tl.export.vllm_hook import read_vector
from cosmic_tl.interventions.orthogonalize import orthogonalize_weights
from cosmic_tl.interventions.steer import steering

IDS = torch.tensor([[5, 77, 300, 12, 9]])
ONE_LAYER = ("Addition", "AffineEdit", "SubspaceEdit", "MapEdit")


@dataclass
class SteeringVector:
    activations: torch.Tensor
    layer_indices: list
    scale: float = 1.0
    norm_match: bool = False
    position_indices: list | None = None

    def __post_init__(self):
        assert self.activations.ndim in (2, 3) and self.activations.shape[0] == len(self.layer_indices)


@dataclass
class Hook:
    fn: object
    layer_indices: list
    pre: bool = False

    def __post_init__(self):
        assert callable(self.fn) and self.layer_indices


@dataclass
class ApplySpec:
    prompt: str | None = None
    generation: str | None = None

    def __post_init__(self):
        assert {self.prompt, self.generation} <= {"all", None} and (self.prompt or self.generation)


@dataclass
class VectorSpec:
    apply: ApplySpec
    data: object
    algorithm: str = "direct"
    scale: float = 1.0
    layers: list | None = None
    normalize: bool = False

    def __post_init__(self):
        assert self.algorithm == {DirectionVector: "direct", LinearMap: "linear"}[type(self.data)]
        assert self.layers or self.algorithm == "direct"


@dataclass
class SteeringSpec:
    vectors: list
    conflict: str = "priority"


@dataclass
class DirectionVector:
    layers: dict

    def __post_init__(self):
        assert self.layers and all(one.ndim == 1 and one.isfinite().all() for one in self.layers.values())


@dataclass
class LinearMap:
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __post_init__(self):
        assert self.weight.ndim == 2 and self.weight.shape[0] == self.weight.shape[1] == len(self.bias)


@pytest.fixture(autouse=True)
def published_types(monkeypatch):
    for name in ("vllm", "vllm_lens", "vllm.steer_vectors"):
        module = ModuleType(name)
        for kind in (SteeringVector, Hook, ApplySpec, VectorSpec, SteeringSpec, DirectionVector, LinearMap):
            setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)


def hooked(model, after=(), before=()):
    """Logits of the plain model with functions of the stream after, or before, some blocks."""
    plain = plain_model(model)

    def leaving(edit):
        return lambda module, args, output: edit(output)

    def entering(edit):
        return lambda module, args: (edit(args[0]), *args[1:])

    for block, edit in after:
        plain.model.layers[block].register_forward_hook(leaving(edit))
    for block, edit in before:
        plain.model.layers[block].register_forward_pre_hook(entering(edit))
    with torch.inference_mode():
        return plain(IDS).logits


def ours(model, edit):
    with torch.inference_mode(), steering(model, edit):
        return model(IDS)


def close(a, b):
    return torch.allclose(a, b, atol=1e-4)


def in_lens(model, path, shift=0):
    """Vectors are added to what blocks give; hooks get a request's tokens, (seq, d_model), after or before blocks."""
    args = runpy.run_path(str(path))["extra_args"]()
    after, before = [], []
    for one in args.get("apply_steering_vectors", []):
        assert not one.norm_match and one.position_indices is None
        pairs = zip(one.layer_indices, one.activations, strict=True)
        after += [(k + shift, lambda x, v=v, s=one.scale: x + v * s) for k, v in pairs]
    for one in args.get("apply_hooks", []):
        places = before if one.pre else after
        places += [(k + shift, lambda x, fn=one.fn: fn(None, x[0])[None]) for k in one.layer_indices]
    return hooked(model, after, before)


def in_easysteer(model, path, shift=0):
    """The sum of both halves of the stream after a block is transformed."""
    [vector] = runpy.run_path(str(path))["spec"]().vectors
    assert vector.scale == 1 and not vector.normalize and vector.apply == ApplySpec("all", "all")
    if isinstance(vector.data, DirectionVector):
        assert set(vector.layers) == set(vector.data.layers)
        return hooked(model, [(k + shift, lambda x, v=v: x + v) for k, v in vector.data.layers.items()])
    return hooked(model, [(k + shift, lambda x: x @ vector.data.weight.T + vector.data.bias) for k in vector.layers])


def in_hook(model, path, shift=0, *, whole=False):
    """What a block gives is the MLP's output and the rest, and the rest is edited; or the whole, for some models."""
    steering_config = json.loads(path.read_text())["steering"]
    found, block = read_vector(Path(steering_config["vector_path"])), steering_config["optimal_layer"] + shift
    assert steering_config["apply_at_all_positions"] is True
    plain, mlp = plain_model(model), []

    def edit(x):
        if steering_config["method"] == "add_vector":
            return x + steering_config["coefficient"] * found["dir"]
        return x + (found["avg_proj"] - x @ found["dir"]).unsqueeze(-1) * found["dir"]

    plain.model.layers[block].mlp.register_forward_hook(lambda module, args, output: mlp.append(output))
    plain.model.layers[block].register_forward_hook(
        lambda module, args, output: edit(output) if whole else mlp[-1] + edit(output - mlp[-1])
    )
    with torch.inference_mode():
        return plain(IDS).logits


@pytest.mark.parametrize(("to", "run", "layers"), [("vllm-lens", in_lens, (0, 2)), ("easysteer", in_easysteer, (1, 2))])
@pytest.mark.parametrize("model_type", ["demo", "gemma2"])
def test_an_edit_of_one_layer_is_the_same_where_the_reader_puts_it(
    to, run, layers, model_type, demo, save_model, tmp_path
):
    model = demo if model_type == "demo" else load_model(save_model(tmp_path / "model", model_type), device="cpu")
    for layer in layers:
        for kind in ONE_LAYER:
            edit = edits(model, layer)[kind]
            exported = export_edit(model, edit, to, tmp_path / f"{kind}_{layer}.py")
            assert exported.verdict.status == "exact"
            assert close(run(model, exported.path), ours(model, edit)), (kind, layer)
            assert not torch.allclose(
                run(model, exported.path, shift=1 if layer < 2 else -1), ours(model, edit), atol=1e-2
            )
    with pytest.raises(CosmicError, match=f"reader: {FORMATS[to].reader} needs a GPU and vLLM; the file was checked"):
        check_export(model, exported, ["hello"], max_new_tokens=1)


def test_ablation_between_blocks_is_approximate(demo, tmp_path):
    edit = edits(demo)["Ablation"]
    exported = export_edit(demo, edit, "vllm-lens", tmp_path / "steer.py")
    assert exported.verdict.status == "approximate" and exported.verdict.why
    off, effect = (
        (one - ours(demo, edit)).square().mean().sqrt() for one in (in_lens(demo, exported.path), hooked(demo))
    )
    assert 1e-3 < off < effect / 2
    with pytest.raises(
        CosmicError, match=r"easysteer cannot carry Ablation \(it edits what blocks give, .+; use the format"
    ):
        export_edit(demo, edit, "easysteer", tmp_path / "easy.py")


def test_vllm_hook_adds_exactly_and_edits_all_but_what_the_mlp_wrote(demo, save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", "llama"), device="cpu")
    addition, affine = edits(model, 2)["Addition"], edits(model, 2)["AffineEdit"]
    exported = export_edit(model, addition, "vllm-hook", tmp_path / "add.json", contrast="refusal")
    assert exported.verdict.status == "exact" and close(in_hook(model, exported.path), ours(model, addition))
    assert not torch.allclose(in_hook(model, exported.path, -1), ours(model, addition), atol=1e-2)
    assert json.loads(exported.path.read_text())["cosmic_tl"]["contrast_set"] == "refusal"
    exported = export_edit(model, affine, "vllm-hook", tmp_path / "affine.json")
    assert exported.verdict.status == "approximate" and "MLP" in exported.verdict.why
    assert close(in_hook(model, exported.path, whole=True), ours(model, affine))
    assert not torch.allclose(in_hook(model, exported.path), ours(model, affine), atol=1e-2)
    assert not torch.allclose(in_hook(model, exported.path, -1, whole=True), ours(model, affine), atol=1e-2)
    orthogonalize_weights(model, affine.direction, layers=[1])  # so that its MLP writes nothing along the direction
    assert close(in_hook(model, exported.path), ours(model, affine))


def test_places_that_a_reader_does_not_have_are_refused(demo, save_model, tmp_path):
    gpt2 = load_model(save_model(tmp_path / "model", "gpt2"), device="cpu")
    with pytest.raises(
        CosmicError, match=r"vllm-lens looks for blocks at model.layers.0, and here they are at transformer.h.0"
    ):
        export_edit(gpt2, edits(gpt2, 1)["Addition"], "vllm-lens", tmp_path / "steer.py")
    export_edit(gpt2, edits(gpt2, 1)["Addition"], "easysteer", tmp_path / "steer.py")
    for to, out in (("easysteer", "a.py"), ("vllm-hook", "a.json")):
        with pytest.raises(CosmicError, match=r"cannot carry Addition \(it acts from layer 1 on\)"):
            export_edit(demo, edits(demo, 0)["Addition"], to, tmp_path / out)
    for kind in ("Ablation", "SubspaceEdit", "MapEdit"):
        with pytest.raises(CosmicError, match=r"\(it knows one direction at one layer\); use the format steer.py"):
            export_edit(demo, edits(demo, 3)[kind], "vllm-hook", tmp_path / "a.json")
    with pytest.raises(CosmicError, match=r"out: found 'a.pt'; vLLM-Hook's configuration is a .json file"):
        export_edit(demo, edits(demo, 3)["Addition"], "vllm-hook", tmp_path / "a.pt")
    table = format_table().set_index(["format", "edit"])
    assert (
        table.loc["easysteer", "AffineEdit"]["where"] == table.loc["vllm-hook", "Addition"]["where"] == "layers from 1"
    )


@pytest.mark.parametrize(
    ("tokens", "apply"), [("prompt", ApplySpec("all", None)), ("completion", ApplySpec(None, "all"))]
)
def test_easysteer_knows_prompt_and_completion(tokens, apply, demo, tmp_path):
    edit = edits(demo, 3, tokens=tokens)["AffineEdit"]
    exported = export_edit(demo, edit, "easysteer", tmp_path / "steer.py")
    assert runpy.run_path(str(exported.path))["spec"]().vectors[0].apply == apply
    with pytest.raises(CosmicError, match="tokens: vllm-lens edits all tokens"):
        export_edit(demo, edit, "vllm-lens", tmp_path / "lens.py")


def test_a_torch_file_that_is_another_thing_is_refused(tmp_path):
    for content in ({"dir": torch.ones(2, 2)}, {"vector": torch.ones(2)}, [1]):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(CosmicError, match=r"is not a vector for vLLM-Hook \(.+\); export it again"):
            read_vector(tmp_path / "a.pt")
