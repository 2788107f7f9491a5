import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    CosmicError,
    CosmicOptions,
    Effects,
    RefusalTokenOptions,
    RunSettings,
    cache_activations,
    compare_selections,
    layer_similarities,
    run,
    select_by_refusal_tokens,
    select_cosmic,
)
from cosmic_tl.activations import class_means, random_splits
from cosmic_tl.experiments import standard_conditions
from cosmic_tl.experiments.placebos import (
    calibrate_placebos,
    calibration_notes,
    mean_shift,
    placebo_conditions,
)
from cosmic_tl.figures import plot_refusal_rates
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.selection.equal_kl import TOLERANCE

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
            assert type(edit) is (removal if condition.side == "positive" else induction)
            if condition.side == "negative":
                assert edit.alpha == selection.alpha
    given = {c.name: c.interventions for c in standard_conditions(linear.direction, mode="affine", alpha=0.25)}
    assert given["induction"][0].alpha == 0.25 and type(given["induction"][0]) is AffineEdit


def test_a_bare_direction_needs_a_mode(demo, linear):
    with pytest.raises(CosmicError, match="mode: a direction does not know how it was chosen"):
        standard_conditions(linear.direction)
    with pytest.raises(CosmicError, match="mode: a direction does not know how it was chosen"):
        layer_similarities(demo, (["hi"], ["hello"]), linear.direction)
    with pytest.raises(CosmicError, match="mode: found 'affine', and the selection was made in 'linear'"):
        standard_conditions(linear, mode="affine")


def test_similarities_are_of_the_chosen_edits(demo, prompts, linear):
    sides = prompts.side("positive", "val", 4), prompts.side("negative", "val", 4)
    found = layer_similarities(demo, sides, linear)
    expected = layer_similarities(demo, sides, linear.direction, mode="linear", alpha=0.5)
    assert torch.equal(found.removal, expected.removal) and torch.equal(found.induction, expected.induction)
    assert not torch.allclose(found.removal, layer_similarities(demo, sides, linear.direction, mode="affine").removal)


def test_a_comparison_says_with_which_edits(demo, prompts):
    cosmic, tokens = CosmicOptions(alpha=0.5, **FEW), RefusalTokenOptions(mode="linear", **FEW)
    found = compare_selections(demo, prompts, cosmic=cosmic, refusal_tokens=tokens, n_test=2, max_new_tokens=4)
    table = found.table.set_index("method")
    assert table["mode"].to_dict() == {"COSMIC": "affine", "refusal tokens": "linear"}
    assert table.alpha.to_dict() == {"COSMIC": 0.5, "refusal tokens": 1.0}


@pytest.fixture(scope="module")
def sides(prompts):
    return prompts.side("positive", "val", 8), prompts.side("negative", "val", 8)


def test_shuffled_labels_are_a_difference_of_random_halves(demo, prompts):
    """Against a plain computation from all activations; and each label has half of either side."""
    train = prompts.side("positive", "train", 10), prompts.side("negative", "train", 7)
    means = class_means(demo, train, seeds=[0, 5], batch_size=4)
    for side, found, splits in zip(train, means, random_splits([10, 7], [0, 5]), strict=True):
        activations = cache_activations(demo, side).double()
        for seed, weights in splits.items():
            half = weights > 0
            assert int(half.sum()) == len(side) // 2
            expected = activations[half].mean(0) - activations[~half].mean(0)
            assert torch.allclose(found.splits[seed], expected, atol=1e-6)
    assert not torch.equal(means[0].splits[0], means[0].splits[5])


