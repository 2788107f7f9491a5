"""Projective control vectors: what their fields say, and what is read back."""

from dataclasses import replace
from hashlib import sha256

import gguf
import numpy as np
import pytest
import torch
from plain_block import check_damaged, with_added, with_edit

from cosmic_tl import Ablation, Addition, CosmicError, Direction
from cosmic_tl.directions import Subspace
from cosmic_tl.export import check_export, export_edit
from cosmic_tl.export.control_vector import read as read_additive
from cosmic_tl.export.gguf_file import read_gguf, write_gguf
from cosmic_tl.export.glp import read
from cosmic_tl.interventions import SubspaceAblation
from cosmic_tl.model.fingerprint import model_fingerprint


@pytest.fixture(scope="module")
def direction(demo):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(1)) * 3
    return Direction(vector, None, 3, -1, fingerprint=model_fingerprint(demo), model="demo")


def contents(path):
    reader = gguf.GGUFReader(path)
    tensors = {one.name: torch.tensor(np.array(one.data)) for one in reader.tensors}
    return {name: one.contents() for name, one in reader.fields.items()}, tensors


def test_an_ablation_is_the_same_unit_vector_at_every_block_but_the_first(demo, direction, tmp_path):
    exported = export_edit(demo, Ablation(direction), "glp", tmp_path / "a.gguf", contrast="refusal")
    assert exported.verdict.status == "approximate" and "outputs of blocks alone" in repr(exported)
    fields, tensors = contents(exported.path)
    assert list(tensors) == [f"direction.{block}" for block in range(1, 8)]
    assert all(torch.equal(row, direction.unit) for row in tensors.values())
    said = {name: fields[f"glp.{name}"] for name in ("mode", "spec_version", "alpha_default", "rank", "orthonormal")}
    assert said == {"mode": "project", "spec_version": 1, "alpha_default": 1.0, "rank": 1, "orthonormal": True}
    types = [
        gguf.GGUFReader(exported.path).fields[f"glp.{name}"].types[0].name
        for name in ("alpha_default", "rank", "orthonormal")
    ]
    assert types == ["FLOAT32", "UINT32", "BOOL"]
    assert fields["glp.hook_point"] == "residual_stream_post_layer" and fields["glp.contrast"] == "refusal"
    assert fields["glp.layer_ids_zero_based"] == "1,2,3,4,5,6,7" and fields["general.type"] == "controlvector"
    rows = b"".join(row.numpy().tobytes() for row in tensors.values())
    assert fields["glp.content_sha256"] == sha256(rows).hexdigest()
    assert fields["cosmic_tl.fingerprint"] == model_fingerprint(demo) and fields["general.base_model.0.name"] == "demo"
    found = read(exported.path)
    assert list(found.vectors) == [2, 3, 4, 5, 6, 7] and "to be projected out" in found.method
    assert found.left_out == ("direction.7, the output of the last block",)
    with pytest.raises(CosmicError, match="not for addition but for the mode 'project' of the format glp"):
        read_additive(exported.path)


def test_an_addition_is_exact_at_the_output_of_the_block_before(demo, direction, tmp_path):
    addition = Addition(direction, alpha=2.0)
    exported = export_edit(demo, addition, "glp", tmp_path / "a.gguf")
    fields, tensors = contents(exported.path)
    assert exported.verdict.status == "exact" and fields["glp.mode"] == "add" and fields["glp.alpha_default"] == 1.0
    [(name, raw)] = tensors.items()
    ids = torch.arange(1, 12)[None]
    assert name == "direction.2"
    torch.testing.assert_close(with_added(demo, ids, 2, raw), with_edit(demo, ids, addition), atol=1e-4, rtol=0)
    for reader in (read, read_additive):  # llama.cpp adds the same
        [(layer, vector)] = reader(exported.path).vectors.items()
        assert layer == 3 and torch.allclose(vector, 2.0 * direction.vector)
    for layer in (0, 1):
        said = r"glp cannot carry Addition \(it acts from layer 2 on\); use the format steer\.py"
        with pytest.raises(CosmicError, match=said):
            export_edit(demo, replace(addition, layer=layer), "glp", tmp_path / "b.gguf")


def test_the_strength_of_anothers_addition_is_multiplied(tmp_path):
    fields = {"glp": {"mode": "add", "alpha_default": np.float32(4.0)}}
    write_gguf(tmp_path / "a.gguf", "controlvector", fields, {"direction.1": torch.ones(2)})
    assert read(tmp_path / "a.gguf").vectors[2].tolist() == [4.0, 4.0]


def test_a_subspace_has_a_tensor_per_direction_and_is_no_vector(demo, direction, tmp_path):
    basis = torch.linalg.qr(torch.randn(128, 2, dtype=torch.float64))[0].T.contiguous()
    zero = torch.zeros(128, dtype=torch.float64)
    plane = Subspace(basis, zero, zero + 1, 3, "random", model_fingerprint(demo))
    exported = export_edit(demo, SubspaceAblation(plane), "glp", tmp_path / "a.gguf")
    fields, tensors = contents(exported.path)
    assert list(tensors)[:3] == ["direction.1", "direction.1.1", "direction.2"] and len(tensors) == 14
    assert fields["glp.rank"] == fields["glp.spec_version"] == 2 and fields["glp.orthonormal"] is True
    torch.testing.assert_close(torch.stack([tensors["direction.5"], tensors["direction.5.1"]]), basis.float())
    with pytest.raises(CosmicError, match="it has 2 directions per layer, a subspace"):
        read(exported.path)


def test_no_reader_runs_here_and_that_is_no_pass(demo, direction, tmp_path):
    exported = export_edit(demo, Ablation(direction), "glp", tmp_path / "a.gguf")
    with pytest.raises(CosmicError, match="reader: projective vectors are read by plugins for vLLM and SGLang"):
        check_export(demo, exported, ["hello"], max_new_tokens=1)


def test_what_is_damaged_or_of_another_place_is_refused(demo, direction, tmp_path):
    path = export_edit(demo, Addition(direction), "glp", tmp_path / "a.gguf").path
    fields, tensors = read_gguf(path)
    for change, match in (
        ({"glp.mode": "rotate"}, "mode 'rotate'"),
        ({"glp.hook_point": "ffn_out_pre_residual"}, "at 'ffn_out_pre_residual'"),
        ({"glp.content_sha256": "0"}, "its checksum is another"),
    ):
        write_gguf(
            tmp_path / "b.gguf",
            "controlvector",
            {k: v for k, v in (fields | change).items() if "arch" not in k},
            tensors,
        )
        with pytest.raises(CosmicError, match=match):
            read(tmp_path / "b.gguf")
    check_damaged(path, read)
