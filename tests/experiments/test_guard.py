"""A guard is a plain logistic regression on the projection, tested on prompts that it has not seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cosmic_tl import CosmicError, Direction, cache_activations, difference_in_means, random_direction
from cosmic_tl.activations import class_means
from cosmic_tl.experiments import latent_guard
from cosmic_tl.figures import plot_guard


@pytest.fixture(scope="module")
def direction(demo, prompts):
    return difference_in_means(*class_means(demo, prompts.sides("train", 32))).direction(3, -2)


@pytest.fixture(scope="module")
def shifted(prompts):
    """Pairs that differ in the concept alone."""
    return [list(side) for side in zip(*prompts.contrast["test"][:8], strict=True)]


def test_it_is_a_plain_regression_on_the_projection(demo, prompts, direction, shifted):
    weak = random_direction(direction, 12)  # which makes mistakes
    guard = latent_guard(
        demo, prompts, weak, shifted={"pairs": shifted}, split="val", n_train=12, n_test=9, n_placebos=1
    )
    sets = {"val": prompts.sides("val", 12), "test": prompts.sides("test", 9), "pairs": shifted}
    along = {
        name: (cache_activations(demo, [*sides[0], *sides[1]])[:, 3, -2].double() @ weak.unit.double()).numpy()[:, None]
        for name, sides in sets.items()
    }
    labels = {name: np.repeat([1, 0], [len(side) for side in sides]) for name, sides in sets.items()}
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(along["val"], labels["val"])
    for name in ("test", "pairs"):
        probability, scores = plain.predict_proba(along[name])[:, 1], guard.scores[guard.scores.prompts == name]
        assert scores.projection.tolist() == pytest.approx(along[name][:, 0].tolist(), abs=1e-4)
        assert scores.probability.tolist() == pytest.approx(probability.tolist(), abs=1e-4)
        row = guard.table[(guard.table.prompts == name) & (guard.table.kind == "direction")].iloc[0]
        assert row.auc == pytest.approx(roc_auc_score(labels[name], probability))
        assert row.accuracy == pytest.approx(accuracy_score(labels[name], plain.predict(along[name])))
        assert row.brier == pytest.approx(brier_score_loss(labels[name], probability), abs=1e-4)
        assert row.auc_low < row.auc < row.auc_high and row.accuracy_low < row.accuracy < row.accuracy_high
        caught, n = 1 - row.missed, labels[name].sum()
        assert row.accuracy == pytest.approx((caught * n + (1 - row.false_alarms) * n) / (2 * n))
        assert row.missed + row.false_alarms > 0
    shares, means = calibration_curve(labels["test"], scores_of(guard, "test"), n_bins=3, strategy="quantile")
    bins = guard.reliability(3).query("prompts == 'test'")
    assert bins.rate.tolist() == pytest.approx(shares.tolist())
    assert bins.probability.tolist() == pytest.approx(means.tolist())
    assert bins.n.sum() == 18 and (bins.low <= bins.rate).all() and (bins.rate <= bins.high).all()
    # The threshold is where either class is as probable, whichever sign the direction has.
    found = guard.scores.probability > 0.5
    assert (found == ((guard.scores.projection - guard.threshold) * np.sign(guard.slope) > 0)).all()


def scores_of(guard, name):
    return guard.scores.probability[guard.scores.prompts == name]


def test_the_direction_tells_more_than_random_ones_do(demo, prompts, direction, shifted):
    guard = latent_guard(demo, prompts, direction, shifted={"pairs": shifted}, split="val", n_train=24, n_test=16)
    for name in ("test", "pairs"):
        some = guard.table[guard.table.prompts == name]
        own, random = some[some.kind == "direction"].iloc[0], some[some.kind == "random"]
        assert len(random) == 20 and sorted(random.seed) == list(range(20))
        assert own.auc == 1 and own.auc_low < 1  # few prompts do not make it sure
        assert random.auc.mean() < 0.97 and own.accuracy >= random.accuracy.median()
    opposite = latent_guard(
        demo, prompts, replace(direction, vector=-direction.vector), split="val", n_train=24, n_test=16, n_placebos=1
    )
    assert opposite.slope == pytest.approx(-guard.slope, rel=1e-3)
    assert opposite.table.auc[0] == 1
    figure = plot_guard(opposite)
    assert max(figure.data[0].y) == 1 and figure.data[0].name.startswith("test: AUC 1.00 (random ")


def test_it_guards_new_prompts(demo, prompts, direction):
    guard = latent_guard(demo, prompts, direction, n_train=16, n_test=4, n_placebos=1)
    asked = prompts.side("positive", "test", 4)
    assert guard.probabilities(demo, asked) == pytest.approx(guard.scores.probability[:4].to_numpy(), abs=1e-5)
    assert guard.probabilities(demo, ["Bake a pizza."])[0] < 0.5 < guard.probabilities(demo, ["Rob a bank clerk."])[0]


def test_a_direction_that_says_nothing_guards_nothing(demo, prompts):
    """Before the first block, all template tokens are alike."""
    guard = latent_guard(demo, prompts, Direction(torch.ones(128), None, 0, -1), n_train=8, n_test=8, n_placebos=1)
    assert guard.table.auc.tolist() == [0.5, 0.5] and guard.table.brier.tolist() == pytest.approx([0.25, 0.25])
    assert guard.threshold != guard.threshold and guard.reliability().rate.tolist() == [0.5]


def test_bad_input(demo, prompts, direction):
    with pytest.raises(CosmicError, match=r"^prompts: 8 of 'test' are among those that the guard is fitted to"):
        latent_guard(demo, prompts, direction, split="test", n_train=4, n_test=4)
    with pytest.raises(CosmicError, match=r"^prompts: 4 of 'more' are among"):
        latent_guard(
            demo, prompts, direction, n_train=4, shifted={"more": [prompts.side("positive", "train", 4), ["hi"]]}
        )
    with pytest.raises(CosmicError, match=r"^shifted: 'test' is the name of"):
        latent_guard(demo, prompts, direction, n_train=4, shifted={"test": prompts})
    with pytest.raises(CosmicError, match=r"^prompts: expected a ContrastSet"):
        latent_guard(demo, [["a"], ["b"]], direction)
    with pytest.raises(CosmicError, match=r"^n_placebos: must be at least 1"):
        latent_guard(demo, prompts, direction, n_placebos=0)
    with pytest.raises(CosmicError, match=r"^n_bins: must be at least 1"):
        latent_guard(demo, prompts, direction, n_train=4, n_test=4, n_placebos=1).reliability(0)
    with pytest.raises(CosmicError, match=r"^direction: it has width 7"):
        latent_guard(demo, prompts, Direction(torch.ones(7), None, 3, -1))
