"""Several generators at once: each with its own filters and scores, and the best of all chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmic_tl import (
    Candidates,
    CosmicError,
    CosmicOptions,
    NoCandidateError,
    RefusalTokenOptions,
    Run,
    RunSettings,
    compare_selections,
    make_candidates,
    plan_selection,
    run,
    select_by_refusal_tokens,
    select_cosmic,
    steering,
)
from cosmic_tl.experiments import measure_sensitivity
from cosmic_tl.selection import measure_null

FEW = CosmicOptions(n_train=24, n_val=6, n_positions=2, max_kl=10.0, n_resamples=200)
NAMES = ("dim", "pca", "lda")


@pytest.fixture(scope="module")
def alone(demo, prompts):
    return {name: select_cosmic(demo, prompts, replace(FEW, directions=(name,))) for name in NAMES}


@pytest.fixture(scope="module")
def several(demo, prompts):
    return select_cosmic(demo, prompts, replace(FEW, directions=NAMES))


def test_each_generator_chooses_as_if_it_were_alone(alone, several):
    every = {several.generator: several, **several.rivals}
    assert sorted(every) == sorted(NAMES)
    for name, one in alone.items():
        found = every[name]
        assert found.generator == one.generator == name
        assert found.table.score.equals(one.table.score) and found.table.kept.equals(one.table.kept)
        assert torch.equal(found.direction.vector, one.direction.vector)
        assert found.stability.table.wins.equals(one.stability.table.wins)


def test_the_best_of_all_is_chosen(alone, several):
    scores = {name: one.winner.score for name, one in alone.items()}
    assert several.generator == max(scores, key=scores.get)
    assert several.winner.score == max(scores.values())
    assert several.candidates.method == several.direction.method
    # The same prompts' random labels are the placebos of every generator.
    shuffled = alone["dim"].candidates.shuffled
    assert shuffled and all(
        torch.equal(several.rivals[name].candidates.shuffled[s], v)
        for name in several.rivals
        for s, v in shuffled.items()
    )


def test_they_are_compared_in_the_same_resamples(alone, several):
    table = several.generators.table.set_index("generator")
    drawn = {}
    for name, one in alone.items():
        best = one.stability.best.numpy()
        assert best[0] == pytest.approx(one.winner.score)
        drawn[name] = best[1:]
    names = list(drawn)
    first = np.array(names)[np.argmax([drawn[name] for name in names], axis=0)]
    for name in names:
        assert table.wins[name] == pytest.approx((first == name).mean())
        apart = drawn[several.generator] - drawn[name]
        here = several.winner.score - alone[name].winner.score
        low, high = 2 * here - np.quantile(apart, [1 - 0.0125, 0.0125])
        assert table.behind_low[name] == pytest.approx(low, abs=1e-9)
        assert table.behind_high[name] == pytest.approx(high, abs=1e-9)
    assert several.generators.plot().data[0].x.tolist() == several.generators.table.wins.tolist()
    assert "Of the generators" in repr(several) and several.generators.said() in repr(several)


def test_the_score_of_a_resample_is_that_of_its_winner(alone):
    """Where one candidate always wins, its own resampled scores are the ones."""
    one = alone["dim"].stability
    row = one.table.iloc[0]
    assert np.nanmin(one.best) <= row.score <= np.nanmax(one.best)


def test_the_keys_of_scores_name_the_generator(demo, prompts, alone):
    scores, products = {}, {}
    select_cosmic(demo, prompts, replace(FEW, directions=("pca",)), scores=scores, products=products)
    assert scores and all(measure.startswith("pca/") for *_, measure in scores)
    before = dict(scores)
    # Another generator does not take these for its own.
    found = select_cosmic(demo, prompts, replace(FEW, directions=("dim",)), scores=scores, products=products)
    assert found.table.score.equals(alone["dim"].table.score)
    assert repr({key: scores[key] for key in before}) == repr(before)  # NaN where there is no direction
    assert len(scores) > len(before)
    # And what is known is not computed again.
    known = dict(scores)
    again = select_cosmic(demo, prompts, replace(FEW, directions=("dim", "pca")), scores=known, products=products)
    assert repr(known) == repr(scores) and again.generators.table.generator.nunique() == 2


def test_candidates_of_your_own_by_name(demo, prompts, alone):
    given = {"mine": alone["pca"].candidates, "other": alone["dim"].candidates}
    found = select_cosmic(demo, prompts, FEW, candidates=given)
    assert {found.generator, *found.rivals} == {"mine", "other"}
    assert found.winner.score == max(alone[name].winner.score for name in ("dim", "pca"))


def test_a_generator_that_the_filters_empty_is_no_error_if_another_is_left(demo, prompts, alone):
    given = alone["dim"].candidates
    hopeless = Candidates(0 * given.vectors, given.references, "nowhere")
    found = select_cosmic(demo, prompts, FEW, candidates={"nowhere": hopeless, "dim": given})
    assert found.generator == "dim" and "nowhere" in found.failures
    assert found.generators.table.failure.iloc[-1].startswith("selection: all 16 candidates")
    assert "nothing passes the filters of nowhere" in repr(found)
    with pytest.raises(NoCandidateError, match="so it is with b"):
        select_cosmic(demo, prompts, FEW, candidates={"a": hopeless, "b": hopeless})


def test_by_refusal_tokens_too(demo, prompts):
    options = RefusalTokenOptions(mode="affine", n_train=24, n_val=8, n_positions=2, max_kl=50.0, n_resamples=100)
    found = select_by_refusal_tokens(demo, prompts, replace(options, directions=("dim", "lda")))
    plain = select_by_refusal_tokens(demo, prompts, options)
    every = {found.generator: found, **found.rivals}
    assert torch.equal(every["dim"].direction.vector, plain.direction.vector)
    assert found.winner.bypass == min(one.winner.bypass for one in every.values())
    assert found.generators.table.wins.sum() == pytest.approx(1)


def test_saved_and_loaded(several, tmp_path):
    several.save(tmp_path / "selection.safetensors")
    found = type(several).load(tmp_path / "selection.safetensors")
    assert found.generators.table.equals(several.generators.table)


def test_comparison_by_generator_and_method(demo, prompts):
    cosmic = replace(FEW, directions=("dim", "pca"), n_positions=2, n_resamples=50)
    tokens = RefusalTokenOptions(mode="affine", n_train=24, n_val=8, n_positions=2, max_kl=50.0, n_resamples=0)
    found = compare_selections(demo, prompts, cosmic=cosmic, refusal_tokens=tokens, n_test=4, max_new_tokens=16)
    assert list(found.selections) == ["COSMIC, dim", "COSMIC, pca", "refusal tokens"]
    table = found.table
    assert table.method.tolist() == ["COSMIC", "COSMIC", "refusal tokens"]
    assert table.generator.tolist() == ["dim", "pca", "dim"]
    for row, (label, selection) in zip(table.itertuples(), found.selections.items(), strict=True):
        assert row.positive_removal == found.effects.rate("positive", f"removal, {label}").value
        assert row.kl == selection.winner.kl
        assert row.cosine == pytest.approx(
            float(selection.direction.unit @ found.selections["COSMIC, dim"].direction.unit)
        )
    assert table.wins.isna().tolist() == [False, False, True]
    assert found.plot().data[0].x.tolist() == table.positive_removal.tolist()


def test_generators_read_the_stream_under_a_surrounding_edit(demo, prompts, alone):
    edit = alone["dim"].induction()
    layer = alone["dim"].direction.layer
    plain = make_candidates(demo, prompts, ["pca"], n_train=8)["pca"].references
    with steering(demo, edit):
        found = make_candidates(demo, prompts, ["pca"], n_train=8)["pca"].references
        from cosmic_tl import mean_activations

        expected = mean_activations(demo, prompts.side("negative", "train", 8)).resid_pre
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found[:layer], plain[:layer], atol=1e-5)
    assert (found[layer:] - plain[layer:]).norm(dim=-1).min() > 0.01


def test_what_does_not_go_with_other_generators(demo, prompts):
    other = replace(FEW, directions=("pca",))
    for refuse in (measure_null, measure_sensitivity):
        with pytest.raises(CosmicError, match=r"^directions: found pca"):
            refuse(demo, prompts, other)


def test_candidates_with_other_columns_are_an_error(demo, prompts, alone):
    """Cells are those of the first; another generator's would be left out, or taken for others."""
    named = Candidates.from_vectors({(3, -1): torch.ones(128)}, n_layers=8, names=["mine"])
    with pytest.raises(
        CosmicError, match=r"^candidates: 'b' has the columns mine and 'a' .*; give all generators the same"
    ):
        select_cosmic(demo, prompts, FEW, candidates={"a": alone["dim"].candidates, "b": named})


