"""What a direction says is the plain unembedding of it, and a planted token is found."""

import pytest
import torch

from cosmic_tl import Ablation, CosmicError, CosmicOptions, Direction, random_direction, select_cosmic, steering
from cosmic_tl.metrics import read_tokens
from cosmic_tl.model.readout import read_out


def test_it_is_the_plain_models_norm_and_unembedding(demo):
    vectors = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    hf = demo.original_model
    with torch.inference_mode():
        expected = hf.lm_head(hf.model.norm(vectors))
    assert torch.allclose(read_out(demo, vectors), expected, atol=1e-4)
    direction = Direction(vectors[0], None, 3, -1)
    with steering(demo, Ablation(direction)):  # an edit around is not seen
        assert torch.allclose(read_out(demo, vectors), expected, atol=1e-4)
    found = read_tokens(demo, direction, n=5).table
    with torch.inference_mode():
        for sign, unit in (("+", direction.unit), ("-", -direction.unit)):
            logits = hf.lm_head(hf.model.norm(128**0.5 * unit[None]))[0]
            for row in found[found.sign == sign].itertuples():
                assert row.logit == pytest.approx(float(logits[row.id]), abs=1e-4)


def test_a_planted_token_comes_first_and_random_directions_say_nothing(demo):
    hf = demo.original_model
    token = demo.tokenizer(" pizza", add_special_tokens=False)["input_ids"][0]
    row = hf.lm_head.weight[token].detach() * hf.model.norm.weight.detach()
    found = read_tokens(demo, Direction(row, None, 3, -1))
    first = found.table.iloc[0]
    assert first.id == token and first.beyond_chance and first.z > 2 * found.chance
    lucky = [
        read_tokens(demo, random_direction(Direction(row, None, 3, -1), seed), n=1, seed=7).table.beyond_chance[0]
        for seed in range(20)
    ]
    assert sum(lucky) <= 4  # one in twenty, by chance


def test_the_demos_direction_speaks_of_refusal(demo, prompts):
    direction = select_cosmic(demo, prompts, CosmicOptions(n_train=32, n_val=16, n_resamples=0)).direction
    found = read_tokens(demo, direction, n=5)
    assert found.table.groupby("sign").size().tolist() == [5, 5]
    assert (found.table.z.groupby(found.table.sign).is_monotonic_decreasing).all()


def test_bad_input(demo):
    with pytest.raises(CosmicError, match=r"^n: "):
        read_tokens(demo, Direction(torch.ones(128), None, 3, -1), n=0)
    with pytest.raises(CosmicError, match=r"^n_random: found 2; take at least 16"):
        read_tokens(demo, Direction(torch.ones(128), None, 3, -1), n_random=2)
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        read_tokens(demo, Direction(torch.ones(7), None, 3, -1))
