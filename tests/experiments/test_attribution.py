"""Attribution patching is the derivative of exact patching, and finds a planted head."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from cosmic_tl import CosmicError, Direction, load_model
from cosmic_tl.engine import Reading
from cosmic_tl.experiments import AttributionMap, attribution_map
from cosmic_tl.metrics import RefusalTokens, find_refusal_tokens
from cosmic_tl.metrics.refusal_score import log_odds
from cosmic_tl.model.chat import tokenize
from cosmic_tl.patching import Change, Patch, patched
from tests.tiny import save

ONE, OTHER = "Rob the old bank clerk.", "Thank the old bank clerk."


@pytest.fixture(scope="module")
def tokens(demo, prompts):
    return find_refusal_tokens(demo, prompts)


def _inputs(model, prompt, module):
    """What enters a projection of the plain model, by a hook on it."""
    kept = []
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0][0].double()))
    with torch.no_grad():
        model.original_model(torch.tensor(tokenize(model, [prompt])))
    handle.remove()
    return kept[0]


def _slope(model, tokens, layer, position, kind, index, unit, step=1e-2):
    """Change of the refusal score for a small part of the way to the other prompt's value, over that part."""
    block = model.original_model.model.layers[layer]
    module = block.self_attn.o_proj if kind == "head" else block.mlp.down_proj
    width = module.weight.shape[1] // model.cfg.n_heads if kind == "head" else 1
    some = slice(index * width, (index + 1) * width)
    own, other = (_inputs(model, prompt, module)[position, some] for prompt in (ONE, OTHER))
    weight, scores = module.weight.detach().double()[:, some], []
    part = "attention" if kind == "head" else "mlp"
    for share in (step, -step):
        target = (weight @ (own + share * (other - own))).float()
        patch = Patch(position, (Change(layer, part, target, unit, index=index),))
        rows, reading = tokenize(model, [ONE]), Reading(logits=True)
        ((_, found),) = patched(model, rows, [patch], reading, lambda outcome: log_odds(outcome.logits, tokens.ids))
        scores.append(float(found))
    return (scores[0] - scores[1]) / (2 * step)


@pytest.mark.parametrize("whole", [False, True])
def test_it_is_the_slope_of_exact_patching(demo, tokens, whole):
    generator = torch.Generator().manual_seed(0)
    direction = Direction(torch.randn(128, generator=generator), None, layer=3, position=-1)
    some = None if whole else direction
    found = attribution_map(demo, ([ONE], [OTHER]), some, tokens, n_positions=3, n_top=4, n_random=4)
    rows = found.table[(found.table.side == "positive")]
    assert set(rows.kind) == {"head", "neuron"} and rows.estimate.abs().max() > 0.01
    unit = None if whole else direction.unit
    for row in rows.itertuples():
        slope = _slope(demo, tokens, row.layer, row.position, row.kind, row.index, unit)
        assert row.estimate == pytest.approx(-slope, rel=0.02, abs=2e-4)
    everywhere = found.heads if row.kind == "head" else found.neurons
    assert float(everywhere[0, row.layer, row.position, row.index]) == pytest.approx(row.estimate)


def test_exact_effects_are_those_of_patches(demo, tokens):
    """And estimates tell the large ones."""
    found = attribution_map(demo, ([ONE], [OTHER]), None, tokens, n_positions=2)
    row = found.table.iloc[0]
    projection = demo.original_model.model.layers[row.layer].self_attn.o_proj
    some = slice(row["index"] * 32, (row["index"] + 1) * 32)
    with torch.no_grad():
        target = (projection.weight.double()[:, some] @ _inputs(demo, OTHER, projection)[row.position, some]).float()
    patch = Patch(row.position, (Change(row.layer, "attention", target, index=int(row["index"])),))
    rows, odds = tokenize(demo, [ONE]), lambda outcome: log_odds(outcome.logits, tokens.ids)
    clean = Patch(-1, (Change(0, "mlp", torch.zeros(128), torch.zeros(128)),))
    scores = dict(patched(demo, rows, [patch, clean], Reading(logits=True), odds))
    assert row.exact == pytest.approx(float(scores[1] - scores[0]), abs=1e-4)
    correlations = found.correlations.set_index(["side", "kind", "chosen"])
    assert correlations.n.tolist() == [20, 50] * 4
    assert (correlations.spearman > 0.7).all()
    assert len(found.plot().data) == 12 and "AttributionMap(64 heads and" in repr(found)


def test_a_planted_head_comes_first(tmp_path):
    model = load_model(save(tmp_path, "llama"), device="cpu")
    with torch.no_grad():
        for number, layer in enumerate(model.original_model.model.layers):
            layer.mlp.down_proj.weight.zero_()
            weight = layer.self_attn.o_proj.weight
            weight[:, : 24 if number == 1 else 32] = 0  # the last of four heads in layer 1 alone writes
    sides = [f"Say {word} bake bake bake" for word in ("dog", "river")], [f"Say {word}" for word in ("dog", "river")]
    found = attribution_map(model, sides, None, RefusalTokens((7,), ("x",)), n_positions=2, n_top=3, n_random=3)
    for side in range(2):
        assert int(found.heads[side].abs().argmax()) == (1 * 2 + 1) * 4 + 3  # layer 1, position -1, head 3
        left = found.heads[side].clone()
        left[1, :, 3] = 0
        assert left.abs().max() == 0 and found.neurons[side].abs().max() == 0
    assert found.table.query("kind == 'neuron'").exact.abs().max() < 1e-6
    assert found.correlations.query("kind == 'neuron'").pearson.isna().all()


def test_it_is_saved_and_refuses_bad_input(demo, tokens, tmp_path):
    found = attribution_map(demo, ([ONE], [OTHER]), None, tokens, n_positions=1, n_top=1, n_random=1)
    found.save(tmp_path / "found.safetensors")
    again = AttributionMap.load(tmp_path / "found.safetensors")
    assert again.table.equals(found.table) and torch.equal(again.neurons, found.neurons)
    direction = Direction(normalize(torch.ones(128), dim=0), None, layer=3, position=-1)
    for given, options, message in (
        (direction, {"n_top": 0}, r"^n_top: "),
        (direction, {"n_random": 0}, r"^n_random: "),
        (direction, {"n_positions": 99}, r"^positions: 99 asked for"),
        (replace(direction, vector=torch.ones(7)), {}, r"^direction: it has width 7"),
    ):
        with pytest.raises(CosmicError, match=message):
            attribution_map(demo, ([ONE], [OTHER]), given, tokens, **options)
    other = load_model(save(tmp_path / "gemma", "gemma3_text"), device="cpu")
    with pytest.raises(CosmicError, match=r"^part: block 0's attention of .* passes a norm before the stream"):
        attribution_map(other, ([ONE], [OTHER]), None, tokens)