def test_names_beside_candidates_are_an_error(demo, prompts, alone):
    with pytest.raises(CosmicError, match=r"^directions: found pca beside candidates"):
        select_cosmic(demo, prompts, replace(FEW, directions=("pca",)), candidates=alone["dim"].candidates)


def test_a_run_gets_further_generators_and_keeps_the_scores_that_it_has(demo, prompts, tmp_path):
    options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0, n_resamples=20)
    settings = RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1)
    both = replace(settings, selection=replace(options, directions=("pca", "dim")))
    run(demo, prompts, tmp_path / "run", settings)
    scores = tmp_path / "run" / "resume" / "scores.jsonl"
    before = scores.read_bytes().splitlines()
    found = run(demo, prompts, tmp_path / "run", both, overwrite=True)
    assert set(before) < set(scores.read_bytes().splitlines())
    fresh = run(demo, prompts, tmp_path / "fresh", both)
    for name in ("direction.safetensors", "scores.csv", "completions.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    assert found.summary["generators"] == fresh.summary["generators"] and len(found.summary["generators"]) == 2
    assert Run.load(tmp_path / "run").selection.generators.table.equals(found.selection.generators.table)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What each way to make directions chooses" in page and found.selection.generators.said() in page
    with pytest.raises(CosmicError, match=r"^null: found 9, and it is made of differences in means"):
        replace(both, null=9)


def test_the_plan_says_for_how_many(demo, prompts):
    one, two = (plan_selection(demo, prompts, replace(FEW, directions=some)) for some in (("dim",), ("dim", "pca")))
    assert "generators" not in repr(one) and "for each of 2 generators" in repr(two)
    assert one.macs == two.macs
