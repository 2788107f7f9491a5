"""The package steering-vectors: its own `apply` beside our addition, and the same vector one layer off."""

import sys
from dataclasses import replace

import pytest
import torch
from plain_block import check_damaged, with_added, with_edit
from safetensors.torch import load_file

from cosmic_tl import CosmicError
from cosmic_tl._util.sealed import read_sealed, write_sealed
from cosmic_tl.export import check_export, export_edit, to_steering_vector
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.steering_vectors import read
from cosmic_tl.model.fingerprint import model_fingerprint


@pytest.fixture
def exported(demo, addition, tmp_path):
    return export_edit(demo, addition, "steering-vectors", tmp_path / "a.safetensors", contrast="refusal")


def test_the_package_applies_our_addition_and_one_layer_off_fails(demo, addition, exported):
    found = check_export(demo, exported, ["Bake a pizza.", "hello"], max_new_tokens=4)
    assert found.passed and found.table.control.max() > 1e-2, found
    for layer in (2, 4):
        off = replace(exported, edit=replace(addition, layer=layer))
        assert not check_export(demo, off, ["Bake a pizza."], max_new_tokens=2).passed


def test_the_file_alone_makes_the_packages_vector(demo, addition, exported):
    from steering_vectors import SteeringVector

    [(name, raw)] = load_file(exported.path).items()
    ids = torch.arange(1, 12)[None]
    ours = with_edit(demo, ids, addition)
    assert name == "layer.2"
    torch.testing.assert_close(with_added(demo, ids, 2, raw), ours, atol=1e-4, rtol=0)
    assert (with_added(demo, ids, 3, raw) - ours).abs().max() > 1e-2
    vector = to_steering_vector(exported.path)
    assert isinstance(vector, SteeringVector) and vector.layer_type == "decoder_block"
    with torch.inference_mode(), vector.apply(plain := plain_model(demo)):
        torch.testing.assert_close(plain(ids).logits, ours, atol=1e-4, rtol=0)


def test_it_is_read_by_our_layer_and_says_what_it_is(demo, addition, exported):
    found = read(exported.path)
    assert list(found.vectors) == [3] and found.left_out == () and found.method == "difference-in-means"
    torch.testing.assert_close(found.vectors[3], 2.0 * addition.direction.vector)
    about, tensors = read_sealed(exported.path)
    assert about["alpha"] == 2.0 and about["contrast_set"] == "refusal" and about["licence"]
    assert about["fingerprint"] == model_fingerprint(demo) and about["layer"] == 3
    write_sealed(exported.path, tensors | {"layer.7": torch.ones(128)}, about)
    assert read(exported.path).left_out == ("layer.7, the output of the last block",)
    assert list(read(exported.path, 9).vectors) == [3, 8]


def test_layer_0_has_no_place_and_layer_1_has(demo, addition, tmp_path):
    with pytest.raises(
        CosmicError, match=r"cannot carry Addition \(it acts from layer 1 on\); use the format steer\.py"
    ):
        export_edit(demo, replace(addition, layer=0), "steering-vectors", tmp_path / "b.safetensors")
    assert not list(tmp_path.iterdir())
    export_edit(demo, replace(addition, layer=1), "steering-vectors", tmp_path / "b.safetensors")
    assert list(read(tmp_path / "b.safetensors").vectors) == [1]


def test_what_is_damaged_or_another_file_is_refused_in_one_line(demo, addition, exported, tmp_path, monkeypatch):
    for settings, tensors in (({"format": "x"}, {"layer.1": torch.ones(2)}), ({"format": "x"}, {})):
        write_sealed(tmp_path / "b.safetensors", tensors, settings)
        with pytest.raises(CosmicError, match="its format is 'x'"):
            read(tmp_path / "b.safetensors")
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(CosmicError, match="steering-vectors is not installed; pip install --no-deps"):
        check_export(demo, exported, ["hello"], max_new_tokens=1)
    check_damaged(exported.path, read)
