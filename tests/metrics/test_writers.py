"""What heads and neurons write adds up to the stream, is what plain weights give, and names a planted writer first."""

import numpy as np
import pytest
import torch

from cosmic_tl import CosmicError, Direction, load_model, random_direction
from cosmic_tl.activations import cache_activations
from cosmic_tl.metrics import find_writers
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.hooks import hook_name
from cosmic_tl.model.parts import given_to, outputs_of
from tests.tiny import save

SIDES = ["Rob a clerk.", "Can you help me steal a car?"], ["Bake a pie.", "hi", "Can you help me paint the door?"]
ADDITIVE = ["llama", "qwen2", "gemma2", "phi3", "gpt2", "gpt_neox", "olmo2"]


def stream(model, unit, site, layer):
    """Each side's mean component along a direction, by position."""
    return [
        (cache_activations(model, side, site=site)[:, layer].double() @ unit.double()).mean(0).numpy() for side in SIDES
    ]


def check_sums(model, direction):
    found, unit, n_layers = find_writers(model, SIDES, direction, n=3), direction.unit, int(model.cfg.n_layers)
    for rows, site, layer in (
        (found.table, "hook_resid_post", n_layers - 1),
        (found.table[found.table.layer < direction.layer], "hook_resid_pre", direction.layer),
    ):
        sums = rows.groupby("position")[["positive", "negative", "difference"]].sum()
        positive, negative = stream(model, unit, site, layer)
        for name, expected in (("positive", positive), ("negative", negative), ("difference", positive - negative)):
            assert np.abs(sums[name].to_numpy() - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    return found


@pytest.mark.parametrize("architecture", ADDITIVE)
def test_everything_adds_up_to_the_stream(architecture, tmp_path, direction):
    model = load_model(save(tmp_path, architecture), device="cpu")
    with torch.no_grad():  # biases begin at zero
        for name, parameter in model.original_model.named_parameters():
            if parameter.ndim == 1 and "norm" not in name and "ln" not in name:
                parameter.copy_(torch.linspace(-1, 1, len(parameter)))
    found = check_sums(model, direction)
    assert found.table[found.table.part == "head"].difference.abs().min() > 1e-6
    biases = found.table[found.table.part.str.contains("bias")]
    assert biases.difference.abs().max() < 1e-9  # the same for every prompt
    assert (biases.positive.abs() > 1e-3).all() == (architecture in ("gpt2", "gpt_neox"))


def test_numbers_are_those_of_plain_weights(demo):
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(1)), None, 4, -2)
    found, unit = check_sums(demo, direction), direction.unit
    layer, head = demo.original_model.model.layers[2], 1
    kept = {"head": [], "neuron": []}
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: kept["head"].append(args[0][0, -2])),
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: kept["neuron"].append(args[0][0, -2])),
    ]
    with torch.inference_mode():
        for row in tokenize(demo, [*SIDES[0], *SIDES[1]]):
            demo.original_model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    here = found.table[(found.table.layer == 2) & (found.table.position == -2)].set_index(["part", "index"])
    neuron = here.loc["neuron"].index[0] if "neuron" in here.index else None
    places = {
        ("head", head): (
            layer.self_attn.o_proj.weight[:, 32 * head : 32 * (head + 1)],
            slice(32 * head, 32 * head + 32),
        )
    }
    if neuron is not None:
        places["neuron", neuron] = (layer.mlp.down_proj.weight[:, neuron : neuron + 1], slice(neuron, neuron + 1))
    for (part, index), (weight, inputs) in places.items():
        own, along = here.loc[(part, index)], unit @ weight.detach()
        written = torch.stack([float(z[inputs] @ along) * torch.ones(()) for z in kept[part]]).double().numpy()
        one, other = written[:2], written[2:]
        assert own.positive == pytest.approx(one.mean(), abs=1e-5) and own.negative == pytest.approx(
            other.mean(), abs=1e-5
        )
        assert own.difference == pytest.approx(own.positive - own.negative, abs=1e-9)
        assert own.se == pytest.approx((one.var(ddof=1) / 2 + other.var(ddof=1) / 3) ** 0.5, abs=1e-5)
        assert own.weight == pytest.approx(float(along.norm() if part == "head" else along), abs=1e-6)


def test_z_is_the_cosine_that_random_directions_have(demo):
    """A random unit vector's cosine with a fixed one has standard deviation 1 / √d."""
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(2)), None, 4, -1)
    table = find_writers(demo, SIDES, direction, n=10, n_positions=1, n_random=2000).table
    for neuron in table[table.part == "neuron"].itertuples():
        weight = demo.original_model.model.layers[neuron.layer].mlp.down_proj.weight[:, neuron.index].detach()
        z = 128**0.5 * float(weight @ direction.unit) / float(weight.norm())
        assert neuron.weight_z == pytest.approx(z, abs=0.1 + 0.06 * abs(z))
        assert neuron.difference_z == pytest.approx(np.sign(neuron.difference * neuron.weight) * neuron.weight_z)


