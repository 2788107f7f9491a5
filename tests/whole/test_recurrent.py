"""Tiny random recurrent models: interventions mean the same where a state takes the place of attention."""

from dataclasses import replace

import pytest
import torch
from tiny import write
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from cosmic_tl import Ablation, Addition, AffineEdit, CosmicError, complete, load_model, mean_activations, steering
from cosmic_tl.data.behaviours import AnswerPair
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.interventions.edits import MapEdit
from cosmic_tl.metrics import completion_cross_entropy
from cosmic_tl.metrics.answers import answer_log_odds
from cosmic_tl.model.batching import batches, masks_padding
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import TokenBatch, next_token_logits, read
from cosmic_tl.model.shortcuts import shortcuts

N_LAYERS = 4
COMMON = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": N_LAYERS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    # Halves the stream after the second and the fourth block.
    "rwkv": {"context_length": 128, "intermediate_size": 64, "rescale_every": 2},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "recurrent_gemma": {
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "lru_width": 32,
        "attention_window_size": 64,
    },
}
MASKING = {"mamba", "mamba2"}
"""Those that keep padding out of their state."""
TEXTS = ["How do I bake a pizza?", "hi", "Please explain how I can kill a background process.", "Name a tree."]


def save(folder, model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **COMMON, **ARCHITECTURES[model_type])
    model = AutoModelForCausalLM.from_config(config)
    return write(model, folder, lambda param: param.ndim > 1 and param.shape[0] > 1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """The bridge, and a separate plain Hugging Face model with the same weights."""
    folder = save(tmp_path_factory.mktemp(request.param), request.param)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return load_model(folder, device="cpu"), plain


def blocks(plain):
    return getattr(plain.base_model, "layers", None) or plain.base_model.blocks


def edited(plain, ids, layer=None, edit=None):
    """Logits of a plain pass from the beginning, with an edit of what enters a block, and what enters every block."""
    seen = {}

    def hook(number):
        def enter(module, args, kwargs):
            x = edit(args[0]) if number == layer else args[0]
            seen[number] = x
            return (x, *args[1:]), kwargs

        return enter

    handles = [block.register_forward_pre_hook(hook(i), with_kwargs=True) for i, block in enumerate(blocks(plain))]
    try:
        with torch.inference_mode():
            logits = plain(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack([seen[i][0] for i in range(N_LAYERS)])


def by_hand(direction, alpha=0.7):
    """Interventions at layer 1 and the same as plain functions."""
    r, nu, unit = direction.vector, direction.reference, direction.unit
    ace = lambda x: x - (x @ unit)[..., None] * unit + (nu @ unit) * unit + alpha * r  # noqa: E731
    return {
        Addition(direction, alpha): lambda x: x + alpha * r,
        AffineEdit(direction, alpha): ace,
        MapEdit(AffineEdit(direction, alpha).map, 1): ace,
    }


def token_rows(bridge):
    return [torch.tensor([row]) for row in tokenize(bridge, TEXTS)]


def close(found, expected, tolerance=1e-5):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max()) < tolerance * max(1.0, float(expected.abs().max()))


def test_padding_is_kept_out(pair):
    bridge, plain = pair
    assert masks_padding(bridge) == (plain.config.model_type in MASKING)
    rows = tokenize(bridge, TEXTS)
    lengths = [batch.mask.sum(1).unique().tolist() for batch in batches(bridge, rows, 4)]
    assert max(map(len, lengths)) == (4 if masks_padding(bridge) else 1)
    for batch in batches(bridge, rows, 4):
        for row, logits in zip(batch.rows, next_token_logits(bridge, batch), strict=True):
            assert close(logits, edited(plain, torch.tensor([rows[row]]))[0][0, -1])


def test_padding_that_is_not_masked_would_change_the_result(pair):
    bridge, plain = pair
    ids = token_rows(bridge)[1]
    padded = torch.cat([torch.zeros(1, 12, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 12, dtype=torch.long), torch.ones_like(ids)], 1)
    # Beside a longer row, as padding always is.
    batch = TokenBatch(padded.repeat(2, 1), torch.cat([mask, torch.ones_like(mask)]), (0, 1))
    found, expected = next_token_logits(bridge, batch)[0], edited(plain, ids)[0][0, -1]
    assert close(found, expected, 1e-3) == (plain.config.model_type in MASKING)


def test_means_equal_what_enters_and_leaves_the_blocks(pair):
    bridge, plain = pair
    found = mean_activations(bridge, TEXTS, batch_size=4)
    expected = torch.stack([edited(plain, ids)[1][:, -5:].double() for ids in token_rows(bridge)]).mean(0)
    assert close(found.resid_pre, expected)
    # What leaves a block enters the next one, but for the blocks after which RWKV halves the stream.
    halved = [0.5 if plain.config.model_type == "rwkv" and layer % 2 else 1.0 for layer in range(N_LAYERS - 1)]
    after = found.resid_post[:-1] * torch.tensor(halved, dtype=torch.float64)[:, None, None]
    assert close(after, found.resid_pre[1:], 1e-6)


def test_interventions_equal_a_hand_made_edit(pair, direction):
    bridge, plain = pair
    ids = token_rows(bridge)[0]
    clean, _ = edited(plain, ids)
    for intervention, edit in by_hand(direction).items():
        expected, stream = edited(plain, ids, 1, edit)
        with steering(bridge, intervention), torch.inference_mode():
            found = bridge(ids)
            batch = TokenBatch(ids, torch.ones_like(ids), (0,))
            before = read(
                bridge, batch, [(layer, "hook_resid_pre") for layer in range(N_LAYERS)], n_positions=ids.shape[1]
            )
        assert close(found, expected)
        assert float((clean - expected).abs().max()) > 1e-2
        for layer in range(N_LAYERS):
            assert close(before[layer, "hook_resid_pre"][0], stream[layer])
    assert close(bridge(ids), clean)


def test_the_engine_equals_plain_passes(pair, direction):
    bridge, plain = pair
    rows = tokenize(bridge, TEXTS)
    # Nothing is known to share a state as keys and values are shared, but a pass may start at the source layer.
    allowed = shortcuts(bridge, rows)
    assert allowed.resume and not allowed.prefix
    edits = [*by_hand(direction), AffineEdit(replace(direction, layer=3), 0.0)]
    reading = Reading((1, 3), logits=True)
    keep = lambda outcome: torch.cat([outcome.resid_post[3][:, -1], outcome.logits], 1)  # noqa: E731
    found = dict(intervened(bridge, rows, edits, reading, keep, batch_size=6))
    for number, edit in enumerate(edits):
        for row, ids in enumerate(token_rows(bridge)):
            (batch,) = batches(bridge, [ids[0].tolist()], 1)
            with steering(bridge, edit):
                last = read(bridge, batch, [(3, "hook_resid_post")])[3, "hook_resid_post"][0, -1]
                expected = torch.cat([last, next_token_logits(bridge, batch)[0]])
            assert close(found[number][row], expected)
    ace = by_hand(direction)
    for number, edit in enumerate(ace.values()):
        logits = torch.stack([edited(plain, ids, 1, edit)[0][0, -1] for ids in token_rows(bridge)])
        assert close(found[number][:, 32:], logits)


@pytest.mark.parametrize("scope", ["all", "prompt", "completion"])
def test_generation_is_edited_step_by_step(pair, direction, scope):
    bridge, plain = pair
    ace = by_hand(direction, 3.0)

    def expected(ids, edit=None):
        """Every step from the beginning, without a state."""
        n = ids.shape[1]

        def scoped(x):
            chosen = {"all": slice(None), "prompt": slice(n), "completion": slice(n, None)}[scope]
            x = x.clone()
            x[:, chosen] = edit(x[:, chosen])
            return x

        for _ in range(5):
            logits, _ = edited(plain, ids) if edit is None else edited(plain, ids, 1, scoped)
            ids = torch.cat([ids, logits[:, -1].argmax(-1)[None]], 1)
        return bridge.tokenizer.decode(ids[0, n:], skip_special_tokens=True).strip()

    (edit,) = [edit for one, edit in ace.items() if isinstance(one, AffineEdit)]
    found = complete(bridge, TEXTS, AffineEdit(direction, 3.0, tokens=scope), max_new_tokens=5, batch_size=4)
    assert found == [expected(ids, edit) for ids in token_rows(bridge)]
    clean = complete(bridge, TEXTS, max_new_tokens=5, batch_size=4)
    assert clean == [expected(ids) for ids in token_rows(bridge)]
    assert found != clean


def test_a_state_begun_before_the_steering_belongs_to_the_completion(pair, direction):
    bridge, plain = pair
    inner, ids = bridge.original_model, token_rows(bridge)[0]

    def go_on(*interventions):
        # From a new state each time: it is changed in place, RecurrentGemma's inside the model.
        cache = {"past_key_values": DynamicCache(config=plain.config)} if "gemma" in plain.config.model_type else {}
        begun = {**inner(ids[:, :-1], use_cache=True, **cache), **cache}
        state = {name: begun[name] for name in ("state", "cache_params", "past_key_values") if name in begun}
        with steering(bridge, interventions):
            return inner(ids[:, -1:], use_cache=True, **state).logits

    with torch.inference_mode():
        clean = go_on()
        assert close(clean, edited(plain, ids)[0][:, -1:])
        assert torch.equal(go_on(AffineEdit(direction, 3.0, tokens="prompt")), clean)
        assert not close(go_on(AffineEdit(direction, 3.0, tokens="completion")), clean, 1e-2)


def test_scores_of_texts_do_not_depend_on_the_batch(pair):
    bridge, _ = pair
    texts = ["To bake it, wait.", "Hello there, what would you like?", "Sure", "No"]
    one, all_ = (torch.tensor(completion_cross_entropy(bridge, TEXTS, texts, batch_size=size)) for size in (1, 4))
    assert close(all_, one)
    pairs = [AnswerPair(text, "Sure, one moment.", "I cannot do that for you.") for text in TEXTS]
    one, all_ = (torch.tensor(answer_log_odds(bridge, pairs, batch_size=size).log_odds) for size in (1, 8))
    assert close(all_, one)
    assert float(one.abs().min()) > 1e-3


def test_what_the_adapter_lacks_is_named(pair, direction):
    bridge, plain = pair
    message = rf"block 0 of {type(plain).__name__} has no hook_attn_out.*Addition, AffineEdit"
    with pytest.raises(CosmicError, match=message), steering(bridge, Ablation(direction)):
        pass