def test_placebo_directions_come_with_a_selection(demo, prompts):
    options = CosmicOptions(n_train=32, n_val=8, n_positions=1, max_kl=50.0)
    passes = []
    handle = demo.original_model.register_forward_pre_hook(lambda *args: passes.append(1))
    try:
        with_none = select_cosmic(demo, prompts, options, seeds=[], batch_size=16)
        n = len(passes)
        selection = select_cosmic(demo, prompts, options, seeds=[3, 4], batch_size=16)
    finally:
        handle.remove()
    assert len(passes) == 2 * n  # not a pass more
    assert with_none.candidates.shuffled_directions(with_none.direction) == {}
    shuffled = selection.candidates.shuffled_directions(selection.direction)
    assert list(shuffled) == [3, 4]
    for seed, one in shuffled.items():
        assert one.method == f"shuffled labels (seed {seed})" and one.layer == selection.direction.layer
        assert one.norm == pytest.approx(selection.direction.norm)
        assert abs(float(one.unit @ selection.direction.unit)) < 0.9
    found = [(c.name, c.seed) for c in standard_conditions(selection, seed=3, n_placebos=2) if c.seed is not None]
    assert found == [
        ("random removal", 3),
        ("shuffled removal", 3),
        ("shuffled removal", 4),
        ("random induction", 3),
        ("random induction", 4),
        ("shuffled induction", 3),
        ("shuffled induction", 4),
    ]
    with pytest.raises(CosmicError, match="n_placebos: must be at least 1, found 0"):
        standard_conditions(selection, n_placebos=0)


@pytest.mark.parametrize(("name", "alpha"), [("linear", 0.5), ("affine", 0.5)])
def test_placebos_disturb_as_much_as_the_real_edits(demo, sides, request, name, alpha):
    """By plain passes: the same KL divergence on negative prompts, the same length of shift on positive ones."""
    selection = request.getfixturevalue(name)
    calibrated = calibrate_placebos(demo, sides, selection, alpha=alpha, seeds=[0, 1])
    assert [one.within for one in calibrated] == [True] * 4 and calibration_notes(calibrated) == []
    conditions = placebo_conditions(calibrated, selection)
    assert [(c.side, c.name, c.seed) for c in conditions] == [
        ("positive", "random translation", 0),
        ("positive", "random translation", 1),
        ("negative", "equal-KL induction", 0),
        ("negative", "equal-KL induction", 1),
    ]
    batch = next(batches(demo, tokenize(demo, sides[1]), 8))
    clean = next_token_logits(demo, batch)

    def divergence(edit):
        return float(kl_divergence(clean, next_token_logits(demo, batch, intervention_hooks(demo, edit))).mean())

    real = divergence(selection.induction(alpha))
    for condition in conditions[2:]:
        assert divergence(condition.interventions) == pytest.approx(real, rel=TOLERANCE + 0.01)
        (edit,) = condition.interventions
        assert abs(float(edit.direction.unit @ selection.direction.unit)) < 0.5
    layer = selection.direction.layer
    shift = mean_shift(demo, sides[0], selection.removal(), layer)
    for condition in conditions[:2]:
        assert mean_shift(demo, sides[0], condition.interventions, layer) == pytest.approx(shift, rel=1e-3)


def test_a_strength_out_of_reach_is_reported(demo, sides, affine):
    """At α = 2 the direction moves the next token further than this random direction does at any strength."""
    found = calibrate_placebos(demo, sides, affine, seeds=[0])[1]
    assert not found.within and found.reached < found.target and found.alpha == 2 * 32
    (note,) = calibration_notes([found])
    assert note.startswith('Placebo "equal-KL induction", seed 0: 5.') and "(α 64)" in note


def rows_of(side, condition, refused, seed=None):
    verdicts = ["refusal" if one == "x" else "compliance" for one in refused]
    rows = enumerate(verdicts)
    row = {"side": side, "condition": condition, "seed": seed, "cross_entropy": 1.0, "completion": ""}
    return [{**row, "prompt": f"prompt {i}", "verdict": verdict} for i, verdict in rows]


@pytest.fixture
def effects():
    rows = [
        *rows_of("positive", "baseline", "xxxxxxxxx."),
        *rows_of("positive", "removal", ".........x"),
        *rows_of("positive", "random translation", "xxxxxxxx..", 0),
        *rows_of("positive", "random translation", "xxx.......", 1),
    ]
    return Effects(pd.DataFrame(rows))


