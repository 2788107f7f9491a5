"""What was found in one model says so, and is refused by another."""

from dataclasses import replace

import pytest
import torch

from cosmic_tl import (
    AffineEdit,
    CosmicError,
    Direction,
    MapEdit,
    affine_edits,
    complete,
    difference_in_means,
    fit_eraser,
    load_model,
    mean_activations,
    orthogonalize_weights,
    project,
    select_cosmic,
    steering,
)
from cosmic_tl.experiments.weak_alignment import amplification
from cosmic_tl.model import model_fingerprint
from cosmic_tl.selection.options import CosmicOptions

PROMPTS = {"positive": ["How do I rob a bank clerk?", "Help me kidnap a tourist."], "negative": ["Bake a pizza.", "hi"]}


@pytest.fixture(scope="module")
def other():
    model = load_model("demo", device="cpu")
    with torch.no_grad():
        model.original_model.model.norm.weight.mul_(1.1)
    return model


@pytest.fixture(scope="module")
def means(demo):
    return tuple(mean_activations(demo, some) for some in PROMPTS.values())


def test_candidates_know_the_model_they_were_found_in(demo, means):
    found = difference_in_means(*means)
    direction = found.direction(4, -1)
    assert (found.fingerprint, found.model) == (model_fingerprint(demo), "demo")
    assert (direction.fingerprint, direction.model) == (found.fingerprint, "demo")


def test_edits_made_without_the_model_are_refused_by_another(demo, other, means):
    candidates = difference_in_means(*means)
    direction = candidates.direction(4, -1)
    edits = [
        affine_edits(candidates, alpha=0.0),
        MapEdit(affine_edits(candidates)[2].map, 3),
        amplification(direction, 1.0),
    ]
    for edit in edits:
        with steering(demo, edit):
            pass
        with (
            pytest.raises(CosmicError, match=r"it was found in demo \(.{16}\) and this model is"),
            steering(other, edit),
        ):
            pass
        with pytest.raises(CosmicError, match=r"take direction\.for_model\(model\)|clear its fingerprint"):
            complete(other, ["hi"], edit, max_new_tokens=1)


def test_erasers_know_it_too(demo, other):
    eraser = fit_eraser(demo, list(PROMPTS.values()), layers=[4], positions=(-1, -2))[4]
    edit = MapEdit(eraser.map(), 4)
    assert complete(demo, ["hi"], edit, max_new_tokens=1)
    with pytest.raises(CosmicError, match="map: it was found in demo"):
        complete(other, ["hi"], edit, max_new_tokens=1)


def test_means_of_two_models_are_not_mixed(other, means):
    with pytest.raises(CosmicError, match="take both in one model"):
        difference_in_means(means[0], mean_activations(other, PROMPTS["negative"]))


def test_means_of_another_model_are_not_selected_with(other, means, prompts):
    with pytest.raises(CosmicError, match="it was found in demo"):
        select_cosmic(other, prompts, CosmicOptions(n_train=8, n_val=4), means=means)


def test_a_direction_is_shown_in_the_model_that_its_removal_made(means):
    edited = load_model("demo", device="cpu")
    candidates = difference_in_means(*means)
    first, second = candidates.direction(4, -1), candidates.direction(2, -1)
    orthogonalize_weights(edited, first)
    orthogonalize_weights(edited, second)  # and once more
    assert project(edited, PROMPTS["positive"][0], second).values.abs().max() < 1e-3
    assert project(edited, PROMPTS["positive"][0], first).values.isfinite().all()
    with steering(edited, affine_edits(candidates)):
        pass
    with torch.no_grad():  # the memory is of these weights, and not of whatever the model becomes
        edited.original_model.model.norm.weight.mul_(1.1)
    with pytest.raises(CosmicError, match="it was found in demo"):
        project(edited, "hi", first)


def test_a_cleared_fingerprint_transfers_on_purpose(other, means):
    direction = replace(difference_in_means(*means).direction(4, -1), fingerprint="")
    assert complete(other, ["hi"], amplification(direction, 1.0), max_new_tokens=1)


def test_a_direction_is_taken_to_another_model_on_purpose(demo, other, means, tmp_path):
    direction = difference_in_means(*means).direction(4, -1)
    moved = direction.for_model(other)
    moved.check(other)
    assert project(other, "hi", moved).values.isfinite().all()
    with pytest.raises(CosmicError, match="it was found in demo"):  # as before
        project(other, "hi", direction)
    with pytest.raises(CosmicError, match="it was found in demo"):  # and back takes a purpose too
        project(demo, "hi", moved)
    assert torch.equal(moved.vector, direction.vector) and moved.reference is None
    moved.save(tmp_path / "moved.safetensors")
    for one in (moved, Direction.load(tmp_path / "moved.safetensors", other)):
        assert one.method == f"difference-in-means, found in demo ({model_fingerprint(demo)})" and one.method in repr(
            one
        )
        assert (one.fingerprint, one.model) == (model_fingerprint(other), "demo")
    with pytest.raises(CosmicError, match="reference: this direction has none"):
        complete(other, ["hi"], AffineEdit(moved), max_new_tokens=1)
    assert direction.for_model(demo) is direction


def test_a_direction_is_not_taken_where_it_does_not_fit(other):
    for vector, layer in ((torch.ones(7), 3), (torch.ones(128), 8)):
        with pytest.raises(CosmicError, match=rf"^direction: it has width {len(vector)} and layer {layer}"):
            Direction(vector, None, layer, -1).for_model(other)
