"""Vectors carried by the average Jacobian are finite differences, and those of TransformerLens; a planted token is read first."""

import pytest
import torch
from transformer_lens.tools.analysis.jacobian_lens import _frozen_parameters, _jacobian_for_prompt, _ordinary_vjp

from cosmic_tl import Ablation, CosmicError, Direction, load_model, random_direction, steering
from cosmic_tl.metrics import jacobian, read_tokens
from cosmic_tl.metrics.jacobian import carried
from cosmic_tl.model.chat import tokenize
from tests.tiny import save

TEXTS = ["hi", "Can you help me rob a clerk?"]


def vectors(n, width):
    return torch.nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(0)), dim=1)


def differences(model, rows, some, layer, n_positions, step):
    """Central differences on whole passes of single prompts, under raw hooks, in float64."""
    last, total = int(model.cfg.n_layers) - 1, torch.zeros(some.shape, dtype=torch.float64)
    for row in rows:
        for k, vector in enumerate(some):
            ends = []
            for sign in (1, -1):
                kept = []

                def push(x, hook, change=sign * step * vector):
                    x = x.clone()
                    x[:, -n_positions:] += change
                    return x

                def keep(y, hook, kept=kept):
                    kept.append(y[0, -n_positions:].double())

                hooks = [(f"blocks.{layer}.hook_resid_pre", push), (f"blocks.{last}.hook_resid_post", keep)]
                with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
                    model(torch.tensor([row]))
                ends.append(kept[0].sum(0))
            total[k] += (ends[0] - ends[1]) / (2 * step)
    return total / (len(rows) * n_positions)


@pytest.mark.parametrize(("layer", "n_positions"), [(1, 1), (4, 5), (7, 3)])
def test_they_are_finite_differences(demo, layer, n_positions):
    rows, some = tokenize(demo, TEXTS), vectors(2, 128)
    found = carried(demo, rows, some, layer, n_positions=n_positions)
    expected = differences(demo, rows, some, layer, n_positions, 0.01)
    assert (found - expected).norm() < 2e-3 * expected.norm()
    assert (found - some).norm() > 0.1 * expected.norm()  # later blocks change it


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_on_other_architectures(architecture, attention, tmp_path):
    model = load_model(save(tmp_path, architecture), device="cpu")
    model.original_model.set_attn_implementation(attention)
    rows, some = tokenize(model, TEXTS), vectors(2, 32)
    expected = differences(model, rows, some, 1, 3, 0.01)
    assert (carried(model, rows, some, 1, n_positions=3) - expected).norm() < 5e-3 * expected.norm()


def test_it_is_the_lens_of_transformerlens(demo):
    """Whose sources and targets are all tokens from the first that is not skipped to the last but one."""
    (row,) = tokenize(demo, TEXTS[1:])
    with _frozen_parameters(demo):
        options = {"source_layers": [3], "dim_batch": 64, "skip_first_positions": 4, "backward_provider": _ordinary_vjp}
        matrix = _jacobian_for_prompt(demo, torch.tensor([row]), **options)[3]
    some = vectors(3, 128)
    found = carried(demo, [row[:-1]], some, 4, n_positions=len(row) - 5)  # what leaves block 3 enters block 4
    expected = (some @ matrix.T).double()
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_neither_late_starts_nor_batches_nor_hooks_around_matter(demo, monkeypatch):
    rows, some = tokenize(demo, TEXTS), vectors(3, 128)
    expected = carried(demo, rows, some, 3, n_positions=2)
    with steering(demo, Ablation(Direction(some[0], None, 3, -1))), torch.inference_mode():
        assert torch.allclose(carried(demo, rows, some, 3, n_positions=2, batch_size=1), expected, atol=1e-5)
    monkeypatch.setattr(jacobian, "starts_late", lambda model: False)
    assert torch.allclose(carried(demo, rows, some, 3, n_positions=2), expected, atol=1e-5)


def test_a_planted_token_comes_first_and_random_directions_say_nothing(demo):
    hf = demo.original_model
    token = demo.tokenizer(" pizza", add_special_tokens=False)["input_ids"][0]
    row = hf.lm_head.weight[token].detach() * hf.model.norm.weight.detach()
    direction = Direction(row, None, 7, -1)
    found = read_tokens(demo, direction, TEXTS, n=3)
    first = found.table.iloc[0]
    assert first.id == token and first.beyond_chance and first.z > 1.5 * found.chance
    assert found.lens == "jacobian" and "Jacobian lens" in repr(found)
    lucky = [
        read_tokens(demo, random_direction(direction, seed), TEXTS[:1], n=1, n_positions=1, n_random=64, seed=7)
        for seed in range(12)
    ]
    assert sum(one.table.beyond_chance[0] for one in lucky) <= 3  # one in twenty, by chance


def test_what_the_last_block_turns_into_a_token_is_heard_by_the_jacobian_lens_alone():
    """A head of the last block that reads one direction and writes a token's."""
    model = load_model("demo", device="cpu")
    hf = model.original_model
    token = model.tokenizer(" pizza", add_special_tokens=False)["input_ids"][0]
    row = hf.lm_head.weight[token].detach() * hf.model.norm.weight.detach()
    read = vectors(1, 128)[0]
    with torch.no_grad():
        attention = hf.model.layers[7].self_attn
        attention.v_proj.weight[0] = 6 * read
        attention.o_proj.weight[:, 0] = row / row.norm()
    direction = Direction(read, None, 7, -1)
    assert token not in read_tokens(model, direction, n=5).table.id.tolist()
    first = read_tokens(model, direction, TEXTS, n=1).table.iloc[0]
    assert first.id == token and first.beyond_chance


def test_bad_input(demo, tmp_path):
    direction = Direction(torch.ones(128), None, 3, -1)
    with pytest.raises(CosmicError, match=r"^prompts: none given"):
        read_tokens(demo, direction, [])
    with pytest.raises(CosmicError, match=r"^positions: 99 asked for, and a prompt has only"):
        read_tokens(demo, direction, ["hi"], n_positions=99)
    with pytest.raises(CosmicError, match=r"^prompts: must be a list of texts"):
        read_tokens(demo, direction, "hi")
    with pytest.raises(CosmicError, match=r"^batch_size: "):
        read_tokens(demo, direction, ["hi"], batch_size=0)
    moe = load_model(save(tmp_path, "mixtral"), device="cpu")
    with pytest.raises(CosmicError, match=r"^model: something in MixtralForCausalLM has no forward-mode derivative"):
        read_tokens(moe, Direction(torch.ones(32), None, 1, -1), ["hi"])
