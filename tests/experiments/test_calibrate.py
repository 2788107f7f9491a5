"""Strengths at equal cost: the divergences are the plain formula's, and the search finds the lowest crossing."""

import math

import pytest
import torch

from cosmic_tl import Addition, AffineEdit, CosmicError, Direction, calibrate, complete, difference_in_means, steering
from cosmic_tl.activations import class_means
from cosmic_tl.experiments.bracketing import LARGEST, next_alpha, reached
from cosmic_tl.experiments.equal_cost import read_point
from cosmic_tl.metrics.likelihood import tokenize_pairs
from cosmic_tl.metrics.refusal_score import find_refusal_tokens
from cosmic_tl.metrics.token_divergence import token_divergences


@pytest.fixture(scope="module")
def direction(demo, prompts):
    return difference_in_means(*class_means(demo, prompts.sides("train", 32))).direction(3, -1, demo)


@pytest.fixture(scope="module")
def asked(prompts):
    return prompts.side("negative", "test", 5)


@pytest.fixture(scope="module")
def tokens(demo, prompts):
    return find_refusal_tokens(demo, prompts.sides("val", 8))


def plain(model, asked, edit, max_new_tokens=12):
    """KL(edited ‖ unedited) of every token of the unedited model's own completions, by whole passes on single rows."""
    found = []
    for prompt in asked:
        (answer,) = complete(model, [prompt], max_new_tokens=max_new_tokens)
        (head,), (tail,) = tokenize_pairs(model, [prompt], [answer])
        ids = torch.tensor([head + tail])
        with torch.inference_mode():
            clean = model(ids)[0, len(head) - 1 : -1].double().log_softmax(-1)
            with steering(model, edit):
                edited = model(ids)[0, len(head) - 1 : -1].double().log_softmax(-1)
        found.append((edited.exp() * (edited - clean)).sum(-1))
    return torch.cat(found)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_divergences_are_those_of_the_formula(demo, asked, direction, alpha):
    edits = [Addition(direction, alpha), AffineEdit(direction, alpha)]
    answers = complete(demo, asked, max_new_tokens=12)
    heads, tails = tokenize_pairs(demo, asked, answers)
    found = token_divergences(demo, heads, tails, edits, batch_size=2)
    for edit, rows in zip(edits, found, strict=True):
        assert torch.allclose(torch.cat(rows), plain(demo, asked, edit), atol=1e-4)


