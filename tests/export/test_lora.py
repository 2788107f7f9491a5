"""Ablation as a PEFT adapter, read by peft and by transformers."""

import json
import re
import warnings

import pytest
import torch
from plain_block import is_same
from safetensors.torch import load_file
from test_exporting import edits
from transformers import AutoModelForCausalLM

from cosmic_tl import CosmicError, load_model
from cosmic_tl.export import check_export, export_edit, format_table
from cosmic_tl.export.names import FORMATS
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.components import plain_modules, plain_parameters
from cosmic_tl.model.load import demo_path

peft = pytest.importorskip("peft")
KINDS = ("Ablation", "SubspaceAblation")
IDS = torch.tensor([[5, 77, 300, 12, 9]])


def ours(model, edit):
    with torch.inference_mode(), steering(model, edit):
        return model(IDS)


def adapted(plain, folder):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        return peft.PeftModel.from_pretrained(plain, folder).eval()


@pytest.mark.parametrize("model_type", ["demo", "gpt_neox", "mixtral"])
def test_an_adapter_is_the_same_edit_in_peft(model_type, demo, save_model, tmp_path):
    model = demo if model_type == "demo" else load_model(save_model(tmp_path / "model", model_type), device="cpu")
    for kind in KINDS:
        exported = export_edit(model, edits(model)[kind], "peft", tmp_path / kind)
        found = check_export(model, exported, ["who are you"], max_new_tokens=3)
        assert exported.verdict.status == "exact" and is_same(found), found
        assert found.table.control.max() > 1e-2 and found.control == "no edit"
        config = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert ("target_parameters" in (tmp_path / kind / "README.md").read_text()) == (model_type == "mixtral")
        assert config["r"] == config["lora_alpha"] == (1 if kind == "Ablation" else 2)


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_norms_after_the_blocks_make_it_approximate(model_type, save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", model_type), device="cpu")
    with torch.no_grad():  # gains that differ, since equal ones would hide what they do
        for name, parameter in model.original_model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(0.0, 0.3, len(parameter)))
    edit = edits(model)["SubspaceAblation"]
    exported = export_edit(model, edit, "peft", tmp_path / "adapter")
    assert (
        exported.verdict.status == "approximate"
        and exported.verdict.why in (tmp_path / "adapter/README.md").read_text()
    )
    kept = []
    with FORMATS["peft"].applied(exported.path, model) as logits_of, torch.inference_mode():
        loaded = logits_of.__closure__[0].cell_contents
        handle = next(m for n, m in loaded.named_modules() if n.endswith("layers.2")).register_forward_hook(
            lambda module, args, output: kept.append(output if isinstance(output, torch.Tensor) else output[0])
        )
        theirs = logits_of(IDS, 5)
        handle.remove()
    along = kept[0].double() @ edit.map.left.double().T
    assert along.abs().max() < 1e-5 * kept[0].abs().max()
    assert not torch.allclose(theirs, ours(model, edit), atol=1e-3)


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral"])
def test_transformers_loads_it_too(model_type, save_model, tmp_path):
    model = load_model(folder := save_model(tmp_path / "model", model_type), device="cpu")
    for kind in KINDS:
        edit = edits(model)[kind]
        export_edit(model, edit, "peft", tmp_path / kind)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        plain.load_adapter(str(tmp_path / kind))
        with torch.inference_mode():
            assert torch.allclose(plain(IDS).logits, ours(model, edit), atol=1e-4)


def test_an_adapter_of_tied_embeddings_is_merged_only_once_they_are_untied(demo, tmp_path):
    edit = edits(demo, 3)["Ablation"]
    export_edit(demo, edit, "peft", tmp_path / "adapter")
    expected = ours(demo, edit)
    read_me = (tmp_path / "adapter/README.md").read_text()
    untie = re.search(r"(model\.lm_head.*)\n(model\.config.*)\n", read_me).group()

    def plain():
        return AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)

    tied, untied = plain(), plain()
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    exec(untie, {"model": untied, "nn": torch.nn})
    with torch.inference_mode():
        assert torch.allclose(adapted(tied, tmp_path / "adapter")(IDS).logits, expected, atol=1e-4)
        with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
            wrong = adapted(plain(), tmp_path / "adapter").merge_and_unload()
        # The unembedding was changed too. The stream has nothing along the direction; after the last norm it has, by its gain.
        assert not torch.allclose(wrong(IDS).logits, expected, atol=1e-3)
        merged = adapted(untied, tmp_path / "adapter").merge_and_unload()
        assert torch.allclose(merged(IDS).logits, expected, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        assert torch.allclose(again(IDS).logits, expected, atol=1e-4)


def test_a_writer_that_does_something_else_is_noticed_before_anything_is_written(save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", "llama"), device="cpu")
    edit = edits(model)["Ablation"]
    [module] = [one for name, one in plain_modules(model.original_model) if name.endswith("layers.1.mlp.down_proj.")]
    handle = module.register_forward_hook(lambda module, args, output: output.tanh())
    try:
        with pytest.raises(CosmicError, match=r"after orthogonalizing model\.layers\.1\.mlp\.down_proj"):
            export_edit(model, edit, "peft", tmp_path / "adapter")
    finally:
        handle.remove()
    assert not (tmp_path / "adapter").exists()


def test_a_bias_is_an_obstacle_only_along_the_direction(save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", "gpt2"), device="cpu")
    unit = edits(model)["Ablation"].direction.unit
    bias = dict(plain_parameters(model.original_model))["transformer.h.1.mlp.c_proj.bias"]
    with torch.no_grad():
        bias.copy_(torch.linspace(-1, 1, 32))
    with pytest.raises(
        CosmicError, match=r"edit: peft cannot carry Ablation \(transformer\.h\.1\.mlp\.c_proj\.bias writes"
    ):
        export_edit(model, edits(model)["Ablation"], "peft", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with torch.no_grad():
        bias -= (bias @ unit) * unit
    exported = export_edit(model, edits(model)["Ablation"], "peft", tmp_path / "adapter")
    assert is_same(check_export(model, exported, ["hello"], max_new_tokens=2))


def test_an_adapter_is_replaced_only_when_asked_and_nothing_else_ever(demo, tmp_path):
    some = edits(demo, 3)
    folder = tmp_path / "adapter"
    export_edit(demo, some["Ablation"], "peft", folder, contrast="refusal")
    assert sorted(one.name for one in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "| contrast set | refusal |" in (folder / "README.md").read_text()
    before = load_file(folder / "adapter_model.safetensors")
    with pytest.raises(CosmicError, match="exists; give another path"):
        export_edit(demo, some["SubspaceAblation"], "peft", folder)
    assert load_file(folder / "adapter_model.safetensors").keys() == before.keys()
    export_edit(demo, some["SubspaceAblation"], "peft", folder, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CosmicError, match=r"out: .* holds 'notes.txt', which is no part"):
        export_edit(demo, some["Ablation"], "peft", folder, overwrite=True)
    table = format_table()
    assert set(table[(table.format == "peft") & (table.status == "exact")].edit) == set(KINDS)
