"""Targets of the comparison against the plain formulas, and the variants side by side."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import CosmicError, CosmicOptions, cache_activations, select_cosmic, steering
from cosmic_tl.experiments.variants import (
    compare_training_folds,
    compare_variants,
    standard_variants,
    training_folds,
)
from cosmic_tl.interventions.modes import induction, removal

LAYERS = (2, 5, 6)
OPTIONS = CosmicOptions(evaluation_layers=LAYERS, n_train=16, n_val=6, max_kl=10.0, full_table=True, n_resamples=0)


def formula(reached, target_from, how):
    """`[prompt, layer, d_model]` of the steered and of the other class to a score."""
    if how == "concatenated":
        return cosine_similarity(reached.mean(0).flatten(), target_from.mean(0).flatten(), dim=0)
    target = target_from.mean((0, 1))
    if how == "mean":
        return cosine_similarity(reached.mean((0, 1)), target, dim=0)
    return torch.stack([cosine_similarity(prompt.mean(0), target, dim=0) for prompt in reached]).mean()


@pytest.mark.parametrize("mode", ["affine", "linear"])
@pytest.mark.parametrize("how", ["mean", "concatenated", "per-prompt", "centred"])
def test_each_target_is_its_formula(demo, prompts, how, mode):
    found = select_cosmic(demo, prompts, replace(OPTIONS, mode=mode, target=how))
    positive, negative = (prompts.side(side, "val", OPTIONS.n_val) for side in ("positive", "negative"))

    def seen(texts, edit=(), centre=0.0):
        with steering(demo, edit):
            return cache_activations(demo, texts, site="hook_resid_post").double()[:, list(LAYERS), -1] - centre

    if how == "centred":
        shared = sum(seen(side).mean(0) for side in prompts.sides("train", OPTIONS.n_train)) / 2
        seen, how = partial(seen, centre=shared), "mean"
    there, back = formula(seen(positive), seen(negative), how), formula(seen(negative), seen(positive), how)
    assert found.clean["similarity"] == pytest.approx(float(there + back) / 2, abs=1e-6)
    table = found.table.set_index(["layer", "position"])
    for cell in ((1, -2), (3, -1), (5, -4), (7, -1)):
        direction = found.candidates.direction(*cell)
        comply = formula(seen(positive, removal(direction, mode)), seen(negative), how)
        refuse = formula(seen(negative, induction(direction, mode)), seen(positive), how)
        assert (table.loc[cell].s_comply, table.loc[cell].s_refuse) == pytest.approx(
            (float(comply), float(refuse)), abs=1e-5
        )


def test_targets_agree_on_one_layer_and_one_prompt(demo, prompts):
    single = replace(OPTIONS, evaluation_layers=(5,), n_val=1)
    scores = [
        select_cosmic(demo, prompts, replace(single, target=how)).table.score.dropna().to_numpy()
        for how in ("mean", "concatenated", "per-prompt")
    ]
    assert len(scores[0]) > 20
    assert abs(scores[0] - scores[1]).max() < 1e-9 and abs(scores[0] - scores[2]).max() < 1e-9


def test_leaving_out_what_is_not_needed_changes_no_choice_of_any_target(demo, prompts):
    for how in ("concatenated", "per-prompt"):
        options = replace(OPTIONS, target=how)
        full, short = (select_cosmic(demo, prompts, replace(options, full_table=some)) for some in (True, False))
        assert (full.direction.layer, full.direction.position) == (short.direction.layer, short.direction.position)


def test_variants_side_by_side(demo, prompts):
    variants = standard_variants(CosmicOptions(n_train=24, n_val=6, n_resamples=0))
    table = compare_variants(demo, prompts, variants).table.set_index("variant")
    assert list(table.index) == list(variants)
    assert table.cosine["default"] == pytest.approx(1.0)
    assert min(table.evaluation_layers["second half"]) >= 4
    assert len(table.evaluation_layers["wide"]) == 2 and len(table.evaluation_layers["default"]) == 1
    for name in ("default", "wide, concatenated"):
        alone = select_cosmic(demo, prompts, variants[name])
        assert (table.layer[name], table.position[name]) == (alone.direction.layer, alone.direction.position)
        assert table.score[name] == pytest.approx(alone.winner.score, abs=1e-9)
    assert table.score["wide, per prompt"] < table.score["wide"]
    assert (table.cosine > 0.5).all()


def test_a_variant_that_leaves_nothing_says_so_and_spoils_nothing(demo, prompts):
    options = CosmicOptions(n_train=16, n_val=4, max_kl=10.0, n_resamples=0)
    table = compare_variants(demo, prompts, {"wide": options, "strict": replace(options, max_kl=1e-12)}).table
    assert "filtered out" in table.warnings[1] and table.layer.isna().tolist() == [False, True]


def test_no_variants(demo, prompts):
    with pytest.raises(CosmicError, match="variants: none given"):
        compare_variants(demo, prompts, {})


def test_the_centred_target_is_not_squeezed_by_what_all_activations_share(demo, prompts):
    plain, centred = (select_cosmic(demo, prompts, replace(OPTIONS, target=how)) for how in ("mean", "centred"))
    assert plain.clean["similarity"] > 0 > centred.clean["similarity"]


def test_training_folds_leave_out_each_prompt_once(demo, prompts):
    options = CosmicOptions(n_train=24, n_val=6, max_kl=50.0, n_resamples=0)
    sets = training_folds(prompts, options, n_folds=3)
    assert list(sets) == ["all", "first half", "second half", "without fold 1", "without fold 2", "without fold 3"]
    every = prompts.sides("train", 24)
    for side, texts in zip(("positive", "negative"), every, strict=True):
        halves = [sets[name].side(side, "train", 24) for name in ("first half", "second half")]
        assert sorted(halves[0] + halves[1]) == sorted(texts) and len(halves[0]) == 12
        left_out = [set(texts) - set(sets[f"without fold {k}"].side(side, "train", 24)) for k in (1, 2, 3)]
        assert sorted(text for some in left_out for text in some) == sorted(texts)
        assert {len(some) for some in left_out} == {8}
    found = compare_training_folds(demo, prompts, options, n_folds=3)
    table = found.table.set_index("variant")
    assert list(table.index) == list(sets) and table.cosine["all"] == pytest.approx(1.0)
    name = "without fold 2"
    alone = select_cosmic(demo, sets[name], replace(options, n_train=16)).direction
    assert (table.layer[name], table.position[name]) == (alone.layer, alone.position)
    assert found.selections[name].direction.vector.equal(alone.vector)
    with pytest.raises(CosmicError, match="n_folds: found 25, and there are 24 training prompts"):
        training_folds(prompts, options, n_folds=25)
    with pytest.raises(CosmicError, match="n_folds: must be at least 2"):
        training_folds(prompts, options, n_folds=1)
