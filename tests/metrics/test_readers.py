"""What heads and neurons read of a direction is what a small change along it does to them, and a planted reader comes first."""

import pytest
import torch
from torch.nn.functional import normalize

from cosmic_tl import CosmicError, Direction, load_model, random_direction
from cosmic_tl.metrics import find_readers
from cosmic_tl.model.parts import READERS, reading_along
from tests.tiny import save

POINTS = {"query": "attn.q", "key": "attn.k", "value": "attn.v", "neuron": "mlp.in", "gate": "mlp.gate"}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "phi3", "gpt2", "gpt_neox", "olmo2"])
def test_weights_are_the_derivative_of_what_is_read(architecture, tmp_path):
    """A change at a right angle to the stream (to the centred one, of a LayerNorm) leaves the norm's divisor as it is."""
    model = load_model(save(tmp_path, architecture), device="cpu")
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            if parameter.ndim == 1:  # gains differ from one dimension to the next, biases from zero
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    ids, layer = torch.arange(1, 7)[None], 1
    parts = [part for part in READERS if f"blocks.{layer}.{POINTS[part]}.hook_out" in model.hook_dict]
    assert parts == [part for part in READERS if part != "gate" or architecture not in ("gpt2", "gpt_neox")]
    for where, some in (("hook_resid_pre", parts[:3]), ("hook_resid_mid", parts[3:])):
        if architecture == "gpt_neox" and where == "hook_resid_mid":
            where = "hook_resid_pre"  # attention and MLP stand side by side
        stream = run(model, ids, where, layer, [], None)[0]
        x = stream[0, -1].double()
        scale, noise = (
            x.norm() / len(x) ** 0.5,
            torch.randn(len(x), generator=torch.Generator().manual_seed(0)).double(),
        )
        if architecture in ("gpt2", "gpt_neox"):
            x = x - x.mean()
            scale = x.norm() / len(x) ** 0.5
        if architecture == "olmo2":  # nothing before the matrices
            scale = 1.0
        unit = normalize(noise - (noise @ x) / (x @ x) * x, dim=0)
        ends = [run(model, ids, where, layer, some, sign * 1e-2 * unit.float())[1] for sign in (1, -1)]
        expected = reading_along(model, layer, unit[None].float())
        for part in some:
            change = (ends[0][part] - ends[1][part])[0, -1].double().flatten() / 2e-2 * scale
            wanted = expected[part].double().flatten()
            assert (change - wanted).norm() < 1e-2 * wanted.norm(), part


def run(model, ids, where, layer, parts, change):
    """The stream at a place, and what the parts of a block make of it, with a change of the last token there."""
    kept, streams = {}, []

    def push(x, hook):
        streams.append(x.clone())
        if change is None:
            return x
        x = x.clone()
        x[:, -1] += change
        return x

    def keep(part):
        def hook(x, hook):
            kept[part] = x.clone()

        return hook

    hooks = [(f"blocks.{layer}.{POINTS[part]}.hook_out", keep(part)) for part in parts]
    with torch.inference_mode(), model.hooks(fwd_hooks=[(f"blocks.{layer}.{where}", push), *hooks]):
        model(ids)
    return streams[0], kept


def test_numbers_are_those_of_plain_weights(demo):
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(1)), None, 3, -1)
    table = find_readers(demo, direction, n=4).table.set_index(["part", "layer", "index"])
    block = demo.original_model.model.layers[5]
    before = block.input_layernorm.weight.detach() * direction.unit
    for part, weight, width in (("query", "q_proj", 4), ("key", "k_proj", 2), ("value", "v_proj", 2)):
        read = (getattr(block.self_attn, weight).weight.detach() @ before).view(width, 32).norm(dim=1)
        assert table.loc[part].loc[5].weight.tolist() == pytest.approx(read.tolist(), abs=1e-5)
    for part, name in (("neuron", "up_proj"), ("gate", "gate_proj")):
        for layer, index in table.loc[part].index:
            one = demo.original_model.model.layers[layer]
            seen = one.post_attention_layernorm.weight.detach() * direction.unit
            expected = float(getattr(one.mlp, name).weight[index].detach() @ seen)
            assert table.loc[part, layer, index].weight == pytest.approx(expected, abs=1e-5)
    assert table.index.get_level_values("layer").min() == 3


@pytest.mark.parametrize(("part", "name", "row"), [("key", "k_proj", 32), ("gate", "gate_proj", 41)])
def test_a_planted_reader_comes_first(part, name, row):
    model = load_model("demo", device="cpu")
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(3)), None, 2, -1)
    block = model.original_model.model.layers[4]
    component = block.mlp if part == "gate" else block.self_attn
    with torch.no_grad():
        getattr(component, name).weight[row] = 5 * direction.unit
    first = find_readers(model, direction).strongest(1).iloc[0]
    assert (first.part, first.layer, first["index"]) == (part, 4, row if part == "gate" else 1) and first.beyond_chance


def test_random_directions_have_few_readers_beyond_chance(demo):
    base = Direction(torch.ones(128), None, 4, -1)
    hits = [find_readers(demo, random_direction(base, seed), n=3, seed=5).table for seed in range(16)]
    for part in READERS:
        assert sum(table[table.part == part].beyond_chance.any() for table in hits) <= 4  # one in twenty, by chance


def test_bad_input(demo, tmp_path, direction):
    own = Direction(torch.ones(128), None, 3, -1)
    with pytest.raises(CosmicError, match=r"^n: must be at least 1"):
        find_readers(demo, own, n=0)
    with pytest.raises(CosmicError, match=r"^n_random: found 2; take at least 16"):
        find_readers(demo, own, n_random=2)
    with pytest.raises(CosmicError, match=r"^direction: it has width 32"):
        find_readers(demo, direction)
    moe = load_model(save(tmp_path, "mixtral"), device="cpu")
    with pytest.raises(CosmicError, match=r"^model: block 1 of MixtralForCausalLM has no mlp.W_in that can be read"):
        find_readers(moe, direction)