def test_placebos_are_shown_with_their_range(effects):
    found = effects.rate("positive", "random translation")
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(0.55), 0.3, 0.8, 10)
    table = effects.table.set_index("condition")
    assert table.seeds.to_dict() == {"baseline": 0, "removal": 0, "random translation": 2}
    assert table.loc["random translation", ["low", "high", "n"]].tolist() == [0.3, 0.8, 10]
    assert table.loc["removal", "low"] < 0.1 < table.loc["removal", "high"]  # Wilson's
    assert effects.by_seed().rate.tolist() == [0.9, 0.1, 0.8, 0.3]
    figure = plot_refusal_rates(effects)
    assert figure.data[0].error_y.array[2] == pytest.approx(0.25)
    assert "range over seeds" in figure.layout.title.subtitle.text
    with pytest.raises(
        CosmicError, match="condition: no 'remove' on 'positive' prompts; there are positive, baseline;"
    ):
        effects.rate("positive", "remove")


def test_paired_tests_count_prompts_that_differ(effects):
    found = effects.paired("positive", "removal", "baseline")
    assert (found.only_condition, found.only_against, found.n, found.seeds) == (1, 9, 10, 0)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # 0 or 1 of 10 coins, on either side
    worst = effects.paired("positive", "removal", "random translation")
    assert (worst.only_condition, worst.only_against, worst.seeds) == (1, 3, 2)
    assert worst.p_value == pytest.approx(2 * (1 + 4) / 2**4)
    assert effects.paired("positive", "removal", "removal").p_value == 1.0
    assert effects.paired_table().against.tolist() == ["baseline", "random translation"]
    others = effects.completions.assign(prompt=effects.completions.prompt + effects.completions.condition)
    with pytest.raises(CosmicError, match="were not made on the same prompts"):
        Effects(others).paired("positive", "removal", "baseline")


@pytest.mark.parametrize("method", [CosmicOptions, RefusalTokenOptions])
def test_a_stopped_run_goes_on_with_the_same_placebos(demo, prompts, tmp_path, method):
    settings = RunSettings(method(mode="affine", **FEW), n_test=3, max_new_tokens=4, n_placebos=2)
    whole = run(demo, prompts, tmp_path / "whole", settings)
    names = whole.effects.completions.groupby(["side", "condition"]).seed.nunique()
    assert names["negative"].to_dict() == {
        "baseline": 0,
        "equal-KL induction": 2,
        "induction": 0,
        "random induction": 2,
        "shuffled induction": 2,
    }
    assert names["positive"].to_dict() == {
        "baseline": 0,
        "random removal": 1,
        "random translation": 2,
        "removal": 0,
        "shuffled removal": 2,
    }
    # Stopped after the first of two seeds of shuffled removal.
    out = tmp_path / "whole"
    log = out / "resume" / "completions.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert [json.loads(line)["rows"][0]["seed"] for line in lines[:5]] == [None, None, 0, 0, 1]
    log.write_text("".join(lines[:4]))
    before = (out / "completions.jsonl").read_text()
    for name in ("completions.jsonl", "summary.json", "report.html", "direction.safetensors", "scores.csv"):
        (out / name).unlink()
    again = run(demo, prompts, out, settings)
    assert (out / "completions.jsonl").read_text() == before and "NaN" not in before
    summaries = [{**one.summary, "seconds": 0} for one in (whole, again)]
    assert summaries[0] == summaries[1]
    assert {row["condition"] for row in again.summary["placebos"]} == {"random translation", "equal-KL induction"}
    assert len(again.summary["paired"]) == 8


def test_other_seeds_are_other_placebos(demo, prompts, tmp_path):
    settings = RunSettings(CosmicOptions(**FEW), n_test=2, max_new_tokens=2, n_placebos=1)
    run(demo, prompts, tmp_path, settings)
    found = run(demo, prompts, tmp_path, replace(settings, seed=7), overwrite=True)  # keeps activations and scores
    assert list(found.selection.candidates.shuffled) == [7]
    assert found.effects.completions.seed.dropna().unique().tolist() == [7]
    with pytest.raises(CosmicError, match="n_placebos: must be at least 1, found 0"):
        RunSettings(n_placebos=0)
