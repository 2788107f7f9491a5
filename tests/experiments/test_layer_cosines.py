"""Cosines by layer are those of plain passes; a direction of another model is refused until it is transferred on purpose."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import CosmicError, Direction, difference_in_means, load_model, random_direction
from cosmic_tl.activations import class_means
from cosmic_tl.experiments import cosines_by_layer


@pytest.fixture(scope="module")
def weak():
    return load_model("demo-weak", device="cpu")


@pytest.fixture(scope="module")
def direction(demo, prompts):
    return difference_in_means(*class_means(demo, prompts.sides("train", 32))).direction(4, -1)


def _plain(model, prompt):
    """`x[l, -2:]` of every layer, by one plain forward pass."""
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        states = model.original_model(ids, output_hidden_states=True).hidden_states
    return torch.stack([state[0, -2:] for state in states[:-1]]).double()


def test_it_is_what_plain_passes_give(demo, prompts, direction):
    sides = prompts.sides("test", 5)
    found = cosines_by_layer(demo, sides, direction, n_positions=2, batch_size=3)
    stream = [torch.stack([_plain(demo, prompt) for prompt in side]) for side in sides]
    cosines = [cosine_similarity(some, direction.unit.double(), dim=-1).mean(0) for some in stream]
    for side, expected in zip(("positive", "negative"), cosines, strict=True):
        for k, position in enumerate((-2, -1)):
            own = found.table[(found.table.side == side) & (found.table.position == position)]
            assert own.layer.tolist() == list(range(8))
            assert own.cosine.tolist() == pytest.approx(expected[:, k].tolist(), abs=1e-5)
            assert ((own.low <= own.cosine + 1e-9) & (own.cosine <= own.high + 1e-9)).all()
    last = found.gaps[found.gaps.position == -1]
    assert last.gap.tolist() == pytest.approx((cosines[0] - cosines[1])[:, 1].tolist(), abs=1e-5)
    # Along the difference of the mean unit activations no direction does better: the chance level is a share of its length.
    units = [(some / some.norm(dim=-1, keepdim=True)).mean(0)[:, 1] for some in stream]
    apart = (units[0] - units[1])[3]
    best = cosines_by_layer(demo, sides, Direction(apart.float(), None, 3, -1)).gaps.set_index("layer").loc[3]
    assert best.gap == pytest.approx(float(apart.norm()), abs=1e-5)
    assert best.chance == pytest.approx(0.173 * float(apart.norm()), rel=2e-3)


def test_random_directions_stay_below_chance(demo, prompts, direction):
    sides = prompts.sides("test", 4)
    gaps = [cosines_by_layer(demo, sides, random_direction(direction, seed)).gaps.iloc[4] for seed in range(12)]
    assert sum(abs(one.gap) > one.chance for one in gaps) <= 3  # one in twenty, by chance


def test_the_weak_model_still_tells_the_classes_apart(demo, weak, prompts, direction):
    with pytest.raises(CosmicError, match=r"^direction: it was found in demo .* take direction\.for_model\(model\)"):
        cosines_by_layer(weak, prompts, direction, n=8)
    own = cosines_by_layer(demo, prompts, direction, n=16).gaps
    there = cosines_by_layer(weak, prompts, direction.for_model(weak), n=16)
    assert there.model == "demo-weak" and "found in demo" in repr(there)
    for gaps in (own, there.gaps):
        late = gaps[gaps.layer >= 2]
        assert (late.low > 2 * late.chance).all() and (late.auc == 1).all()
    assert (there.gaps.gap < own.gap)[2:].all()  # though less far


def test_bad_input(demo, prompts, direction):
    with pytest.raises(CosmicError, match=r"^n_test: "):
        cosines_by_layer(demo, prompts, direction, n=0)
    with pytest.raises(CosmicError, match=r"^positions: "):
        cosines_by_layer(demo, prompts, direction, n_positions=0)
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        cosines_by_layer(demo, prompts, Direction(torch.ones(7), None, 3, -1))