def planted(direction, kind):
    """The demo model in which one part of layer 2 writes along a direction, and how it was chosen plays no part."""
    model = load_model("demo", device="cpu")
    block = model.original_model.model.layers[2]
    with torch.no_grad():
        if kind == "head":
            weight = block.self_attn.o_proj.weight[:, 96:128]
            weight.copy_(20 * weight.norm() / 32**0.5 * direction.unit[:, None] * torch.ones(1, 32))
        else:
            block.mlp.down_proj.weight[:, 55] = 20 * block.mlp.down_proj.weight.norm(dim=0).max() * direction.unit
    return model


@pytest.mark.parametrize(("kind", "index"), [("head", 3), ("neuron", 55)])
def test_a_planted_writer_comes_first(kind, index, prompts):
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(3)), None, 4, -1)
    found = find_writers(planted(direction, kind), prompts, direction, n_val=12)
    assert (
        find_writers(load_model("demo", device="cpu"), prompts, direction, n_val=12).strongest(1)["index"][0] != index
    )
    by_data = found.strongest(1).iloc[0]
    assert (by_data.part, by_data.layer, by_data["index"]) == (kind, 2, index)
    weights = found.table[(found.table.part == kind) & (found.table.position == -1)]
    by_weight = weights.loc[weights.weight_z.abs().idxmax()]
    assert (by_weight.layer, by_weight["index"]) == (2, index) and by_weight.beyond_chance
    assert by_weight.weight_z > 2 * found.chance[kind]


def test_random_directions_have_no_writers_beyond_chance(demo):
    base = Direction(torch.ones(128), None, 4, -1)
    hits = {"head": 0, "neuron": 0}
    for seed in range(12):
        found = find_writers(demo, SIDES, random_direction(base, seed), n=3, n_positions=1, seed=5)
        for part in hits:
            hits[part] += found.table[found.table.part == part].beyond_chance.any()
    assert max(hits.values()) <= 3  # one in twenty, by chance


def test_bad_input(demo, tmp_path, direction):
    own = Direction(torch.ones(128), None, 3, -1)
    with pytest.raises(CosmicError, match=r"^n: must be at least 1"):
        find_writers(demo, SIDES, own, n=0)
    with pytest.raises(CosmicError, match=r"^n_random: found 2; take at least 16"):
        find_writers(demo, SIDES, own, n_random=2)
    with pytest.raises(CosmicError, match=r"^positions: 99 asked for"):
        find_writers(demo, SIDES, own, n_positions=99)
    with pytest.raises(CosmicError, match=r"^position: found -9; it has -1"):
        find_writers(demo, SIDES, own, n_positions=1).strongest(position=-9)
    packed = load_model("demo", device="cpu")
    projection = packed.blocks[2].mlp.out.original_component
    projection.weight = torch.nn.Parameter((projection.weight.detach() * 100).to(torch.int8), requires_grad=False)
    outputs = outputs_of(packed, "mlp")
    with pytest.raises(
        CosmicError, match=r"^model: the weight behind blocks.2.mlp.out.hook_in cannot be read .*packed"
    ):
        outputs[2].along(own.unit[None])
    moe = load_model(save(tmp_path, "mixtral"), device="cpu")
    with pytest.raises(
        CosmicError, match=r"^model: block 0 of MixtralForCausalLM has no mlp.out; its neurons cannot be told apart"
    ):
        find_writers(moe, SIDES, direction)


def test_a_block_that_does_more_than_add_is_refused(tmp_path, direction):
    model = load_model(save(tmp_path, "qwen2"), device="cpu")
    block = model.blocks[1].original_component
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.5
    with pytest.raises(CosmicError, match="block 1 of Qwen2ForCausalLM does more than add"):
        find_writers(model, SIDES, direction)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_what_is_not_the_matrix_and_a_norm_is_refused(architecture, tmp_path):
    model = load_model(save(tmp_path, architecture), device="cpu")
    batch, outputs = next(batches(model, tokenize(model, ["hi"]), 1)), outputs_of(model, "attention")
    added = hook_name(model, 1, "hook_attn_out")
    with (
        model.hooks(fwd_hooks=[(added, lambda x, hook: x + 1)]),
        pytest.raises(
            CosmicError, match=r"^model: what block 1's attention adds .* is not what its output projection gives"
        ),
    ):
        given_to(model, batch, outputs, 1)
