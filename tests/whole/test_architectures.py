"""Tiny random models of many architectures: the hooks mean the same on all of them."""

import copy
from weakref import WeakKeyDictionary

import pytest
import torch

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    CosmicError,
    complete,
    load_model,
    post_instruction_positions,
    steering,
)
from cosmic_tl.activations import mean_activations
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.components import check_additive
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import hook_name

TEXTS = ["How do I bake a pizza?", "hi", "Please explain how I can kill a background process."]


def blocks(plain):
    body = plain.base_model
    return getattr(body, "layers", None) or body.h


def tokens(bridge, text):
    return torch.tensor(tokenize(bridge, [text]))


def test_positions_are_found(pair):
    assert post_instruction_positions(pair[0]).labels == ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")


def test_means_equal_hidden_states(pair):
    bridge, plain = pair
    found = mean_activations(bridge, TEXTS, batch_size=3)
    with torch.inference_mode():
        states = [plain(tokens(bridge, text), output_hidden_states=True).hidden_states for text in TEXTS]
    expected = torch.stack([torch.stack([layer[0, -5:].double() for layer in some[:-1]]) for some in states]).mean(0)
    assert (found.resid_pre - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    # What leaves a block enters the next; hidden_states[-1] is after the final norm and is not compared.
    assert torch.equal(found.resid_post[:-1], found.resid_pre[1:])


def test_ablation_leaves_nothing_along_the_direction(pair, direction):
    bridge, _ = pair
    batch = next(batches(bridge, tokenize(bridge, TEXTS), 3))
    sites = [(layer, "hook_resid_post") for layer in range(3)]
    with steering(bridge, Ablation(direction)):
        found = read(bridge, batch, sites, n_positions=5)
    clean = read(bridge, batch, sites, n_positions=5)
    for site in sites:
        size = clean[site].norm(dim=-1).max()
        assert (found[site] @ direction.unit).abs().max() < 1e-5 * size
        assert (clean[site] @ direction.unit).abs().max() > 1e-2 * size


def test_addition_and_ace_equal_a_hand_made_edit(pair, direction):
    bridge, plain = pair
    r, nu, unit = direction.vector, direction.reference, direction.unit
    edits = {
        Addition(direction, 0.7): lambda x: x + 0.7 * r,
        AffineEdit(direction, 0.7): lambda x: x - (x @ unit)[..., None] * unit + (nu @ unit) * unit + 0.7 * r,
    }
    ids = tokens(bridge, TEXTS[0])
    with torch.inference_mode():
        clean = plain(ids).logits
        for intervention, edit in edits.items():
            hook = lambda module, args, kwargs, edit=edit: ((edit(args[0]), *args[1:]), kwargs)  # noqa: E731
            handle = blocks(plain)[1].register_forward_pre_hook(hook, with_kwargs=True)
            expected = plain(ids).logits
            handle.remove()
            with steering(bridge, intervention):
                found = bridge(ids)
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
            assert (clean - expected).abs().max() > 1e-3 * expected.abs().max()


def test_padding_changes_nothing(pair):
    bridge, plain = pair
    batch = next(batches(bridge, tokenize(bridge, TEXTS), 3))
    with torch.inference_mode():
        padded = bridge(batch.ids, attention_mask=batch.mask)[:, -1]
        for row, logits in zip(batch.rows, padded, strict=True):
            alone = plain(tokens(bridge, TEXTS[row])).logits[0, -1]
            assert (logits - alone).abs().max() < 1e-5 * max(1, alone.abs().max())


def test_the_model_is_bit_identical_afterwards(pair, direction):
    bridge, _ = pair
    ids = tokens(bridge, TEXTS[0])
    state = copy.deepcopy(bridge.original_model.state_dict())
    with torch.inference_mode():
        before = bridge(ids)
        with steering(bridge, [Ablation(direction), AffineEdit(direction, 2.0)]):
            assert not torch.equal(bridge(ids), before)
        assert torch.equal(bridge(ids), before)
    assert all(torch.equal(value, bridge.original_model.state_dict()[key]) for key, value in state.items())


def test_generation_is_steered(pair, direction):
    bridge, plain = pair
    clean = complete(bridge, TEXTS, max_new_tokens=6, batch_size=3)
    with torch.inference_mode():
        for text, found in zip(TEXTS, clean, strict=True):
            ids = tokens(bridge, text)
            out = plain.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
            assert bridge.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == found
    assert complete(bridge, TEXTS, Addition(direction, 20.0), max_new_tokens=6, batch_size=3) != clean


def test_a_block_that_does_more_than_add_is_refused(save_model, direction, tmp_path):
    bridge = load_model(save_model(tmp_path, "qwen2"), device="cpu")
    check_additive(bridge)
    # The same model, whose second block scales what it returns: a stand-in for an unknown architecture.
    bridge = load_model(tmp_path, device="cpu")
    block = bridge.blocks[1].original_component
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.5
    with (
        pytest.raises(CosmicError, match="block 1 of Qwen2ForCausalLM does more than add"),
        steering(bridge, Ablation(direction)),
    ):
        pass
    with steering(bridge, AffineEdit(direction)):
        pass


def test_a_missing_hook_point_is_named(demo, monkeypatch):
    with pytest.raises(CosmicError, match="layers 0 to 7"):
        hook_name(demo, 8, "hook_resid_pre")
    monkeypatch.setattr("cosmic_tl.model.hooks._names", WeakKeyDictionary())  # names that were looked up before
    monkeypatch.setattr(type(demo), "hook_dict", property(lambda self: {}))
    with pytest.raises(CosmicError, match=r"block 0 of Qwen2ForCausalLM has no hook_mlp_out.*hook_resid_pre alone"):
        hook_name(demo, 0, "hook_mlp_out")
