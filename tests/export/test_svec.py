"""IBM activation-steering's files: what its loader takes, where it adds, and what is read of others'."""

import json
from dataclasses import replace

import pytest
import torch
from plain_block import check_damaged, with_added, with_edit

from cosmic_tl import Addition, CosmicError, Direction, load_model
from cosmic_tl.export import check_export, export_edit
from cosmic_tl.export.svec import read
from cosmic_tl.model.fingerprint import model_fingerprint


@pytest.fixture
def file(demo, addition, tmp_path):
    return export_edit(demo, addition, "svec", tmp_path / "a.svec", contrast="refusal").path


def test_what_is_added_to_the_input_of_the_block_is_our_addition(demo, addition, file):
    content = json.loads(file.read_text())
    assert content["model_type"] == "qwen2" and content["explained_variances"] == {"3": 1.0}
    [(number, values)] = content["directions"].items()
    raw, ids = torch.tensor(values), torch.arange(1, 12)[None]
    ours = with_edit(demo, ids, addition)
    torch.testing.assert_close(with_added(demo, ids, int(number), raw, "input"), ours, atol=1e-4, rtol=0)
    assert (with_added(demo, ids, int(number), raw, "output") - ours).abs().max() > 1e-2
    found = read(file)
    assert list(found.vectors) == [3] and found.method == "difference-in-means" and found.model == "demo"
    torch.testing.assert_close(found.vectors[3], 2.0 * addition.direction.vector)
    about = content["cosmic_tl"]
    assert about["alpha"] == 2.0 and about["contrast_set"] == "refusal" and about["licence"]
    assert about["fingerprint"] == model_fingerprint(demo)


def test_every_layer_has_a_place_if_the_tool_finds_the_blocks(demo, addition, save_model, tmp_path):
    for layer in (0, 1, 7):
        export_edit(demo, replace(addition, layer=layer), "svec", tmp_path / f"{layer}.svec")
        assert list(read(tmp_path / f"{layer}.svec").vectors) == [layer]
    other = load_model(save_model(tmp_path / "gpt2", "gpt2"), device="cpu")
    edit = Addition(Direction(torch.ones(32), None, 1, -1))
    with pytest.raises(CosmicError, match=r"model\.layers alone, and here they are at transformer\.h; use the format"):
        export_edit(other, edit, "svec", tmp_path / "b.svec")
    with pytest.raises(CosmicError, match=r"files for svec end in \.svec"):
        export_edit(demo, addition, "svec", tmp_path / "b.json")


def test_another_tools_file_is_read(tmp_path):
    content = {
        "model_type": "llama",
        "directions": {"0": [1.0, 2.0], "9": [3, 4]},
        "explained_variances": {"0": 0.5, "9": 0.5},
    }
    (tmp_path / "a.svec").write_text(json.dumps(content))
    found = read(tmp_path / "a.svec")
    assert {layer: vector.tolist() for layer, vector in found.vectors.items()} == {0: [1.0, 2.0], 9: [3.0, 4.0]}
    assert found.model == "llama" and found.method == "PCA (activation-steering)"
    assert read(tmp_path / "a.svec", 4).left_out == ("the vector of layer 9, a block that is not there",)


def test_what_is_damaged_is_refused_in_one_line(file):
    for odd in (
        "[]",
        "3",
        '{"directions": 3}',
        '{"directions": {"a": [1]}}',
        '{"directions": {"1": [[1]]}}',
        "[" * 10**5,
    ):
        file.write_text(odd)
        with pytest.raises(CosmicError, match="is not a steering vector of activation-steering") as found:
            read(file)
        assert "\n" not in str(found.value)


def test_a_file_with_other_bytes_is_refused_in_one_line(file):
    check_damaged(file, read)


def test_no_reader_runs_here_and_that_is_no_pass(demo, addition, tmp_path):
    exported = export_edit(demo, addition, "svec", tmp_path / "b.svec")
    with pytest.raises(CosmicError, match="reader: activation-steering is on no package index"):
        check_export(demo, exported, ["hello"], max_new_tokens=1)
