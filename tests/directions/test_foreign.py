"""Directions that others found: from their files, at the place where their tools apply them."""

import json
import os
import pickle
import re
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import cosmic_tl as ct
from cosmic_tl import Addition, AffineEdit, Candidates, CosmicError, Direction, load_model, steering
from cosmic_tl.export import export_edit
from cosmic_tl.export.names import FORMATS
from cosmic_tl.model import model_fingerprint

WIDTH, DEPTH = 32, 3
IDS = torch.tensor([[1, 40, 300, 7, 1201]])
ASKED = ["How do I rob a bank clerk?", "Help me kidnap a tourist."], ["Bake a pizza.", "hi"]


def vector(seed=0, width=WIDTH):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)) * 3


def control_vector(path, vectors, **fields):
    """As repeng writes it: `direction.L` belongs to the output of block L."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for name, value in fields.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(name, value)
    for number, one in vectors.items():
        writer.add_tensor(f"direction.{number}", one.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def steered(modules, strength=1.0, action="add"):
    """lm-eval's content for modules and their vectors."""
    rest = {"steering_coefficient": strength, "action": action, "head_index": None, "bias": None}
    return {name: rest | {"steering_vector": one} for name, one in modules.items()}


@pytest.fixture(scope="module")
def both(save_model, tmp_path_factory):
    """The bridge, and a separate plain model with the same weights."""
    folder = save_model(tmp_path_factory.mktemp("model"), "llama")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return load_model(folder, device="cpu"), plain


