"""Edits as changes of weights, read by plain transformers: ablation, an edit of layer 0, an addition in a bias."""

import pytest
import torch
from plain_block import is_same
from test_exporting import edits
from transformers import AutoModelForCausalLM, AutoTokenizer

from cosmic_tl import Addition, CosmicError, load_model
from cosmic_tl.export import check_export, export_edit, format_table
from cosmic_tl.export.names import FORMATS
from cosmic_tl.export.weight_edits import unchanged
from cosmic_tl.model.components import contributions, plain_modules, plain_parameters
from cosmic_tl.model.fingerprint import model_fingerprint

AT_ANY_LAYER = ("Addition", "AffineEdit", "SubspaceEdit", "MapEdit")


def weights(model):
    """Names, and which of them are one parameter, and the bits."""
    found = list(plain_parameters(model.original_model))
    return [(name, id(one), one.data_ptr()) for name, one in found], [one.detach().clone() for _, one in found]


@pytest.mark.parametrize("model_type", ["demo", "gpt2", "gemma2"])
def test_any_edit_of_layer_0_is_one_of_the_embeddings(model_type, demo, save_model, tmp_path):
    model = demo if model_type == "demo" else load_model(save_model(tmp_path / "model", model_type), device="cpu")
    names, before = weights(model)
    config, fingerprint = model.original_model.config.to_dict(), model_fingerprint(model)
    for kind in AT_ANY_LAYER:
        exported = export_edit(model, edits(model, 0)[kind], "checkpoint", tmp_path / kind)
        found = check_export(model, exported, ["who are you"], max_new_tokens=2)
        assert exported.verdict.status == "exact" and is_same(found), (kind, found)
        assert found.table.control.max() > 1e-2
    again, after = weights(model)
    assert names == again and all(map(torch.equal, before, after))
    assert model.original_model.config.to_dict() == config and model_fingerprint(model) == fingerprint


@pytest.mark.parametrize("model_type", ["demo", "gpt_neox"])
def test_ablation_of_one_direction_or_several_is_exact_and_the_model_stays(model_type, demo, save_model, tmp_path):
    model = demo if model_type == "demo" else load_model(save_model(tmp_path / "model", model_type), device="cpu")
    names, before = weights(model)
    for kind in ("Ablation", "AffineEverywhere", "SubspaceAblation"):
        exported = export_edit(model, edits(model)[kind], "checkpoint", tmp_path / kind, contrast="refusal")
        found = check_export(model, exported, ["who are you"], max_new_tokens=2)
        assert exported.verdict.status == "exact" and is_same(found), (kind, found)
        assert "| contrast set | refusal |" in (tmp_path / kind / "README.md").read_text()
    again, after = weights(model)
    assert names == again and all(map(torch.equal, before, after))
    AutoTokenizer.from_pretrained(tmp_path / "Ablation")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "Ablation", dtype=torch.float32)
    unit = edits(model)["Ablation"].direction.unit
    assert (plain.get_input_embeddings().weight @ unit).abs().max() < 1e-5
    assert (plain.get_output_embeddings().weight @ unit).abs().max() > 1e-2  # it was untied first


