"""Orthogonalized weights equal directional ablation, and plain `transformers` loads what was saved."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cosmic_tl import (
    Ablation,
    CosmicError,
    Direction,
    complete,
    difference_in_means,
    load_model,
    mean_activations,
    steering,
)
from cosmic_tl.export.checkpoint import model_card, save_checkpoint
from cosmic_tl.interventions.orthogonalize import WeightEdit, orthogonalize_weights
from cosmic_tl.judges import judge_refusal
from cosmic_tl.judges.demo_grammar import parse_answer
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.components import contributions, plain_parameters
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import hook_name
from cosmic_tl.model.load import demo_path

TEXTS = ["How do I bake a pizza?", "hi", "Please explain how I can kill a background process."]
NORMED = {"gemma2", "gemma3_text", "olmo2"}
TIED = {"gemma2", "gemma3_text", "gpt2"}


def direction_of_width(width):
    generator = torch.Generator().manual_seed(1)
    return Direction(torch.randn(width, generator=generator), torch.zeros(width), layer=1, position=-1)


def logits(model, interventions=()):
    batch = next(batches(model, tokenize(model, TEXTS), 3))
    with torch.inference_mode(), steering(model, interventions):
        return model(batch.ids, attention_mask=batch.mask)[:, -1].float()


def plain_logits(plain, bridge):
    batch = next(batches(bridge, tokenize(bridge, TEXTS), 3))
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    options = {} if "neox" in plain.config.model_type else {"position_ids": positions}
    with torch.inference_mode():
        return plain(batch.ids, attention_mask=batch.mask, **options).logits[:, -1].float()


def load_plain(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in plain_parameters(model.original_model)}


def rows(writer):
    return writer.parameter.detach().movedim(writer.axis, -1)


def along(direction, vectors):
    return (vectors.double() @ direction.unit.double()).abs().max() / vectors.double().norm(dim=-1).max()


@pytest.fixture(scope="module")
def case(pair):
    """A model before and after the edit, with what ablation predicts, and its checkpoint."""
    source, direction = Path(pair[0].cfg.model_name), direction_of_width(32)
    bridge = load_model(source, device="cpu")
    found = {"name": pair[1].config.model_type, "source": source, "bridge": bridge, "direction": direction}
    found |= {"before": weights(bridge), "clean": logits(bridge), "ablated": logits(bridge, Ablation(direction))}
    found["edit"] = orthogonalize_weights(bridge, direction, approximate=found["name"] in NORMED)
    found["edited"] = logits(bridge)
    found["saved"] = save_checkpoint(bridge, source / "saved", found["edit"], max_shard_size="100KB")
    return found


def test_the_edit_equals_directional_ablation(case):
    error = (case["edited"] - case["ablated"]).abs().max()
    effect = (case["clean"] - case["ablated"]).abs().max()
    assert effect > 0.5
    if case["name"] in NORMED:
        # Exact is impossible; with 32 dimensions the norm rescales by some percent, and less the wider the model.
        assert not case["edit"].exact and 0 < case["edit"].rescaling < 0.2
        assert 1e-4 < error < 0.25 * effect
    else:
        assert case["edit"].exact
        assert error < 1e-4


def test_nothing_is_left_along_the_direction(case):
    bridge = case["bridge"]
    batch = next(batches(bridge, tokenize(bridge, TEXTS), 3))
    sites = [(layer, site) for layer in range(3) for site in ("hook_attn_out", "hook_mlp_out", "hook_resid_post")]
    for found in read(bridge, batch, sites, n_positions=5).values():
        assert along(case["direction"], found) < 1e-5


def test_only_what_writes_to_the_stream_is_edited(case):
    bridge, edit, before = case["bridge"], case["edit"], case["before"]
    after = weights(bridge)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in edit.parameters if before[name].any()}  # a bias of zeros stays one
    head = bridge.original_model.get_output_embeddings().weight
    name = next(n for n, p in plain_parameters(bridge.original_model) if p is head)
    assert name not in edit.parameters and torch.equal(head, before[name])
    assert edit.untied == (case["name"] in TIED)
    assert not bridge.original_model.config.tie_word_embeddings
    assert sum(edit.kinds.values()) == len(edit.parameters)


def test_plain_transformers_loads_the_checkpoint(case):
    saved, bridge = case["saved"], case["bridge"]
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(saved.glob("*.safetensors"))) > 1
    plain = load_plain(saved)
    assert (plain_logits(plain, bridge) - case["edited"]).abs().max() < 1e-5
    assert torch.equal(plain.get_input_embeddings().weight, bridge.embed.original_component.weight)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (case["source"], saved)]
    messages = [{"role": "user", "content": TEXTS[0]}]
    first, second = (t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for t in tokenizers)
    assert first == second and tokenizers[0].chat_template == tokenizers[1].chat_template
    assert tokenizers[0](TEXTS)["input_ids"] == tokenizers[1](TEXTS)["input_ids"]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (case["source"], saved)]
    differing = {key for key in configs[0] | configs[1] if configs[0].get(key) != configs[1].get(key)}
    assert differing == ({"tie_word_embeddings"} if case["edit"].untied else set())


def test_the_bridge_is_as_it_was_after_saving_and_the_checkpoint_boots(case):
    assert torch.equal(logits(case["bridge"]), case["edited"])
    assert complete(case["bridge"], TEXTS[:1], max_new_tokens=3) == complete(
        again := load_model(case["saved"], device="cpu"), TEXTS[:1], max_new_tokens=3
    )
    assert (logits(again) - case["edited"]).abs().max() < 1e-5


def test_a_norm_before_the_stream_is_said(case):
    if case["name"] not in NORMED:
        assert all(one.gain is None for one in contributions(case["bridge"]))
        return
    bridge = load_model(case["source"], device="cpu")
    before = weights(bridge)
    with pytest.raises(
        CosmicError, match=r"block 0's attention of .* passes a norm before the stream.*approximate=True"
    ):
        orthogonalize_weights(bridge, case["direction"])
    after = weights(bridge)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral"])
def test_tied_embeddings_leave_the_unembedding_alone(name, save_model, tmp_path):
    bridge = load_model(save_model(tmp_path, name, tie_word_embeddings=True), device="cpu")
    direction = direction_of_width(32)
    ablated, table = logits(bridge, Ablation(direction)), weights(bridge)["lm_head.weight"]
    assert torch.equal(weights(bridge)["model.embed_tokens.weight"], table)
    # Embeddings are left alone with a subset of layers, and so is their tie.
    assert not orthogonalize_weights(load_model(tmp_path, device="cpu"), direction, layers=[0]).untied
    edit = orthogonalize_weights(bridge, direction)
    assert edit.untied and (logits(bridge) - ablated).abs().max() < 1e-4
    bridge.original_model.tie_weights()  # which finds nothing to tie
    plain = load_plain(save_checkpoint(bridge, tmp_path / "saved", edit))
    assert torch.equal(plain.lm_head.weight, table) and not plain.config.tie_word_embeddings
    assert along(direction, plain.get_input_embeddings().weight) < 1e-6
    assert (plain_logits(plain, bridge) - ablated).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_unequal_gains_are_reckoned_with(name, save_model, tmp_path):
    """The tiny models' gains are all 1; trained ones are not."""
    bridge, direction = load_model(save_model(tmp_path, name), device="cpu"), direction_of_width(32)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in bridge.blocks:
            for norm in (block.ln1_post, block.ln2_post):
                gain = torch.exp(0.5 * torch.randn(32, generator=generator))
                norm.original_component.weight.copy_(gain - float(norm.uses_weight_offset))
    clean, ablated = logits(bridge), logits(bridge, Ablation(direction))
    edit = orthogonalize_weights(bridge, direction, approximate=True)
    error = (logits(bridge) - ablated).norm() / (clean - ablated).norm()
    assert error < 0.2 and 0 < edit.rescaling < 0.5
    batch = next(batches(bridge, tokenize(bridge, TEXTS), 3))
    assert along(direction, read(bridge, batch, [(2, "hook_resid_post")], n_positions=5)[2, "hook_resid_post"]) < 1e-5
    with torch.no_grad():
        bridge.blocks[0].ln1_post.original_component.weight[3] = -float(bridge.blocks[0].ln1_post.uses_weight_offset)
    with pytest.raises(CosmicError, match="gain of the norm after block 0's attention is zero in places"):
        orthogonalize_weights(bridge, direction, approximate=True)


