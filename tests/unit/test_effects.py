import pytest
import torch

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    CosmicError,
    CosmicOptions,
    RefusalTokenOptions,
    compare_selections,
    layer_similarities,
    select_by_refusal_tokens,
    select_cosmic,
    standard_conditions,
)

FEW = {"n_train": 8, "n_val": 4, "n_positions": 1, "max_kl": 50.0}


@pytest.fixture(scope="module")
def linear(demo, prompts):
    return select_cosmic(demo, prompts, CosmicOptions(mode="linear", alpha=0.5, **FEW))


@pytest.fixture(scope="module")
def affine(demo, prompts):
    return select_by_refusal_tokens(demo, prompts, RefusalTokenOptions(mode="affine", alpha=2.0, **FEW))


def test_a_selection_gives_the_edits_of_its_mode_and_alpha(linear, affine):
    assert type(linear.removal()) is Ablation and type(linear.induction()) is Addition
    assert type(affine.removal()) is AffineEdit and affine.removal().alpha == 0.0
    assert [one.induction().alpha for one in (linear, affine)] == [0.5, 2.0]
    assert linear.induction(0.0).alpha == 0.0


def test_conditions_are_what_was_chosen(linear, affine):
    for selection, removal, induction in ((linear, Ablation, Addition), (affine, AffineEdit, AffineEdit)):
        for condition in standard_conditions(selection):
            if condition.name == "baseline":
                assert condition.interventions == ()
                continue
            (edit,) = condition.interventions
            assert type(edit) is (removal if condition.kind == "harmful" else induction)
            if condition.kind == "harmless":
                assert edit.alpha == selection.alpha
    given = {c.name: c.interventions for c in standard_conditions(linear.direction, "affine", 0.25)}
    assert given["induction"][0].alpha == 0.25 and type(given["induction"][0]) is AffineEdit


def test_a_bare_direction_needs_a_mode(demo, linear):
    with pytest.raises(CosmicError, match="mode: a direction does not know how it was chosen"):
        standard_conditions(linear.direction)
    with pytest.raises(CosmicError, match="mode: a direction does not know how it was chosen"):
        layer_similarities(demo, ["hi"], ["hello"], linear.direction)
    with pytest.raises(CosmicError, match="mode: found 'affine', and the selection was made in 'linear'"):
        standard_conditions(linear, "affine")


def test_similarities_are_of_the_chosen_edits(demo, prompts, linear):
    sides = prompts.side("positive", "val", 4), prompts.side("negative", "val", 4)
    found = layer_similarities(demo, *sides, linear)
    expected = layer_similarities(demo, *sides, linear.direction, "linear", 0.5)
    assert torch.equal(found.removal, expected.removal) and torch.equal(found.induction, expected.induction)
    assert not torch.allclose(found.removal, layer_similarities(demo, *sides, linear.direction, "affine").removal)


def test_a_comparison_says_with_which_edits(demo, prompts):
    options = CosmicOptions(alpha=0.5, **FEW), RefusalTokenOptions(mode="linear", **FEW)
    table = compare_selections(demo, prompts, *options, n_test=2, max_new_tokens=4).table.set_index("method")
    assert table["mode"].to_dict() == {"COSMIC": "affine", "refusal tokens": "linear"}
    assert table.alpha.to_dict() == {"COSMIC": 0.5, "refusal tokens": 1.0}
