"""llama.cpp's control vectors: what is in the file, where it acts, and what is read of others'."""

import sys
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from plain_block import check_damaged, with_added, with_edit

from cosmic_tl import CosmicError
from cosmic_tl.export import check_export, export_edit
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.control_vector import ControlVector, read
from cosmic_tl.export.formats import EXACT, Format
from cosmic_tl.export.names import FORMATS
from cosmic_tl.model.fingerprint import model_fingerprint


@pytest.fixture
def file(demo, addition, tmp_path):
    export_edit(demo, addition, "llama.cpp", tmp_path / "vector.gguf", contrast="refusal")
    return tmp_path / "vector.gguf"


def write(path, directions, count=None, **strings):
    """A file as repeng and llama.cpp's generator write it, with the package gguf."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "qwen2")
    writer.add_uint32("controlvector.layer_count", len(directions) if count is None else count)
    for key, value in strings.items():
        writer.add_string(key.replace("_", "."), value)
    for number, vector in directions.items():
        writer.add_tensor(f"direction.{number}", np.asarray(vector, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_added_to_the_output_of_the_block_before_is_our_addition(demo, addition, file):
    [tensor] = gguf.GGUFReader(file).tensors
    raw = torch.tensor(np.array(tensor.data))
    assert (tensor.name, tensor.tensor_type.name, raw.dtype) == ("direction.2", "F32", torch.float32)
    ids = torch.arange(1, 12)[None]
    ours = with_edit(demo, ids, addition)
    torch.testing.assert_close(with_added(demo, ids, 2, raw), ours, atol=1e-4, rtol=0)
    assert (with_added(demo, ids, 3, raw) - ours).abs().max() > 1e-2
    found = read(file)
    assert list(found.vectors) == [3] and found.left_out == () and found.method == "difference-in-means"
    torch.testing.assert_close(found.vectors[3], 2.0 * addition.direction.vector)


def test_the_fields_say_what_it_is(demo, file):
    fields = {name: one.contents() for name, one in gguf.GGUFReader(file).fields.items()}
    assert fields["GGUF.version"] == 3 and fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen2" and fields["controlvector.layer_count"] == 7
    ours = {name.removeprefix("cosmic_tl."): one for name, one in fields.items() if name.startswith("cosmic_tl.")}
    assert ours["layer"] == ours["applied_at_layer"] == 3 and ours["alpha"] == 2.0 and ours["position"] == -1
    assert ours["contrast_set"] == "refusal" and ours["fingerprint"] == model_fingerprint(demo) and ours["licence"]
    assert ours["versions.torch"] == torch.__version__


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_without_a_place_are_refused(layer, demo, addition, tmp_path):
    said = r"llama\.cpp cannot carry Addition \(it acts from layer 2 on\); use the format steer\.py"
    with pytest.raises(CosmicError, match=said):
        export_edit(demo, replace(addition, layer=layer), "llama.cpp", tmp_path / "vector.gguf")
    with pytest.raises(CosmicError, match=r"out: found 'vector.bin'; files for llama\.cpp end in \.gguf"):
        export_edit(demo, addition, "llama.cpp", tmp_path / "vector.bin")
    assert not list(tmp_path.iterdir())


def test_another_tools_file_is_read_by_our_layer_and_the_last_output_left_out(tmp_path):
    rows = {block: torch.full((4,), float(block)).tolist() for block in range(1, 8)}
    found = read(write(tmp_path / "all.gguf", rows))
    assert list(found.vectors) == [2, 3, 4, 5, 6, 7] and all(
        (v == layer - 1).all() for layer, v in found.vectors.items()
    )
    assert found.left_out == ("direction.7, the output of the last block",) and found.model == "qwen2"
    some = write(tmp_path / "some.gguf", {block: rows[block] for block in (5, 6, 7)} | {4: [0.0] * 4})
    assert list(read(some).vectors) == [6, 7, 8] and read(some).left_out == ("direction.4, which is zero",)
    assert list(read(some, n_layers=8).vectors) == [6, 7]
    assert read(some, n_layers=7).left_out[-1] == "direction.7, a block that is not there"


def test_what_is_no_control_vector_is_refused(tmp_path):
    for number, match in (
        (0, "'direction.0', where only"),
        ("1.1", "'direction.1.1', where only"),
        ("x", "'direction.x'"),
    ):
        with pytest.raises(CosmicError, match=match):
            read(write(tmp_path / "odd.gguf", {number: [1.0]}))
    with pytest.raises(CosmicError, match="not for addition but for the mode 'project' of the format glp"):
        read(write(tmp_path / "glp.gguf", {1: [1.0]}, glp_mode="project"))
    with pytest.raises(CosmicError, match="have shapes"):
        read(write(tmp_path / "odd.gguf", {1: [1.0], 2: [1.0, 2.0]}))
    with pytest.raises(CosmicError, match="no finite vector"):
        read(write(tmp_path / "odd.gguf", {1: [float("nan")]}))
    with pytest.raises(CosmicError, match="no vector that has a place here"):
        read(write(tmp_path / "odd.gguf", {}))
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CosmicError, match="its architecture is 'llama'"):
        read(tmp_path / "odd.gguf")


def test_a_damaged_file_is_refused_in_one_line(file):
    check_damaged(file, read)


def test_what_is_missing_is_named(demo, addition, file, tmp_path, monkeypatch):
    exported = export_edit(demo, addition, "llama.cpp", file, overwrite=True)
    with pytest.raises(CosmicError, match=r"takes the model as GGUF, and .* has none"):
        check_export(demo, exported, ["hello"], max_new_tokens=1)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(demo.cfg, "model_name", str(tmp_path))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(CosmicError, match="reader: llama-cpp-python is not installed; pip install"):
        check_export(demo, exported, ["hello"], max_new_tokens=1)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CosmicError, match=r"package gguf, which is not installed; pip install 'cosmic_tl\[gguf\]'"):
        ControlVector().write(demo, addition, tmp_path / "new.gguf", {})
    assert not (tmp_path / "new.gguf").exists()


class Coarse(Format):
    """A reader with another arithmetic: the plain model in bfloat16."""

    name, title, file, reader, carries = "coarse", "", "", "bfloat16", {"Addition": EXACT}

    def write(self, model, edit, path, about):
        torch.save(edit.map.left[0] * float(edit.map.offset[0]), path)

    @contextmanager
    def applied(self, path, model):
        vector = None if path is None else torch.load(path, weights_only=True).bfloat16()
        plain = deepcopy(plain_model(model)).bfloat16()
        hook = plain.model.layers[3].register_forward_pre_hook(
            lambda _, args: None if vector is None else (args[0] + vector, *args[1:])
        )
        try:
            yield lambda ids, _: plain(ids).logits
        finally:
            hook.remove()

    def unedited(self, model):
        return self.applied(None, model)


def test_another_arithmetic_is_compared_with_itself_unedited(demo, addition, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "coarse", Coarse())
    exported = export_edit(demo, addition, "coarse", tmp_path / "vector")
    found = check_export(demo, exported, ["Bake a pizza.", "hello"], max_new_tokens=4)
    assert found.passed and (found.table.difference > 1e-6).all() and "nats per token" in repr(found)
    for other in (replace(addition, layer=4), replace(addition, alpha=0.5)):
        found = check_export(demo, replace(exported, edit=other), ["Bake a pizza.", "hello"], max_new_tokens=4)
        assert not found.passed and "is not the same edit" in repr(found)