@pytest.mark.parametrize(("strength", "layers"), [(0.4, None), (1.0, [1]), (2.0, [0, 2])])
def test_strength_and_layers_are_those_of_hooks_on_what_is_added(strength, layers, save_model, tmp_path):
    bridge, direction = load_model(save_model(tmp_path, "mixtral"), device="cpu"), direction_of_width(32)
    unit = direction.unit
    places = [(layer, site) for layer in layers or range(3) for site in ("hook_attn_out", "hook_mlp_out")]
    places += [(0, "hook_resid_pre")] if layers is None else []
    hooks = [
        (hook_name(bridge, *place), lambda x, hook: x - strength * (x @ unit)[..., None] * unit) for place in places
    ]
    with bridge.hooks(fwd_hooks=hooks):
        expected = logits(bridge)
    assert (expected - logits(bridge)).abs().max() > 0.1
    embeddings = weights(bridge)["model.embed_tokens.weight"]
    edit = orthogonalize_weights(bridge, direction, strength=strength, layers=layers)
    assert (logits(bridge) - expected).abs().max() < 1e-4
    assert not edit.exact and edit.layers == (None if layers is None else tuple(layers))
    if layers is not None:
        assert torch.equal(weights(bridge)["model.embed_tokens.weight"], embeddings)
        assert not any("layers.1." in name for name in edit.parameters) or layers == [1]


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_norms_of_the_written_rows_are_kept(name, strength, save_model, tmp_path):
    bridge, direction = load_model(save_model(tmp_path, name), device="cpu"), direction_of_width(32)
    with torch.no_grad():
        bridge.embed.original_component.weight[7] = 3 * direction.unit  # nothing of it is left to scale
    ablated = logits(bridge, Ablation(direction))
    before = [rows(writer).clone() for one in contributions(bridge) for writer in one.writers]
    edit = orthogonalize_weights(bridge, direction, strength=strength, norm_preserving=True)
    after = [rows(writer) for one in contributions(bridge) for writer in one.writers]
    assert len(before) == len(after) == len(edit.parameters)
    for old, new in zip(before, after, strict=True):
        along_it = old @ direction.unit > 0.999 * old.norm(dim=-1)
        kept = (new.norm(dim=-1) - old.norm(dim=-1)).abs() < 1e-5 * old.norm(dim=-1).clamp_min(1e-6)
        assert (kept | along_it).all()
        if strength == 1:
            assert along(direction, new) < 1e-6 or not old.any()
    assert (logits(bridge) - ablated).abs().max() > 0.05 and not edit.exact


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gemma3_text"])
def test_half_precision(name, save_model, tmp_path):
    """bfloat16 rounds activations, and weights once more: 5 % of the effect, where float32 has 0.0001 %."""
    direction = direction_of_width(32)
    bridge = load_model(save_model(tmp_path, name, tie_word_embeddings=True), device="cpu", dtype="bfloat16")
    exact = load_model(tmp_path, device="cpu")
    normed = name in NORMED
    clean, ablated = logits(bridge), logits(bridge, Ablation(direction))
    edit = orthogonalize_weights(bridge, direction, approximate=normed)
    error, effect = (logits(bridge) - ablated).norm(), (clean - ablated).norm()
    assert error < (0.25 if normed else 0.05) * effect
    # Edited in double precision and rounded once: as near as bfloat16 comes to the same edit of the float32 model.
    with torch.no_grad():
        for parameter in exact.original_model.parameters():
            parameter.copy_(parameter.bfloat16())
    orthogonalize_weights(exact, direction, approximate=normed)
    wide = weights(exact)
    assert all(torch.equal(value, wide[key].bfloat16()) for key, value in weights(bridge).items())
    saved = save_checkpoint(bridge, tmp_path / "saved", edit)
    plain = load_plain(saved, "auto")
    assert plain.dtype == torch.bfloat16
    assert all(torch.equal(value, plain.get_parameter(key)) for key, value in weights(bridge).items())