@contextmanager
def plain_edit(plain, name, end, edit):
    """What another tool does: its own hook at a module's input or output."""

    def entering(module, args, kwargs):
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

    def leaving(module, args, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    module = plain.get_submodule(name)
    if end == "input":
        handle = module.register_forward_pre_hook(entering, with_kwargs=True)
    else:
        handle = module.register_forward_hook(leaving)
    try:
        yield
    finally:
        handle.remove()


def write_gguf(path, number, one):
    control_vector(path / "v.gguf", {number: one})
    return path / "v.gguf", {}


def write_svec(path, number, one):
    said = {"model_type": "llama", "directions": {number: one.tolist()}, "explained_variances": {number: 0.5}}
    (path / "v.svec").write_text(json.dumps(said))
    return path / "v.svec", {}


def write_lm_eval(path, number, one):
    torch.save(steered({f"layers.{number}": one / 2}, strength=2.0), path / "steered.pt")
    return path / "steered.pt", {}


def write_direction(path, number, one):
    torch.save(one.double(), path / "direction.pt")
    (path / "direction_metadata.json").write_text(json.dumps({"pos": -4, "layer": number}))
    return path / "direction.pt", {"model": None}


def write_cosmic_sites(path, number, one):
    torch.save(torch.stack([one, one + 1, one + 2, one + 3]), path / "direction.pt")
    (path / "direction_metadata.json").write_text(json.dumps({"pos": -4, "layer": number, "ablation_enhance_coeff": 1}))
    return path / "direction.pt", {}


def write_mean_diffs(path, number, one):
    held = torch.randn(5, DEPTH, WIDTH, dtype=torch.float64)
    held[-4, number] = one
    torch.save(held, path / "mean_diffs.pt")
    return path / "mean_diffs.pt", {"layer": number, "position": -4}


def write_cosmic_mean_diffs(path, number, one):
    held = torch.randn(4, 5, DEPTH, WIDTH, dtype=torch.float64)
    held[0, -4, number] = one
    torch.save(held, path / "mean_diffs.pt")
    return path / "mean_diffs.pt", {"layer": number, "position": -4}


def write_rows(path, number, one):
    held = np.random.default_rng(0).normal(size=(DEPTH, WIDTH))
    held[number] = one
    np.save(path / "rows.npy", held)
    return path / "rows.npy", {"layer": number}


def write_hook_names(path, number, one):
    save_file({f"blocks.{number}.hook_resid_post": one}, path / "v.safetensors")
    return path / "v.safetensors", {}


def write_pre_names(path, number, one):
    np.savez(path / "v.npz", **{f"blocks.{number}.hook_resid_pre": one.numpy()})
    return path / "v.npz", {}


def write_bare(path, number, one):
    torch.save({"refusal": one}, path / "v.pt")
    return path / "v.pt", {"layer": number, "position": -4}


COUNTED = {
    write_gguf: "output",
    write_svec: "input",
    write_lm_eval: "output",
    write_direction: "input",
    write_cosmic_sites: "input",
    write_mean_diffs: "input",
    write_cosmic_mean_diffs: "input",
    write_rows: "input",
    write_hook_names: "output",
    write_pre_names: "input",
    write_bare: "input",
}
"""How a format's file is made, and the end of the block that its numbers mean."""


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("write", COUNTED, ids=lambda one: one.__name__)
@torch.inference_mode()
def test_a_vector_acts_where_its_own_tool_adds_it(write, both, tmp_path):
    model, plain = both
    one = vector()
    path, options = write(tmp_path, 1, one)
    options.pop("model", None)
    found = Direction.load(path, model, **options)
    assert found.layer == (2 if COUNTED[write] == "output" else 1)
    assert torch.allclose(found.vector, one) and found.reference is None and found.fingerprint == ""
    assert found.method.endswith(f"from {tmp_path.name}/{path.name}")
    assert found.position == (-4 if "position" in options or path.name == "direction.pt" else -1)
    with plain_edit(plain, "model.layers.1", COUNTED[write], lambda x: x + one):
        theirs = plain(IDS).logits
    with steering(model, Addition(found)):
        assert torch.allclose(model(IDS), theirs, atol=1e-4)
    with steering(model, Addition(replace(found, layer=3 - found.layer))):
        assert (model(IDS) - theirs).abs().max() > 0.1  # one layer off is another edit


def test_what_was_exported_comes_back(both, tmp_path, direction):
    model, _ = both
    given = replace(direction, layer=2)
    for name in ("llama.cpp", "glp", "svec", "steering-vectors", "lm-eval"):
        path = export_edit(model, Addition(given, alpha=0.5), name, tmp_path / FORMATS[name].file).path
        found = Direction.load(path, model)
        assert found.layer == 2 and torch.allclose(found.vector, given.vector / 2, atol=1e-5), name
        assert Candidates.load(path, model).vectors[2].isfinite().all()


@torch.inference_mode()
def test_what_enters_the_first_block_is_layer_0(both, tmp_path):
    model, plain = both
    one = vector()
    torch.save(steered({"embed_tokens": one}), tmp_path / "steered.pt")
    with plain_edit(plain, "model.embed_tokens", "output", lambda x: x + one):
        theirs = plain(IDS).logits
    with steering(model, Addition(found := Direction.load(tmp_path / "steered.pt", model))):
        assert found.layer == 0 and torch.allclose(model(IDS), theirs, atol=1e-4)


@torch.inference_mode()
def test_what_is_set_or_projected_out_is_so_at_the_same_place(both, tmp_path):
    model, plain = both
    unit = vector() / vector().norm()

    def held_at(value):
        return lambda x: x - ((x @ unit) - value)[..., None] * unit

    torch.save(steered({"layers.0": vector()}, strength=1.5, action="clamp"), tmp_path / "steered.pt")
    fields = {
        "glp.mode": "project",
        "glp.spec_version": 1,
        "glp.rank": 1,
        "glp.hook_point": "residual_stream_post_layer",
    }
    control_vector(tmp_path / "p.gguf", {1: unit}, **fields)
    for name, block, value in (("steered.pt", 0, 1.5), ("p.gguf", 1, 0.0)):
        found = Direction.load(tmp_path / name, model)
        assert found.layer == block + 1 and torch.allclose(found.vector, unit, atol=1e-6)
        with plain_edit(plain, f"model.layers.{block}", "output", held_at(value)):
            theirs = plain(IDS).logits
        with steering(model, AffineEdit(replace(found, reference=value * unit), alpha=0.0)):
            assert torch.allclose(model(IDS), theirs, atol=1e-4), name


def test_a_file_of_many_layers_is_candidates(both, tmp_path):
    model, _ = both
    vectors = {number: vector(number) for number in (1, 2)}
    control_vector(path := tmp_path / "happy.gguf", vectors)
    with pytest.warns(UserWarning, match=r"happy\.gguf: left out .* \(layer 3, the output of the last block\)"):
        found = Candidates.load(path, model)
    assert torch.equal(found.vectors[2, 0].float(), vectors[1]) and found.vectors[:2].isnan().all()
    assert found.vectors.shape == (DEPTH, 1, WIDTH) and found.model == "llama" and "happy.gguf" in found.method
    with pytest.warns(UserWarning, match=r"direction\.2, the output of the last block"):
        assert list(found.by_layer()) == ["layer 2"] == list(Candidates.load(path).by_layer())
    with pytest.warns(UserWarning, match=r"the output of the last block"):
        assert Direction.load(path, model).layer == 2
    control_vector(path, {number: vector(number) for number in (1, 5)})
    with pytest.raises(CosmicError, match=r"holds layer 6, and the model has layers 0 to 2; load the model it is of"):
        Candidates.load(path, model)
    with pytest.raises(CosmicError, match=r"holds layers \[2, 6\]; give layer=, or load all with Candidates.load"):
        Direction.load(path, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Direction.load(path, model, layer=2).vector, vectors[1])


def test_mean_differences_are_candidates_at_every_position(both, tmp_path):
    model, _ = both
    held = torch.randn(5, DEPTH, WIDTH, dtype=torch.float64)
    held[:, 0] = 0  # the template's tokens are the same in all prompts
    torch.save(held, tmp_path / "mean_diffs.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Candidates.load(tmp_path / "mean_diffs.pt", model)
    assert torch.equal(found.vectors[1:], held.transpose(0, 1)[1:]) and found.vectors[0].isnan().all()
    direction = found.direction(2, -5)
    assert torch.equal(direction.vector, held[0, 2].float()) and direction.method.startswith(
        "difference-in-means, from"
    )
    assert torch.equal(Direction.load(tmp_path / "mean_diffs.pt", layer=2, position=-5).vector, direction.vector)
    with pytest.raises(CosmicError, match=r"position: found -1, and .* has positions of its own; leave it out"):
        Candidates.load(tmp_path / "mean_diffs.pt", position=-1)
    torch.save(torch.stack([held, held + 1, held + 2, held + 3]), tmp_path / "mean_diffs.pt")
    with pytest.warns(UserWarning, match=r"outputs of attention, outputs of MLPs, outputs of blocks"):
        assert torch.equal(Candidates.load(tmp_path / "mean_diffs.pt", model).vectors[1:], found.vectors[1:])


def test_hidden_states_have_a_row_more_than_there_are_blocks(both, tmp_path):
    model, _ = both
    rows = torch.randn(DEPTH + 1, WIDTH)
    torch.save(rows, tmp_path / "rows.pt")
    with pytest.warns(UserWarning, match=r"layer 3, the output of the last block"):
        found = Candidates.load(tmp_path / "rows.pt", model, position=-2)
    assert torch.equal(found.vectors[:, 0].float(), rows[:DEPTH]) and found.vectors[:, 1].isnan().all()
    torch.save(torch.randn(DEPTH + 2, WIDTH), tmp_path / "rows.pt")
    with pytest.raises(CosmicError, match=r"holds layer 4, and the model has layers 0 to 2"):
        Candidates.load(tmp_path / "rows.pt", model)


def test_lm_evals_parts_of_blocks_have_no_layer(tmp_path):
    one = vector()
    names = ["embed_tokens", *(f"layers.{n}.{part}" for n in range(DEPTH) for part in ("self_attn", "mlp"))]
    torch.save(steered(dict.fromkeys(names, one), 0.0, "clamp"), path := tmp_path / "steered.pt")
    with pytest.raises(CosmicError, match=r"layer: .* does not say at which layer its vector belongs; give layer="):
        Direction.load(path)
    with pytest.raises(CosmicError, match=r"candidates: .* does not say at which layer"):
        Candidates.load(path)
    found = Direction.load(path, layer=1)
    assert torch.allclose(found.unit, one / one.norm()) and found.method.startswith(
        "lm-eval clamp at every layer, from"
    )
    torch.save(steered({"layers.0": one, "layers.1.mlp": one + 1}), path)
    with pytest.warns(UserWarning, match=r"layers\.1\.mlp"):
        assert Direction.load(path).layer == 1
    torch.save(steered({"layers.1.mlp": one}), path)
    with pytest.raises(CosmicError, match=r"no vector that has a place here \(left out: layers\.1\.mlp\)"):
        Direction.load(path)
    entry = steered({"layers.0": one})["layers.0"]
    for change in ({"action": "turn"}, {"steering_vector": torch.ones(2, 2)}, {"steering_coefficient": "x"}):
        torch.save({"layers.0": entry | change}, path)
        with pytest.raises(CosmicError, match=r"lm-eval adds or clamps one of shape"):
            Direction.load(path)
    for name in ("wte", "drop"):
        torch.save(steered({name: one}), path)
        assert Direction.load(path).layer == 0
    torch.save(steered({"wte": one, "drop": one}), path)
    with pytest.raises(CosmicError, match=r"edits the input of a block twice"):
        Direction.load(path)


@pytest.fixture(scope="module")
def finished(demo, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("foreign") / "run"
    options = ct.CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
    return ct.run(demo, prompts, out, ct.RunSettings(options, n_test=1, max_new_tokens=2, n_placebos=1))


def test_a_run_has_a_direction_and_candidates(finished, demo):
    direction, some = finished.direction, finished.candidates
    for found in (Direction.load(finished.out, demo), Direction.load(finished.out, layer=direction.layer)):
        assert torch.equal(found.vector, direction.vector) and torch.equal(found.reference, direction.reference)
        assert found.fingerprint == model_fingerprint(demo)
    for path in (finished.out, finished.out / "selection.safetensors"):
        found = Candidates.load(path, demo)
        assert torch.equal(found.vectors, some.vectors) and found.shuffled.keys() == some.shuffled.keys()
    for load in (Direction.load, Candidates.load):
        with pytest.raises(CosmicError, match=r"run: .* holds no run"):
            load(finished.out.parent)
    with pytest.raises(CosmicError, match=rf"layer: found 99, and .* says {direction.layer}; leave it out"):
        Direction.load(finished.out, layer=99)


def test_candidates_survive_their_file(tmp_path, demo, finished):
    finished.candidates.save(path := tmp_path / "some.safetensors")
    found = Candidates.load(path, demo)
    assert torch.equal(found.vectors, finished.candidates.vectors) and found.fingerprint == model_fingerprint(demo)
    finished.selection.save(tmp_path / "selection.safetensors")
    assert torch.equal(Candidates.load(tmp_path / "selection.safetensors").vectors, found.vectors)
    finished.effects.save(tmp_path / "effects.safetensors")
    with pytest.raises(CosmicError, match=r"candidates: .* holds Effects; give a file with candidates"):
        Candidates.load(tmp_path / "effects.safetensors")
    finished.direction.save(tmp_path / "d.safetensors")
    with pytest.raises(CosmicError, match=r"has format 'cosmic_tl/direction/2'"):
        Candidates.load(tmp_path / "d.safetensors")
    with pytest.raises(CosmicError, match=r"position: found -1, and .* has positions of its own"):
        Candidates.load(path, position=-1)
    replace(found, fingerprint="0" * 16, model="other").save(path)
    with pytest.raises(CosmicError, match=r"candidates: it was found in other"):
        Candidates.load(path, demo)


def test_our_file_is_ours_whatever_it_is_called(tmp_path, direction):
    for name in ("d", "d.pt", "d.npz", "d.gguf", "d.safetensors", "d.direction"):
        direction.save(tmp_path / name)
        found = Direction.load(tmp_path / name)
        assert torch.equal(found.reference, direction.reference) and found.layer == direction.layer
        with pytest.raises(CosmicError, match=r"layer: found 2, and .* says 1; leave it out"):
            Direction.load(tmp_path / name, layer=2)
        with pytest.raises(CosmicError, match=r"position: found -3, and .* says -1; leave it out"):
            Direction.load(tmp_path / name, position=-3)
        assert Direction.load(tmp_path / name, layer=1, position=-1).layer == 1


def test_files_that_contradict_or_do_not_say_enough(tmp_path):
    one = vector()
    torch.save(one, bare := tmp_path / "bare.pt")
    np.save(rows := tmp_path / "rows.npy", np.ones((4, WIDTH)))
    save_file({"layer_2": one, "layer_5": one + 1}, named := tmp_path / "named.safetensors")
    path, _ = write_direction(tmp_path, 1, one)
    torch.save(torch.ones(5, DEPTH, WIDTH), diffs := tmp_path / "my_mean_diffs.pt")
    for load, message in (
        (
            lambda: Direction.load(bare),
            r"layer: '.*bare\.pt' does not say at which layer its vector belongs; give layer=",
        ),
        (lambda: Direction.load(bare, layer=-1), "layer: found -1; layers count from 0"),
        (lambda: Direction.load(bare, layer=1, position=0), "position: found 0; positions count from the end"),
        (lambda: Direction.load(rows), "holds layers 0 to 3; give layer=, or load all with Candidates.load"),
        (lambda: Direction.load(rows, layer=4), "layer: found 4, and .* holds layers 0 to 3; give one of them"),
        (lambda: Direction.load(named), r"holds layers \[2, 5\]; give layer="),
        (lambda: Direction.load(named, layer=3), r"layer: found 3, and .* holds layers \[2, 5\]; give one of them"),
        (lambda: Direction.load(path, layer=2), "layer: found 2, and .* says 1; leave it out"),
        (lambda: Direction.load(path, position=-1), "position: found -1, and .* says -4; leave it out"),
        (lambda: Candidates.load(path, position=-1), "position: found -1, and .* has positions of its own"),
        (lambda: Direction.load(diffs, layer=1), "position: .* holds positions -5 to -1; give position="),
        (lambda: Direction.load(diffs, layer=1, position=-6), "position: found -6, and .* holds positions -5 to -1"),
        (lambda: Candidates.load(bare), "candidates: .* does not say at which layer its vector belongs"),
    ):
        with pytest.raises(CosmicError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert Direction.load(path, layer=1, position=-4).position == -4


def test_what_does_not_fit_the_model_is_refused(both, tmp_path):
    model, _ = both
    torch.save(vector(width=16), tmp_path / "narrow.pt")
    with pytest.raises(CosmicError, match=r"direction: it has width 16 and layer 1, and the model width 32"):
        Direction.load(tmp_path / "narrow.pt", model, layer=1)
    torch.save(vector(), tmp_path / "deep.pt")
    with pytest.raises(
        CosmicError, match=r"direction: it has width 32 and layer 3, and the model width 32 and 3 layers"
    ):
        Direction.load(tmp_path / "deep.pt", model, layer=3)
    torch.save(torch.ones(DEPTH, 16), tmp_path / "narrow.pt")
    with pytest.raises(CosmicError, match=r"candidates: they have 3 layers of width 16, and the model 3 of width 32"):
        Candidates.load(tmp_path / "narrow.pt", model)
    few = Candidates.from_vectors({(1, -1): [1.0] * WIDTH}, n_layers=2)
    with pytest.raises(CosmicError, match=r"candidates: they have 2 layers of width 32, and the model 3"):
        few.with_reference(model, ASKED)


class Malicious:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("name", ["direction.pt", "mean_diffs.pt", "steered.pth", "v.npy", "v.npz"])
def test_no_code_comes_from_a_file(name, tmp_path):
    path, mark = tmp_path / name, tmp_path / "ran"
    evil = Malicious(mark)
    if path.suffix == ".npy":
        np.save(path, np.array([evil], dtype=object), allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, layer_1=np.array([evil], dtype=object))
    else:
        torch.save({"layers.1": {"steering_vector": evil}} if "steered" in name else evil, path)
    for load in (Direction.load, Candidates.load):
        with pytest.raises(CosmicError, match=r"file: .* is damaged, or holds") as caught:
            load(path)
        assert "\n" not in str(caught.value) and not mark.exists()
    path.write_bytes(pickle.dumps(evil))  # without torch's or numpy's container
    with pytest.raises(CosmicError, match=r"file: .* is damaged, or holds"):
        Direction.load(path, layer=1)
    assert not mark.exists()
    shutil.rmtree(mark, ignore_errors=True)
    pickle.loads(pickle.dumps(evil))  # noqa: S301 # it would
    assert mark.exists()


def damaged(path, raw):
    """Shortened, with changed bytes, or something else."""
    yield b""
    yield raw[: len(raw) // 2]
    yield raw[:-1]
    yield b"\x00" * len(raw)
    yield b"{}"
    yield bytes(byte ^ 0xFF for byte in raw[:64]) + raw[64:]


@pytest.mark.parametrize(
    "write",
    [write_gguf, write_svec, write_direction, write_lm_eval, write_rows, write_pre_names],
    ids=lambda f: f.__name__,
)
def test_damaged_files_are_one_line(write, tmp_path):
    path, options = write(tmp_path, 1, vector())
    whole = path.read_bytes()
    for bad in damaged(path, whole):
        path.write_bytes(bad)
        for load in (lambda: Direction.load(path, **options), lambda: Candidates.load(path)):
            with pytest.raises(CosmicError) as caught:
                load()
            assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_damaged_or_odd_content_is_named(tmp_path):
    one = vector()
    cases = {
        "nan.pt": (torch.full((4,), float("nan")), "holds NaN or infinite values; make it again"),
        "zero.pt": (torch.zeros(4), "holds no vector that has a place here, or only zeros"),
        "whole.pt": (torch.ones(4, dtype=torch.int64), "holds torch.int64, and directions are floating-point tensors"),
        "list.pt": ([1.0], "holds list, and directions"),
        "names.pt": ({"a": one, "b": one}, "holds 'a'; name vectors by layers, as layer_3 or blocks.3.hook_resid_pre"),
        "twice.pt": ({"3": one, "layer_3": one}, "give a vector per layer"),
        "module.pt": ({"layers.1": one, "layers.2": one}, "holds 'layers.1'; name vectors by layers"),
        "square.pt": ({"3": torch.ones(2, 2)}, "give a vector per layer"),
        "cube.pt": (torch.ones(2, 3, 4), "call it mean_diffs.pt if it is"),
        "cube_mean_diffs.pt": (torch.ones(3, 2, 3, 4), "expected .position, layer, d_model."),
        "nothing.pt": ({}, "holds no vector"),
    }
    for name, (held, message) in cases.items():
        torch.save(held, tmp_path / name)
        with pytest.raises(CosmicError, match=message):
            Direction.load(tmp_path / name, layer=3)
    torch.save({10**6: one, 3: one}, tmp_path / "deep.pt")
    with pytest.raises(CosmicError, match=r"holds layer 1000000, which no model has"):
        Candidates.load(tmp_path / "deep.pt")
    torch.save({1: one, 2: one[:4]}, tmp_path / "widths.pt")
    with pytest.raises(CosmicError, match=re.escape("(2, -1) has shape (4,), expected (32,)")):
        Candidates.load(tmp_path / "widths.pt")
    path, _ = write_direction(tmp_path, 1, one)
    for said in ("", "[]", '{"layer": 1}', '{"layer": 1, "pos": "x"}', '{"layer": 1, "pos": 0}'):
        (tmp_path / "direction_metadata.json").write_text(said)
        with pytest.raises(CosmicError, match=r"direction_metadata.json|positions count from the end"):
            Direction.load(path)
    (tmp_path / "direction_metadata.json").unlink()
    assert Direction.load(path, layer=2).method == f"from {tmp_path.name}/direction.pt"


def test_unknown_and_missing_files(tmp_path):
    (tmp_path / "v.pickle").write_bytes(b"?")
    with pytest.raises(CosmicError, match=r"is not a saved direction .* or give a file that ends in \.gguf, \.npy"):
        Direction.load(tmp_path / "v.pickle")
    with pytest.raises(CosmicError, match=r"is damaged or no saved result"):
        Candidates.load(tmp_path / "v.pickle")
    for name in ("nowhere.gguf", "nowhere.pt", "nowhere"):
        for what, load in (("direction", Direction.load), ("candidates", Candidates.load)):
            with pytest.raises(CosmicError, match=rf"{what}: no file '.*{name}'; give the path of"):
                load(tmp_path / name)


def test_without_a_reference_affine_edits_refuse_until_it_is_measured(both, tmp_path):
    model, _ = both
    path, _ = write_hook_names(tmp_path, 1, vector())
    found = Direction.load(path, model)
    with pytest.raises(CosmicError, match=r"reference: this direction has none.*direction\.with_reference"):
        AffineEdit(found)
    measured = found.with_reference(model, ASKED)
    expected = ct.mean_activations(model, ASKED[1], positions=ct.Positions(("last",))).resid_pre[2, -1]
    assert torch.allclose(measured.reference, expected.float(), atol=1e-5)
    assert AffineEdit(measured).alpha == 1.0 and torch.equal(measured.vector, found.vector)
    assert measured.fingerprint == model_fingerprint(model) and measured.method == found.method
    some = Candidates.load(path, model).with_reference(model, ASKED)
    assert torch.allclose(some.direction(2, -1).reference, measured.reference, atol=1e-5)
    earlier = replace(found, position=-3).with_reference(model, ASKED)
    assert not torch.allclose(earlier.reference, measured.reference, atol=1e-2)
    with pytest.raises(CosmicError, match=r"direction: it was found in other"):
        replace(found, fingerprint="0" * 16, model="other").with_reference(model, ASKED)
    with pytest.raises(CosmicError, match=r"direction: it has width 4"):
        Direction(torch.ones(4), None, 1, -1).with_reference(model, ASKED)
