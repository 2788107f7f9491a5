"""RepInd is what plain hooks give, and knows a pair that depends on each other from one that does not."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import Ablation, CosmicError, Direction, difference_in_means, random_direction, steering
from cosmic_tl.activations import class_means
from cosmic_tl.experiments import measure_independence


@pytest.fixture(scope="module")
def pair(demo, prompts):
    found = difference_in_means(*class_means(demo, prompts.sides("train", 32)))
    return found.direction(3, -1, demo), found.direction(5, -1, demo)


@pytest.fixture(scope="module")
def asked(prompts):
    return prompts.side("positive", "test", 5)


def _cosines(model, prompt, direction, edit=()):
    """Of the last token, layer by layer, by a plain forward pass."""
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x[0, -1].double()

    hooks = [(f"blocks.{layer}.hook_resid_post", keep) for layer in range(8)]
    with torch.inference_mode(), steering(model, edit), model.hooks(fwd_hooks=hooks):
        model(ids)
    return torch.stack([cosine_similarity(stream, direction.unit.double(), dim=0) for stream in kept.values()])


def test_it_is_what_plain_passes_give(demo, pair, asked):
    found = measure_independence(demo, asked, *pair, n_placebos=2, batch_size=3)
    total = 0.0
    for read, ablated, name in ((pair[0], pair[1], "first"), (pair[1], pair[0], "second")):
        clean = torch.stack([_cosines(demo, prompt, read) for prompt in asked])
        edited = torch.stack([_cosines(demo, prompt, read, Ablation(ablated)) for prompt in asked])
        some = found.table[(found.table["read"] == name) & (found.table.ablated == "the other")].set_index("layer")
        assert some.cosine.tolist() == pytest.approx(edited.mean(0).tolist(), abs=1e-5)
        assert some.change.tolist() == pytest.approx((edited - clean).square().mean(0).tolist(), abs=1e-5)
        total += float((edited - clean).square().mean(0).sum())
    assert found.total == pytest.approx(total, abs=1e-5)
    assert found.cosine == pytest.approx(float(pair[0].unit @ pair[1].unit), abs=1e-6)


def test_directions_of_one_concept_depend_on_each_other_and_random_ones_do_not(demo, pair, asked):
    same = measure_independence(demo, asked, *pair)
    apart = measure_independence(demo, asked, pair[0], random_direction(pair[0], 3))
    assert same.total > 10 * apart.total
    # What layer 3 writes is read on the way to layer 5: random directions at the same angle do less. Not so the other way.
    second = same.scores.set_index("read").loc["second"]
    assert second.change > 1.5 * second.largest


def test_placebos_have_the_same_angle_and_another_seed(demo, pair, asked):
    from cosmic_tl.experiments.independence import _as_close

    placebos = [_as_close(pair[0], pair[1], seed) for seed in range(3)]
    for one in placebos:
        assert float(one.unit @ pair[1].unit) == pytest.approx(float(pair[0].unit @ pair[1].unit), abs=1e-5)
    assert float(placebos[0].unit @ placebos[1].unit) < 0.95


def test_bad_input(demo, pair, asked):
    with pytest.raises(CosmicError, match=r"^directions: their cosine is 1.0000"):
        measure_independence(demo, asked, pair[0], pair[0])
    with pytest.raises(CosmicError, match=r"^n_placebos: "):
        measure_independence(demo, asked, *pair, n_placebos=0)
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        measure_independence(demo, asked, pair[0], Direction(torch.ones(7), None, 3, -1))