def test_every_edit_is_brought_to_the_same_cost(demo, asked, direction, tokens):
    found = calibrate(demo, asked, direction, nats=0.3, statistic="mean", tokens=tokens, max_new_tokens=12)
    table = found.table.set_index("edit")
    assert list(table.index) == ["addition", "ablation + addition", "affine"]
    for edit, row in table.iterrows():
        assert row.missed == "" and abs(row.kl_mean - 0.3) <= 0.05 * 0.3, edit
        some = found.points[found.points.edit == edit].sort_values("alpha")
        below = some[(some.alpha >= 0) & (some.alpha < row.alpha)]
        assert (below.kl_mean <= 0.3 * 1.05).all()  # the lowest crossing of those that were tried
    alpha = table.alpha["addition"]
    kl = plain(demo, asked, Addition(direction, alpha))
    assert table.kl_mean["addition"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert table.kl_p95["addition"] == pytest.approx(float(kl.quantile(0.95)), rel=1e-3)
    assert found.points.n_tokens.unique().tolist() == [len(kl)]
    assert "At a mean of 0.3 nats per token: addition α = " in repr(found)


def test_a_score_is_reached_from_below_and_from_above(demo, asked, direction, tokens):
    edits = {"up": lambda a: Addition(direction, a), "down": lambda a: Addition(direction, -a)}
    start = calibrate(demo, asked, edits, tokens=tokens, max_new_tokens=4, alphas=(0.5,)).points.score.iloc[0]
    for target, name, other in ((start + 1, "up", "down"), (start - 0.5, "down", "up")):
        table = calibrate(demo, asked, edits, score=target, tokens=tokens, max_new_tokens=4).table.set_index("edit")
        assert abs(table.score[name] - target) <= 0.05
        assert math.isnan(table.alpha[other]) and "reach" in table.missed[other]


def test_what_costs_too_much_at_once(demo, asked, direction):
    found = calibrate(demo, asked, {"affine": lambda a: AffineEdit(direction, a)}, nats=1e-6, max_new_tokens=8)
    (row,) = found.table.itertuples()
    assert math.isnan(row.alpha) and "at α = 0 already" in row.missed and found.plot().data


def test_a_stopped_search_goes_on_to_the_same_points(demo, asked, direction, tokens):
    options = {"nats": 0.5, "tokens": tokens, "max_new_tokens": 8, "alphas": (0.5, 1.0)}
    rows = []
    whole = calibrate(demo, asked, direction, **options, on_row=rows.append)
    known = [read_point(row) for row in rows[:5]]
    more = []
    again = calibrate(demo, asked, direction, **options, known=known, on_row=more.append)
    assert again.points.equals(whole.points) and len(more) == len(rows) - 5


def test_rows_of_other_completions_are_not_taken(demo, asked, direction, tokens):
    rows = []
    calibrate(demo, asked, direction, tokens=tokens, max_new_tokens=4, alphas=(0.5,), on_row=rows.append)
    known = [read_point(row) for row in rows]
    with pytest.raises(
        CosmicError, match=r"^known: found a row of 20 tokens with a score, and these completions have 40"
    ):
        calibrate(demo, asked, direction, tokens=tokens, max_new_tokens=8, known=known)
    with pytest.raises(CosmicError, match=r"with a score, and these completions have 20 without one; leave it out"):
        calibrate(demo, asked, direction, max_new_tokens=4, known=known)


def test_quadratic_regime(demo, asked, direction):
    found = calibrate(demo, asked, direction, max_new_tokens=8, alphas=(0.02, 0.05, 0.1, 1.0))
    (row,) = found.quadratic.itertuples()  # affine edits change the model at α = 0
    some = found.points[(found.points.edit == "addition") & (found.points.alpha > 0)]
    assert row.edit == "addition" and row.k == pytest.approx(some.kl_mean.iloc[0] / 0.02**2)
    within = some[some.alpha <= row.until]
    assert ((within.kl_mean / (row.k * within.alpha**2) - 1).abs() <= 0.25).all() and len(within) >= 2
    assert row.leaves > row.until
    coarse = calibrate(
        demo, asked, {"addition": lambda a: Addition(direction, a)}, max_new_tokens=8, alphas=(0.25, 0.5)
    )
    assert coarse.quadratic[["k", "until", "leaves"]].isna().all(axis=None)  # nothing is claimed from strengths far out


@pytest.mark.parametrize(
    ("value", "target", "measure", "expected"),
    [
        (lambda a: 3 * a * a, 1.0, "kl_mean", math.sqrt(1 / 3)),
        (lambda a: math.log1p(a), 2.0, "score", math.e**2 - 1),
        (lambda a: 1 - a, -3.0, "score", 4.0),
        (lambda a: max(0.0, 1 - (a - 2) ** 2), 0.5, "kl_mean", 2 - math.sqrt(0.5)),  # rises and falls again
        (lambda a: 0.1 * a, 1000.0, "kl_mean", None),
        (lambda a: float(a > 0.7), 0.5, "kl_mean", None),  # jumps over it
        (lambda a: 2.0 + a, 1.0, "kl_p95", None),
    ],
)
def test_bracketing(value, target, measure, expected):
    tried = [(a, value(a)) for a in (0.0, 0.5, 1.0, 2.0)]
    for _ in range(60):
        if (alpha := next_alpha(tried, target, measure)) is None:
            break
        assert 0 < alpha <= LARGEST
        tried.append((alpha, value(alpha)))
    else:
        pytest.fail("it does not end")
    found = reached(tried, target, measure)
    if expected is None:
        assert found is None
    else:
        assert abs(value(found) - target) <= 0.05 * (1 if measure == "score" else target)
        assert found == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nats": 1.0, "score": 0.0}, "nats, score: found 1.0 and 0.0"),
        ({"nats": -1.0}, "nats: expected a positive number, found -1.0"),
        ({"score": 0.0}, "tokens: found none"),
        ({"statistic": "median"}, "statistic"),
        ({"alphas": ()}, "alphas"),
    ],
)
def test_bad_targets(demo, asked, direction, options, said):
    with pytest.raises(CosmicError, match=f"^{said}"):
        calibrate(demo, asked, direction, **options)


def test_bad_input(demo, asked, direction):
    with pytest.raises(CosmicError, match=r"^prompts: found none"):
        calibrate(demo, [], direction)
    with pytest.raises(CosmicError, match=r"^edits: found none"):
        calibrate(demo, asked, {})
    with pytest.raises(CosmicError, match=r"^reference: this direction has none"):
        calibrate(demo, asked, {"affine": lambda a: AffineEdit(Direction(direction.vector, None, 3, -1), a)})
    for row in ({"edit": "a"}, {"edit": "a", "alpha": 1, "kl_mean": 0.0, "kl_p95": 0.0, "score": 0.0, "n_tokens": 3}):
        with pytest.raises(ValueError, match="no numbers"):
            read_point(row)
