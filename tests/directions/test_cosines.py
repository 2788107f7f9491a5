"""Cosines and angles are the plain ones, chance is what random directions have, and models are not mixed unawares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmic_tl import CosmicError, Direction, cache_activations, difference_in_means, load_model, make_candidates
from cosmic_tl.activations import class_means
from cosmic_tl.directions import (
    Subspace,
    category_directions,
    class_subspace,
    compare_directions,
    principal_angles,
)


def _direction(vector, **options):
    return Direction(torch.as_tensor(vector).float(), None, 3, -1, **options)


def _random(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_in_three_dimensions_chance_is_plain_geometry():
    a, b = _random(2, 3)
    plane, zero = torch.linalg.qr(_random(2, 3, 1).double().T)[0].T, torch.zeros(3).double()
    some = {"a": _direction(a), "b": _direction(b), "plane": Subspace(plane, zero, zero, 3, "x")}
    found = compare_directions(some)
    table = found.table.set_index(["first", "second"])
    cosine = float(a @ b / a.norm() / b.norm())
    assert table.loc[("a", "b"), "cosine"] == pytest.approx(cosine, abs=1e-6)
    # The cosine of a random direction is uniform in three dimensions,
    assert table.loc[("a", "b"), "p"] == pytest.approx(1 - abs(cosine), abs=1e-6) and found.chance == pytest.approx(
        0.95
    )
    # and that with a plane is at least c where the one with its normal is at most √(1 − c²).
    inside = float((plane @ a.double()).norm() / a.norm())
    assert table.loc[("a", "plane"), "cosine"] == pytest.approx(inside, abs=1e-6)
    assert table.loc[("a", "plane"), "p"] == pytest.approx((1 - inside**2) ** 0.5, abs=1e-6)
    assert table.loc[("a", "b"), "degrees"] == pytest.approx(np.rad2deg(np.arccos(cosine)), abs=1e-4)
    assert found.matrix.loc["b", "a"] == table.loc[("a", "b"), "cosine"] and found.matrix.loc["a", "a"] == 1


def test_random_directions_stay_below_chance_and_a_shared_part_does_not():
    noise = _random(21, 64)
    found = compare_directions({str(i): _direction(one) for i, one in enumerate(noise)})
    assert 0.01 < (found.table.cosine.abs() > found.chance).mean() < 0.1  # of 210 pairs, 5 % expected
    assert ((found.table.p < 0.05) == (found.table.cosine.abs() > found.chance)).all()
    shared = compare_directions({str(i): _direction(one + 2 * noise[20]) for i, one in enumerate(noise[:5])})
    assert (shared.table.cosine > shared.chance).all()
    against = compare_directions({"one": _direction(noise[0]), "other": _direction(-noise[0])})
    assert against.table.cosine[0] == pytest.approx(-1) and against.table.degrees[0] == pytest.approx(180, abs=0.1)


def test_angles_of_subspaces_are_principal_angles(demo, prompts):
    one, other = (class_subspace(demo, prompts, layer, 3, n_train=16) for layer in (4, 6))
    found = compare_directions({"4": one, "6": other}).table
    assert found.degrees.tolist() == pytest.approx(principal_angles(one, other).tolist(), abs=1e-3)
    assert found.angle.tolist() == [1, 2, 3] and found.p.isna().all()


def test_layers_generators_and_categories_are_one_call_each(demo, prompts):
    made = make_candidates(demo, prompts, ["dim", "pca"], n_train=16)
    layers = compare_directions(made["dim"].by_layer())
    assert layers.names == tuple(
        f"layer {layer}" for layer in range(1, 8)
    )  # before the first block the classes do not differ
    plain = made["dim"].vectors[[3, 5], -1]
    assert layers.matrix.loc["layer 3", "layer 5"] == pytest.approx(
        float(torch.cosine_similarity(*plain, dim=0)), abs=1e-6
    )
    generators = compare_directions({name: some.direction(4, -1) for name, some in made.items()})
    assert generators.table.cosine[0] > generators.chance

    asked = prompts.side("positive", "train", 24)
    kinds = {prompt: "first" if i < 8 else "second" if i < 20 else "few" for i, prompt in enumerate(asked)}
    found = category_directions(demo, replace(prompts, categories=kinds), 4, n_train=24)
    assert list(found) == ["first", "second"]
    stream = cache_activations(demo, asked)[:, 4, -1].double()
    mean = cache_activations(demo, prompts.side("negative", "train", 24))[:, 4, -1].double().mean(0)
    for name, some in (("first", stream[:8]), ("second", stream[8:20])):
        assert torch.allclose(found[name].vector.double(), some.mean(0) - mean, atol=1e-4)
        assert torch.allclose(found[name].known_reference().double(), mean, atol=1e-4)
    alike = compare_directions(found)
    assert alike.table.cosine[0] > 0.9  # harmful is one thing in the demo


def test_directions_of_two_models_are_compared_on_purpose_alone(demo, prompts):
    weak = load_model("demo-weak", device="cpu")
    sides = prompts.sides("train", 16)
    one, other = (difference_in_means(*class_means(model, sides)).direction(4, -1) for model in (demo, weak))
    with pytest.raises(
        CosmicError, match=r"^directions: 'one' was found in demo and 'other' in demo-weak; take both in"
    ):
        compare_directions({"one": one, "other": other})
    found = compare_directions({"one": one.for_model(weak), "other": other})
    assert found.table.cosine[0] > 0.9  # the fine-tune left the direction where it was


def test_bad_input(demo, prompts):
    one = _direction([1.0, 0.0])
    with pytest.raises(CosmicError, match=r"^directions: found 1; give at least two"):
        compare_directions({"one": one})
    with pytest.raises(CosmicError, match=r"^directions: 'one' has width 2 and 'other' 3"):
        compare_directions({"one": one, "other": _direction([1.0, 0.0, 0.0])})
    with pytest.raises(
        CosmicError, match=r"^categories: none of 4 positive training prompts' categories has 8 of them"
    ):
        category_directions(demo, prompts, 4, n_train=4)
    kinds = replace(prompts, categories=dict.fromkeys(prompts.side("positive", "train"), "all"))
    with pytest.raises(CosmicError, match=r"^layer, position: found 8 and -1"):
        category_directions(demo, kinds, 8, n_train=8)
    with pytest.raises(CosmicError, match=r"^position: found -99, and a prompt has only"):
        category_directions(demo, kinds, 4, position=-99, n_train=8)
