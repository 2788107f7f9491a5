"""A choice beside directions without the concept."""

import json
from dataclasses import replace
from math import isnan

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import (
    CosmicError,
    CosmicOptions,
    RefusalTokenOptions,
    Run,
    RunSettings,
    Selection,
    cache_activations,
    random_direction,
    run,
    select_by_refusal_tokens,
    select_cosmic,
    steering,
)
from cosmic_tl.metrics import refusal_scores
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.chat import tokenize
from cosmic_tl.selection import Null, measure_null
from cosmic_tl.selection.null import EQUAL_KL, RANDOM, SHUFFLED

OPTIONS = CosmicOptions(n_train=24, n_val=12, max_kl=0.5, n_resamples=50)
N = 19


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return select_cosmic(demo, prompts, OPTIONS)


@pytest.fixture(scope="module")
def null(demo, prompts, selection):
    return measure_null(demo, prompts, selection, OPTIONS, n=N)


def plain_scores(demo, selection, held_out, direction):
    """S_comply and S_refuse on the held-out prompts, by whole passes under hooks."""
    layers = list(selection.evaluation_layers)

    def mean(texts, edit=()):
        with steering(demo, edit):
            found = cache_activations(demo, texts, site="hook_resid_post")
        return found[:, layers, -1].double().mean((0, 1))

    edits = OPTIONS.edits
    removed, induced = (
        mean(held_out.positive, edits.removal(direction)),
        mean(held_out.negative, edits.induction(direction)),
    )
    return (
        float(cosine_similarity(removed, mean(held_out.negative), dim=0)),
        float(cosine_similarity(induced, mean(held_out.positive), dim=0)),
    )


def test_the_halves_are_disjoint_and_the_choice_is_that_of_the_first(demo, prompts, selection):
    held_out = selection.stability.held_out
    val = prompts.sides("val", 12)
    halves = [
        [text for text in side if text not in left]
        for side, left in zip(val, (held_out.positive, held_out.negative), strict=True)
    ]
    assert [len(half) for half in halves] == [6, 6] == [len(held_out.positive), len(held_out.negative)]
    first = replace(
        prompts,
        positive={**prompts.positive, "val": tuple(halves[0])},
        negative={**prompts.negative, "val": tuple(halves[1])},
    )
    again = select_cosmic(demo, first, replace(OPTIONS, n_resamples=0)).direction
    assert (again.layer, again.position) == (held_out.layer, held_out.position)


def test_values_are_those_of_plain_passes(demo, selection, null):
    held_out = selection.stability.held_out
    direction = selection.candidates.direction(held_out.layer, held_out.position)
    observed = null.table.groupby("measure")["observed"].first()
    comply, refuse = plain_scores(demo, selection, held_out, direction)
    assert (observed.s_comply, observed.s_refuse) == pytest.approx((comply, refuse), abs=1e-4)
    assert observed.score == pytest.approx(comply + refuse, abs=2e-4)
    one = null.values[(null.values.null == RANDOM) & (null.values.number == 3)].set_index("measure").value
    comply, refuse = plain_scores(demo, selection, held_out, random_direction(direction, 3))
    assert (one.s_comply, one.s_refuse, one.score) == pytest.approx((comply, refuse, comply + refuse), abs=2e-4)