def test_norms_after_the_blocks_make_it_approximate(save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", "olmo2"), device="cpu")
    exported = export_edit(model, edits(model)["Ablation"], "checkpoint", tmp_path / "edited")
    assert exported.verdict.status == "approximate" and "norms after attention and MLP" in exported.verdict.why
    assert FORMATS["checkpoint"].verdict("Ablation").status == "exact"  # elsewhere


def test_a_layer_above_0_is_refused(demo, tmp_path):
    for kind in AT_ANY_LAYER:
        with pytest.raises(
            CosmicError, match=r"cannot carry \w+ \(a single-layer edit above 0 .+\); use the format steer.py"
        ):
            export_edit(demo, edits(demo, 3)[kind], "checkpoint", tmp_path / "edited")
    table = format_table().set_index(["format", "edit"])
    assert table.loc["checkpoint", "AffineEdit"].status == "exact"
    assert table.loc["checkpoint", "AffineEdit"]["where"] == "layer 0"
    assert table.loc["checkpoint", "Ablation"]["where"] == ""


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])  # sequential and parallel blocks
def test_an_addition_is_one_bias_of_the_block_below(model_type, save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", model_type), device="cpu")
    names, before = weights(model)
    for layer in (1, 2):
        exported = export_edit(model, edits(model, layer)["Addition"], "bias", tmp_path / f"{layer}")
        found = check_export(model, exported, ["who are you"], max_new_tokens=2)
        assert is_same(found) and found.table.control.max() > 1e-2, found
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / f"{layer}", dtype=torch.float32)
        mine = dict(plain_parameters(model.original_model))
        [changed] = [name for name, one in plain.named_parameters() if not torch.equal(one, mine[name])]
        assert (
            f".{layer - 1}.mlp." in changed
            and changed.endswith("bias")
            and f"`{changed}`" in (tmp_path / f"{layer}/README.md").read_text()
        )
    again, after = weights(model)
    assert names == again and all(map(torch.equal, before, after))
    with pytest.raises(CosmicError, match=r"bias cannot carry Addition \(it acts from layer 1 on\); use the format"):
        export_edit(model, edits(model, 0)["Addition"], "bias", tmp_path / "0")
    with pytest.raises(CosmicError, match="bias cannot carry AffineEdit"):
        export_edit(model, edits(model, 1)["AffineEdit"], "bias", tmp_path / "affine")


def test_without_such_a_bias_an_addition_is_refused(demo, tmp_path):
    with pytest.raises(
        CosmicError, match=r"bias cannot carry Addition \(the MLP of block 2 of Qwen2\w+ has no output bias\)"
    ):
        export_edit(demo, edits(demo, 3)["Addition"], "bias", tmp_path / "edited")
    assert not list(tmp_path.iterdir())


def test_a_stream_that_is_another_one_is_noticed_before_anything_is_written(save_model, tmp_path):
    """As after a norm of the embeddings, which scales the constant by another factor at each token."""
    model = load_model(save_model(tmp_path / "model", "llama"), device="cpu")
    edit = edits(model, 0)["Addition"]
    names, before = weights(model)
    table = next(one for name, one in plain_modules(model.original_model) if name.endswith("embed_tokens."))
    handle = table.register_forward_hook(lambda module, args, output: torch.nn.functional.rms_norm(output, (32,)))
    try:
        with pytest.raises(
            CosmicError, match=r"after editing model.embed_tokens.weight what enters block 0 .+ use the format steer.py"
        ):
            export_edit(model, edit, "checkpoint", tmp_path / "edited")
    finally:
        handle.remove()
    again, after = weights(model)
    assert names == again and all(map(torch.equal, before, after)) and not (tmp_path / "edited").exists()


def test_what_is_edited_is_restored_after_an_error(demo):
    names, before = weights(demo)
    table = contributions(demo)[0].writers[0]
    with pytest.raises(CosmicError), unchanged(demo, [table]):  # noqa: PT012
        table.parameter.data.zero_()
        raise CosmicError("stopped")
    assert table.parameter.any()
    again, after = weights(demo)
    assert names == again and all(map(torch.equal, before, after))


def test_half_precision_is_checked_with_its_own_tolerance(save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", "gemma2"), device="cpu", dtype="bfloat16")
    exported = export_edit(model, edits(model, 0)["AffineEdit"], "checkpoint", tmp_path / "edited")
    with FORMATS["checkpoint"].applied(exported.path, model) as logits_of, torch.inference_mode():
        assert logits_of(torch.tensor([[5, 6, 7]]), 3).dtype == torch.bfloat16


def test_an_addition_may_be_applied_at_another_layer_than_its_own(demo, tmp_path):
    direction = edits(demo, 3)["Addition"].direction
    exported = export_edit(demo, Addition(direction, layer=0), "checkpoint", tmp_path / "edited")
    assert exported.about["applied_at_layer"] == 0 and exported.about["layer"] == 3
    assert is_same(check_export(demo, exported, ["hello"], max_new_tokens=2))
