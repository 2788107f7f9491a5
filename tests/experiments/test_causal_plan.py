"""The plan of a causal map counts its patches and their multiply-adds."""

import pytest
import torch

from cosmic_tl import CosmicError, Direction
from cosmic_tl.experiments import CausalOptions, causal_map, plan_causal_map
from cosmic_tl.selection.pass_costs import block_costs

SIDES = ["Rob the old bank clerk.", "Steal a car."], ["Thank the old bank clerk.", "Wash a car now."]


def _plan(model, prompts=SIDES, **options):
    return plan_causal_map(model, prompts, CausalOptions(**options)).table.set_index("step")


def test_it_counts_what_is_made(demo):
    found = plan_causal_map(demo, SIDES, CausalOptions(n_positions=2, n_placebos=3))
    assert "CausalPlan: 80 patches of 2 + 2 prompts" in repr(found)
    table = found.table.set_index("step")
    assert table.patches.to_dict() == {"means": 0, "clean": 0, "direction": 16, "placebo": 48, "whole": 16}
    assert table.gmacs["placebo"] == pytest.approx(3 * table.gmacs["direction"])
    heads = _plan(demo, n_positions=2, part="head", layers=(2, 3), whole=False)
    assert heads.patches["direction"] == 2 * 2 * 4 and "whole" not in heads.index
    removal = _plan(demo, n_positions=2, treatment="removal")
    assert removal.gmacs["direction"] == pytest.approx(table.gmacs["direction"] / 2, rel=0.1)  # positive prompts alone
    up_to, one = _plan(demo, n_positions=1, span="up-to"), _plan(demo, n_positions=1)
    assert up_to.gmacs["direction"] > 1.5 * one.gmacs["direction"]  # each from the lowest layer on


def test_its_multiply_adds_are_those_of_the_tokens_that_pass(demo):
    """Weights times the tokens that enter each block; attention scores, which are few, are counted by the plan alone."""
    direction, options = Direction(torch.ones(128), None, 3, -1), {"n_positions": 2, "whole": False}
    blocks = block_costs(demo)

    def passed(**more):
        seen = torch.zeros(8, dtype=torch.long)

        def count(layer):
            def hook(module, args):
                seen[layer] += args[0].shape[0] * args[0].shape[1]

            return hook

        # Every token that goes through a block gives its keys there.
        modules = [layer.self_attn.k_proj for layer in demo.original_model.model.layers]
        handles = [module.register_forward_pre_hook(count(i)) for i, module in enumerate(modules)]
        causal_map(demo, SIDES, direction, evaluation_layers=(7,), **options, **more)
        for handle in handles:
            handle.remove()
        return seen

    passed()  # with what is found out once per model
    extra = passed(n_placebos=4) - passed(n_placebos=1)  # three placebos more, of four prompts at one and at two tokens
    n_rows = 3 * 4 * (8 * 2 - 1)  # each of which gives one row of logits; one place does not reach the last token
    macs = sum(int(n) * block.weights for n, block in zip(extra[:-1], blocks[:-1], strict=True))
    macs += int(extra[-1] - n_rows) * blocks[-1].keys_values + n_rows * (blocks[-1].weights + 128 * 2048)
    plan = plan_causal_map(demo, SIDES, CausalOptions(n_placebos=3, **options)).table.set_index("step")
    assert 1e9 * plan.gmacs["placebo"] == pytest.approx(macs, rel=0.03)
    assert extra.tolist() == [3 * 4 * 3 * (layer + 1) - 3 * 4 * 2 * (layer == 7) for layer in range(8)]


def test_bad_input(demo):
    with pytest.raises(CosmicError, match=r"^layers: found \(9,\)"):
        plan_causal_map(demo, SIDES, CausalOptions(layers=(9,)))
    with pytest.raises(CosmicError, match=r"^prompts: found 2 positive and 1 negative"):
        plan_causal_map(demo, (SIDES[0], SIDES[1][:1]), CausalOptions(treatment="paired"))