def test_shuffled_labels_are_differences_in_means_of_half_of_each_side(demo, prompts, selection, null):
    held_out = selection.stability.held_out
    direction = selection.candidates.direction(held_out.layer, held_out.position)
    streams = [
        cache_activations(demo, side)[:, held_out.layer, held_out.position].double()
        for side in prompts.sides("train", 24)
    ]
    generator = torch.Generator().manual_seed(5)
    parts = []
    for stream in streams:  # the same draws
        order = torch.randperm(24, generator=generator)
        parts.append(stream[order[:12]].mean(0) - stream[order[12:]].mean(0))
    vector = sum(parts) / 2
    like = replace(direction, vector=(vector / vector.norm() * direction.norm).float())
    comply, refuse = plain_scores(demo, selection, held_out, like)
    one = null.values[(null.values.null == SHUFFLED) & (null.values.number == 5)].set_index("measure").value
    assert (one.s_comply, one.s_refuse) == pytest.approx((comply, refuse), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_equal_kl_is_equal_or_left_out(demo, prompts, alpha):
    """At full strength the demo's induction changes the next token more than most random directions can."""
    options = replace(OPTIONS, alpha=alpha)
    selection, scores = select_cosmic(demo, prompts, options), {}
    null = measure_null(demo, prompts, selection, options, n=3, scores=scores)
    held_out = selection.stability.held_out
    direction = selection.candidates.direction(held_out.layer, held_out.position)
    rows = tokenize(demo, held_out.negative)

    def logits(edit=()):
        with torch.inference_mode(), steering(demo, edit):
            return torch.stack([demo(torch.tensor([row]))[0, -1] for row in rows])

    clean = logits()
    target = kl_divergence(clean, logits(options.edits.induction(direction))).mean()
    used = null.values[null.values.null == EQUAL_KL]
    assert set(used.measure) <= {"s_refuse"} and (len(used) == 3 or alpha == 1)
    for seed in range(3):
        strength = scores[held_out.layer, -1 - seed, "alpha"]
        assert isnan(strength) == (seed not in used.number.tolist())
        if not isnan(strength):
            placebo = options.edits.induction(random_direction(direction, seed), strength)
            assert float(kl_divergence(clean, logits(placebo)).mean()) == pytest.approx(float(target), rel=0.051)


def test_a_concept_is_told_from_its_null(null):
    table = null.table.set_index(["measure", "null"])
    assert (table.loc["score"].p_value == 1 / (N + 1)).all() and (table.loc["score"].margin > 2).all()
    for row in null.table.itertuples():
        some = null.values[(null.values.measure == row.measure) & (null.values.null == row.null)].value
        assert row.n == len(some) and (row.n == N or row.null == EQUAL_KL)
        assert row.reached == (some >= row.observed).sum() and row.p_value == (row.reached + 1) / (row.n + 1)
        assert row.margin == pytest.approx((row.observed - some.mean()) / some.std())


def test_sides_of_one_distribution_are_not_told_apart(demo, prompts):
    """Both sides are harmless: over several splits, hardly ever p ≤ .1 against shuffled labels."""
    texts = list(prompts.side("negative", "train", 96)) + list(prompts.side("negative", "val", 64))
    found = []
    for seed in range(5):
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        some = [texts[i] for i in order]
        one = replace(
            prompts,
            positive={"train": tuple(some[:24]), "val": tuple(some[24:40]), "test": tuple(some[:2])},
            negative={"train": tuple(some[40:64]), "val": tuple(some[64:80]), "test": tuple(some[2:4])},
        )
        options = replace(OPTIONS, max_kl=50.0)
        choice = select_cosmic(demo, one, options)
        table = measure_null(demo, one, choice, options, n=9).table.set_index(["measure", "null"])
        found.append(table.loc[("score", SHUFFLED)].p_value)
    assert sum(p <= 0.1 for p in found) <= 2, found


def test_refusal_tokens_have_a_null_too(demo, prompts):
    options = RefusalTokenOptions(n_train=24, n_val=12, max_kl=0.5, n_resamples=50)
    choice = select_by_refusal_tokens(demo, prompts, options)
    null = measure_null(demo, prompts, choice, options, n=N)
    held_out = choice.stability.held_out
    direction = choice.candidates.direction(held_out.layer, held_out.position)
    table = null.table.set_index(["measure", "null"])
    for measure, side, edit in (
        ("bypass", held_out.positive, options.edits.removal(direction)),
        ("induce", held_out.negative, options.edits.induction(direction)),
    ):
        plain = float(refusal_scores(demo, list(side), choice.tokens, interventions=edit).mean())
        assert table.loc[(measure, RANDOM)].observed == pytest.approx(plain, abs=1e-3)
        assert table.loc[(measure, RANDOM)].margin > 3 and table.loc[(measure, RANDOM)].p_value == 1 / (N + 1)


def test_known_scores_are_not_computed_again(demo, prompts, selection, null):
    class Log(dict):
        def __setitem__(self, key, value):
            assert key not in self
            super().__setitem__(key, value)

    log = Log()
    first = measure_null(demo, prompts, selection, OPTIONS, n=2, scores=log)
    n = len(log)
    again = measure_null(demo, prompts, selection, OPTIONS, n=2, scores=log)
    assert len(log) == n and again.table.equals(first.table)


def test_it_is_refused_where_it_cannot_be(demo, prompts, selection):
    with pytest.raises(CosmicError, match="options: the selection was made with others"):
        measure_null(demo, prompts, selection, replace(OPTIONS, mode="linear"))
    bare = replace(selection, stability=None)
    with pytest.raises(CosmicError, match="no candidate was chosen on half of its validation prompts"):
        measure_null(demo, prompts, bare, OPTIONS)
    with pytest.raises(CosmicError, match="null: found 9, and it tests what half of the prompts choose"):
        RunSettings(replace(OPTIONS, cell=(3, -1)), null=9)


def test_a_run_has_it_in_its_report_and_summary(demo, prompts, tmp_path):
    settings = RunSettings(OPTIONS, n_test=2, max_new_tokens=4, n_placebos=1, null=3)
    done = run(demo, prompts, tmp_path / "run", settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["null"]
    assert len(summary["tests"]) == len(done.selection.null.table) and summary["n"] == {"positive": 6, "negative": 6}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "against 3 directions without the concept" in page and "The null was not measured" not in page
    assert Run.load(tmp_path / "run").selection.null.values.equals(done.selection.null.values)
    done.selection.save(tmp_path / "s.safetensors")
    assert isinstance(Selection.load(tmp_path / "s.safetensors").null, Null)
    # Stopped after the scores of the null: they are read and not made again.
    for name in ("summary.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    log = tmp_path / "run" / "resume" / "null.jsonl"
    before = log.read_bytes()
    again = run(demo, prompts, tmp_path / "run", settings)
    assert log.read_bytes() == before and again.selection.null.table.equals(done.selection.null.table)
