import pytest
import torch

from cosmic_tl import ChatFormat, CosmicError, CosmicOptions, load_model, plan_selection, select_cosmic
from cosmic_tl.selection.pass_costs import BlockCost, Tokens, block_costs, macs


def test_a_pass_costs_what_counting_by_hand_gives():
    blocks = [BlockCost(1000, 100, 10)] * 4
    tokens = Tokens.of([[0] * 5, [0] * 7], prefix=3)  # own: 2 and 4
    assert tokens == Tokens(2, 3, 6, 2 * 3 + 3 + 4 * 3 + 10)
    # Prefix and own tokens go through blocks 1 and 2; in 3 all give keys and values, the two last tokens go on.
    whole = 2 * ((6 + 3) * 1000 + (31 + 6) * 10)
    final = (6 + 3 - 2) * 100 + 2 * 1000 + 31 * 2 // 6 * 10
    assert macs(tokens, blocks, 1, 3) == whole + final
    assert macs(tokens, blocks, 1, 3, unembedding=5) == whole + final + 10


def test_block_costs_count_the_weights(demo, save_model, tmp_path):
    assert {cost.weights for cost in block_costs(demo)} == {128 * (128 + 64 + 64 + 128) + 3 * 128 * 352}
    mixture = load_model(save_model(tmp_path, "mixtral"), device="cpu")
    # Attention, router, and two of the four experts.
    assert block_costs(mixture)[0].weights == 32 * (32 + 16 + 16 + 32) + 32 * 4 + 2 * 3 * 32 * 64


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_the_plan_says_what_is_made_and_why_the_rest_is_not(demo, prompts, mode):
    options = CosmicOptions(mode=mode, evaluation_layers=(4,), n_val=20)
    plan = plan_selection(demo, prompts, options)
    cells = plan.cells.set_index(["measure", "layer", "position"]).status
    assert len(cells) == 3 * 8 * 5
    above = cells.loc["s_comply", 6, -1]
    assert above == ("known" if mode == "affine" else "pass")
    assert cells.loc["s_refuse", 6, -1] == "known" and cells.loc["s_refuse", 4, -1] == "pass"
    assert cells.loc["kl", 3, -1] == "lazy" and cells.loc["kl", 7, -1] == "skipped"
    assert cells.loc["s_comply", 7, -2] == ("known" if mode == "affine" else "lazy")
    everything = plan_selection(demo, prompts, CosmicOptions(mode=mode, n_val=20, full_table=True))
    assert set(everything.cells.status) == {"pass"} and everything.macs > 1.5 * plan.macs
    assert "released procedure" in repr(plan) and "candidates" in plan._repr_html_()


def test_a_selection_makes_what_its_plan_says(demo, prompts):
    options = CosmicOptions(n_train=20, n_val=8)
    scores = {}
    plan = select_cosmic(demo, prompts, options, scores=scores).plan
    for measure in ("s_comply", "s_refuse"):
        made = {(layer, position) for layer, position, name in scores if name == measure}
        assert made == set(plan.of(measure, "pass", "known"))


def test_long_shared_prefixes_are_run_once(demo, prompts):
    options = CosmicOptions(n_val=50)
    short = plan_selection(demo, prompts, options)
    long = plan_selection(
        demo, prompts, options, chat=ChatFormat(system="You are a helpful person. Answer what is asked.")
    )
    assert long.n_prefix > short.n_prefix + 10
    assert long.macs < 1.3 * short.macs
    assert long.released_macs > 1.5 * short.released_macs


def test_a_plan_for_layers_that_do_not_exist(demo, prompts):
    with pytest.raises(CosmicError, match="layers 0 to 7"):
        plan_selection(demo, prompts, CosmicOptions(evaluation_layers=(8,)))


def test_block_costs_count_each_matrix_once(pair):
    """Also where the model has joint matrices, which TransformerLens splits."""
    bridge, plain = pair
    cfg = plain.config
    block = next(m for m in plain.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)[0]
    share = getattr(cfg, "num_experts_per_tok", 1) / getattr(cfg, "num_local_experts", 1)
    sizes = {name: param.numel() for name, param in block.named_parameters() if param.ndim > 1}
    expected = sum(size * share if "expert" in name else size for name, size in sizes.items())
    assert {cost.weights for cost in block_costs(bridge)} == {expected}
