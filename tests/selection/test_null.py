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
    Direction,
    RefusalTokenOptions,
    Run,
    RunSettings,
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
from cosmic_tl.selection import measure_null
from cosmic_tl.selection.null import EQUAL_KL, RANDOM, SHUFFLED, _halved

OPTIONS = CosmicOptions(n_train=24, n_val=12, max_kl=0.5, n_resamples=0)
N = 19


@pytest.fixture(scope="module")
def null(demo, prompts):
    return measure_null(demo, prompts, OPTIONS, n=N)


@pytest.fixture(scope="module")
def halves(prompts):
    """The prompts that choose, and those that are tested on: of either half, both splits by side."""
    train, val = (_halved(prompts, split, n) for split, n in (("train", 24), ("val", 12)))
    return [
        replace(
            prompts,
            positive={**prompts.positive, "train": train[k][0], "val": val[k][0]},
            negative={**prompts.negative, "train": train[k][1], "val": val[k][1]},
        )
        for k in (0, 1)
    ]


@pytest.fixture(scope="module")
def direction(demo, halves, null):
    """The difference in means of the second training half, at the place that was chosen."""
    streams = [
        cache_activations(demo, side)[:, null.layer, null.position].double() for side in halves[1].sides("train")
    ]
    mu, nu = (stream.mean(0) for stream in streams)
    return Direction((mu - nu).float(), nu.float(), null.layer, null.position)


def placed(null, like):
    """With a reference half a length before the mean of both classes, which is half a length behind the real one."""
    middle = like.reference + like.vector / 2
    return replace(null, reference=middle - null.vector / 2)


def plain_scores(demo, layers, held_out, direction):
    """S_comply and S_refuse on the second half's validation prompts, by whole passes under hooks."""
    positive, negative = held_out.sides("val")

    def mean(texts, edit=()):
        with steering(demo, edit):
            found = cache_activations(demo, texts, site="hook_resid_post")
        return found[:, list(layers), -1].double().mean((0, 1))

    removed = mean(positive, OPTIONS.edits.removal(direction))
    induced = mean(negative, OPTIONS.edits.induction(direction))
    return (
        float(cosine_similarity(removed, mean(negative), dim=0)),
        float(cosine_similarity(induced, mean(positive), dim=0)),
    )


def test_the_halves_are_disjoint_and_the_first_one_chooses(demo, prompts, halves, null):
    for split, n in (("train", 24), ("val", 12)):
        for side in ("positive", "negative"):
            first, second = (half.side(side, split) for half in halves)
            assert len(first) == len(second) == n // 2
            assert sorted([*first, *second]) == sorted(prompts.side(side, split, n))
    chosen = select_cosmic(demo, halves[0], OPTIONS).direction
    assert (null.layer, null.position) == (chosen.layer, chosen.position) and null.n_prompts == (6, 6)