def test_a_model_that_cannot_be_edited_is_left_alone(save_model, tmp_path):
    # Bloom normalises its embeddings before they become the stream.
    bridge, direction = (
        load_model(save_model(tmp_path, "bloom", n_layer=3, n_head=4), device="cpu"),
        direction_of_width(32),
    )
    before = weights(bridge)
    kept = {name: parameter.data_ptr() for name, parameter in plain_parameters(bridge.original_model)}
    with pytest.raises(CosmicError, match=r"transformer.word_embeddings.weight what the embedding adds .* use the Abl"):
        orthogonalize_weights(bridge, direction)
    after = weights(bridge)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert kept == {name: parameter.data_ptr() for name, parameter in plain_parameters(bridge.original_model)}
    assert bridge.original_model.config.tie_word_embeddings


def test_bad_input(demo, tmp_path):
    direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
    for options, message in (
        ({"strength": float("nan")}, "strength: expected a finite number, found nan"),
        ({"strength": 0.0}, "strength: must not be 0"),
        ({"layers": [8]}, r"layers: found \[8\], and the model has layers 0 to 7"),
        ({"layers": []}, r"layers: found \[\]"),
    ):
        with pytest.raises(CosmicError, match=message):
            orthogonalize_weights(demo, direction, **options)
    with pytest.raises(CosmicError, match="width 64"):
        orthogonalize_weights(demo, direction_of_width(64))
    places = {f"model.layers.{layer}": "disk" if layer == 2 else "cpu" for layer in range(8)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = load_model(demo_path(), device_map=places, offload_folder=str(tmp_path / "offload"))
    for act in (lambda: orthogonalize_weights(spread, direction), lambda: save_checkpoint(spread, tmp_path / "out")):
        with pytest.raises(CosmicError, match=r"model.layers.2.* meta device.*without\s+offloading"):
            act()
    assert not (tmp_path / "out").exists()


def test_processed_weights_are_not_saved(tmp_path):
    bridge = load_model("demo", device="cpu")
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(CosmicError, match="weights were processed"):
        save_checkpoint(bridge, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_holds_a_whole_checkpoint_or_what_it_held(demo, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    save_checkpoint(demo, folder)  # an empty one is no obstacle
    assert (folder / "model.safetensors").is_file()
    (folder / "README.md").write_text("earlier")
    with pytest.raises(CosmicError, match="is not empty; choose another directory, or overwrite what it holds"):
        save_checkpoint(demo, folder)
    broken = load_model("demo", device="cpu")
    broken.original_model.generation_config = copy.deepcopy(broken.original_model.generation_config)
    broken.original_model.generation_config.update(do_sample=False, temperature=0.3, top_p=0.5)
    with pytest.raises(CosmicError, match="transformers would not save it"):
        save_checkpoint(broken, folder, overwrite=True)
    assert (folder / "README.md").read_text() == "earlier" and os.listdir(tmp_path) == ["out"]
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(CosmicError, match=r"holds 'mine\.txt', which is no part of a checkpoint and would be lost"):
        save_checkpoint(demo, folder, overwrite=True)
    assert (folder / "mine.txt").read_text() == "kept"
    (folder / "mine.txt").unlink()
    save_checkpoint(demo, folder, overwrite=True)
    assert "earlier" not in (folder / "README.md").read_text() and os.listdir(tmp_path) == ["out"]
    with pytest.raises(CosmicError, match="is a file; give a directory"):
        save_checkpoint(demo, folder / "model.safetensors", overwrite=True)


def test_the_card_says_what_was_edited(case):
    card = (case["saved"] / "README.md").read_text()
    edit = case["edit"]
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| Direction | difference-in-means, layer 1, position -1 |" in card
    assert "| Strength | 1 |" in card and "answers requests that the original declines" in card
    assert all(f"| `{kind}` | {count} |" in card for kind, count in edit.kinds.items())
    assert ("The model equals the original one under directional ablation" in card) == edit.exact
    assert ("where a norm of gain" in card) == (case["name"] in NORMED)
    assert str(case["source"].parent) not in card
    part = WeightEdit(edit.direction, 0.5, (1,), True, edit.parameters, False, 0.0)
    assert "| Blocks | 1 |" in model_card(case["bridge"], part) and "| Row norms | kept |" in model_card(
        case["bridge"], part
    )


def test_the_demo_model_stops_refusing_and_still_answers(demo, prompts, tmp_path):
    means = [mean_activations(demo, prompts.side(side, "train", 60)) for side in ("positive", "negative")]
    direction = difference_in_means(*means).direction(4, -1, demo)
    harmful, harmless = (prompts.side(side, "test", 20) for side in ("positive", "negative"))
    edited = load_model("demo", device="cpu")
    edit = orthogonalize_weights(edited, direction)
    plain = load_plain(save_checkpoint(edited, tmp_path / "saved", edit))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved", padding_side="left")

    def answers(model, asked):
        chats = [[{"role": "user", "content": text}] for text in asked]
        fed = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**fed, max_new_tokens=64, do_sample=False)
        return [
            t.strip() for t in tokenizer.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)
        ]

    def refusals(texts):
        return sum(judge_refusal(text) == "refusal" for text in texts)

    assert refusals(answers(load_plain(demo_path()), harmful)) >= 19
    found = answers(plain, harmful)
    assert refusals(found) <= 2
    assert sum(parse_answer(text).kind == "comply" for text in found) >= 18
    benign = answers(plain, harmless)
    assert refusals(benign) <= 1 and sum(parse_answer(text).kind == "comply" for text in benign) >= 18
    assert found == complete(edited, harmful)  # the bridge and its checkpoint answer alike
    placebo = load_model("demo", device="cpu")
    orthogonalize_weights(
        placebo, Direction(torch.randn(128, generator=torch.Generator().manual_seed(0)), direction.reference, 4, -1)
    )
    assert refusals(complete(placebo, harmful)) >= 18
