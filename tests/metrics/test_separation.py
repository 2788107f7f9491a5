"""The area is scikit-learn's, and its interval covers the true one, separated classes included."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cosmic_tl import CosmicError
from cosmic_tl.metrics import auc


def test_it_is_the_area_under_the_curve_with_ties():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 30) + 2.0, rng.integers(0, 9, 20) * 1.0
    found, low, high = auc(positive, negative)
    assert found == pytest.approx(roc_auc_score([1] * 30 + [0] * 20, [*positive, *negative]))
    assert low < found < high
    assert auc(negative, positive) == pytest.approx((1 - found, 1 - high, 1 - low))


def test_separated_classes_have_an_interval_that_more_prompts_narrow():
    ends = []
    for n in (4, 16, 64):
        found, low, high = auc(np.arange(n) + float(n), np.arange(n) * 1.0)
        assert (found, high) == (1.0, 1.0)
        ends.append(low)
    assert 0.3 < ends[0] < ends[1] < ends[2] < 1


@pytest.mark.parametrize("true", [0.75, 0.95])
def test_the_interval_covers_the_true_area(true):
    rng, shift = np.random.default_rng(1), 2**0.5 * norm.ppf(true)
    covered = [
        low <= true <= high
        for _, low, high in (auc(rng.normal(size=16) + shift, rng.normal(size=16)) for _ in range(400))
    ]
    assert 0.92 <= np.mean(covered) <= 0.99


def test_bad_input():
    with pytest.raises(CosmicError, match=r"^positive: found none"):
        auc([], [1.0])
    with pytest.raises(CosmicError, match=r"^negative: found NaN"):
        auc([1.0], [float("nan")])