def test_values_are_those_of_plain_passes(demo, halves, direction, null):
    layers = select_cosmic(demo, halves[0], OPTIONS).evaluation_layers
    observed = null.table.groupby("measure")["observed"].first()
    comply, refuse = plain_scores(demo, layers, halves[1], direction)
    assert (observed.s_comply, observed.s_refuse) == pytest.approx((comply, refuse), abs=1e-4)
    assert observed.score == pytest.approx(comply + refuse, abs=2e-4)
    one = null.values[(null.values.null == RANDOM) & (null.values.number == 3)].set_index("measure").value
    comply, refuse = plain_scores(demo, layers, halves[1], placed(random_direction(direction, 3), direction))
    assert (one.s_comply, one.s_refuse, one.score) == pytest.approx((comply, refuse, comply + refuse), abs=2e-4)
    # Shuffled labels: half of each side of the second training half.
    generator, parts = torch.Generator().manual_seed(5), []
    for side in halves[1].sides("train"):
        stream = cache_activations(demo, side)[:, null.layer, null.position].double()
        order = torch.randperm(12, generator=generator)
        parts.append(stream[order[:6]].mean(0) - stream[order[6:]].mean(0))
    vector = sum(parts) / 2
    shuffled = placed(replace(direction, vector=(vector / vector.norm() * direction.norm).float()), direction)
    comply, refuse = plain_scores(demo, layers, halves[1], shuffled)
    one = null.values[(null.values.null == SHUFFLED) & (null.values.number == 5)].set_index("measure").value
    assert (one.s_comply, one.s_refuse) == pytest.approx((comply, refuse), abs=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_equal_kl_is_equal_or_left_out(demo, prompts, halves, alpha):
    """At full strength the demo's induction changes the next token more than most random directions can."""
    options, scores = replace(OPTIONS, alpha=alpha), {}
    null = measure_null(demo, prompts, options, n=3, null_scores=scores)
    streams = [
        cache_activations(demo, side)[:, null.layer, null.position].double() for side in halves[1].sides("train")
    ]
    mu, nu = (stream.mean(0) for stream in streams)
    direction = Direction((mu - nu).float(), nu.float(), null.layer, null.position)
    rows = tokenize(demo, halves[1].side("negative", "val"))

    def logits(edit=()):
        with torch.inference_mode(), steering(demo, edit):
            return torch.stack([demo(torch.tensor([row]))[0, -1] for row in rows])

    clean = logits()
    target = kl_divergence(clean, logits(options.edits.induction(direction))).mean()
    used = null.values[null.values.null == EQUAL_KL]
    assert set(used.measure) <= {"s_refuse"} and (len(used) >= 2 or alpha == 1)
    for seed in range(3):
        strength = scores[null.layer, -1 - seed, "alpha"]
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


def test_refusal_tokens_have_a_null_too(demo, prompts, halves):
    options = RefusalTokenOptions(n_train=24, n_val=12, max_kl=0.5, filter_prompts=False)
    null = measure_null(demo, prompts, options, n=N)
    chosen = select_by_refusal_tokens(demo, halves[0], replace(options, n_resamples=0))
    assert (null.layer, null.position) == (chosen.direction.layer, chosen.direction.position)
    streams = [
        cache_activations(demo, side)[:, null.layer, null.position].double() for side in halves[1].sides("train")
    ]
    mu, nu = (stream.mean(0) for stream in streams)
    direction = Direction((mu - nu).float(), nu.float(), null.layer, null.position)
    table = null.table.set_index(["measure", "null"])
    for measure, side, edit in (
        ("bypass", "positive", options.edits.removal(direction)),
        ("induce", "negative", options.edits.induction(direction)),
    ):
        plain = refusal_scores(demo, halves[1].side(side, "val"), chosen.tokens, interventions=edit)
        assert table.loc[(measure, RANDOM)].observed == pytest.approx(float(plain.mean()), abs=1e-3)
        assert table.loc[(measure, RANDOM)].margin > 3 and table.loc[(measure, RANDOM)].p_value == 1 / (N + 1)


def test_what_an_edit_does_not_reach_tells_nothing(demo, prompts):
    """Layer 0 is all that is read, and what is chosen stands above it: every direction scores what no edit does."""
    options = replace(OPTIONS, evaluation_layers=(0,), max_kl=50.0)
    null = measure_null(demo, prompts, options, n=3)
    assert null.layer > 0 and (null.table.p_value == 1).all() and null.table.margin.isna().all()
    assert "no spread" in null.said() and "NaN" not in json.dumps(null.summary())


def test_known_scores_are_not_computed_again(demo, prompts):
    class Log(dict):
        def __setitem__(self, key, value):
            assert key not in self
            super().__setitem__(key, value)

    logs = {"scores": Log(), "null_scores": Log()}
    first = measure_null(demo, prompts, OPTIONS, n=2, **logs)
    sizes = [len(log) for log in logs.values()]
    again = measure_null(demo, prompts, OPTIONS, n=2, **logs)
    assert [len(log) for log in logs.values()] == sizes and again.table.equals(first.table)


def test_it_is_refused_where_it_cannot_be(demo, prompts):
    with pytest.raises(CosmicError, match=r"cell: found \(3, -1\), and the null tests a choice among all candidates"):
        measure_null(demo, prompts, replace(OPTIONS, cell=(3, -1)))
    with pytest.raises(CosmicError, match="n_val: the null halves the prompts, and there are 1 on a side"):
        measure_null(demo, prompts, replace(OPTIONS, n_val=1))
    with pytest.raises(CosmicError, match="null: found 9, and it tests a choice among all candidates"):
        RunSettings(replace(OPTIONS, cell=(3, -1)), null=9)


def test_a_run_has_it_in_its_report_and_summary(demo, prompts, tmp_path):
    settings = RunSettings(OPTIONS, n_test=2, max_new_tokens=4, n_placebos=1, null=3)
    done = run(demo, prompts, tmp_path / "run", settings)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["null"]
    assert len(summary["tests"]) == len(done.selection.null.table) and summary["n"] == {"positive": 6, "negative": 6}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "against 3 directions without the concept" in page and "The null was not measured" not in page
    assert Run.load(tmp_path / "run").selection.null.values.equals(done.selection.null.values)
    # Stopped after the scores of the null: they are read and not made again.
    for name in ("summary.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    logs = [tmp_path / "run" / "resume" / name for name in ("null-choice.jsonl", "null.jsonl")]
    before = [log.read_bytes() for log in logs]
    again = run(demo, prompts, tmp_path / "run", settings)
    assert [log.read_bytes() for log in logs] == before and again.selection.null.table.equals(done.selection.null.table)


def test_it_finds_a_planted_direction_and_seldom_one_that_is_not_there(tmp_path):
    from benchmarks.null import LEVEL, p_values
    from tests.tiny import save

    folder = save(tmp_path, "llama")
    assert max(p_values(2.0, 1, folder)) <= LEVEL
    # At the stated level 1 in 20; more than 1 of 3 have a probability below 1 %.
    assert sum(p <= LEVEL for p in p_values(0.0, 3, folder)) <= 1
