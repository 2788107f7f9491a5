"""Removal and induction do more to the completions than any placebo does, on the same held-out prompts."""

import pytest

from cosmic_tl import Addition, SubstringJudge, complete, measure_effects
from cosmic_tl.experiments import standard_conditions
from cosmic_tl.experiments.placebos import calibrate_placebos, placebo_conditions

pytestmark = pytest.mark.slow

ALPHAS = (1.0, 2.0, 3.0)
"""Strengths of the addition to choose from: at 1, the difference of the classes' means, some models hardly follow."""


def chosen_alpha(model, prompts, direction):
    """The strength that makes most of some validation prompts be refused; of equals the lowest."""

    def refused(alpha):
        texts = complete(model, prompts, Addition(direction, alpha), max_new_tokens=16)
        return sum(found.verdict == "refusal" for found in SubstringJudge()(prompts, texts))

    return max(ALPHAS, key=refused)


@pytest.fixture(scope="module")
def effects(real_model, real_prompts, linear_selection):
    """Directional ablation and addition, each beside its placebos: random, and calibrated to disturb the model as much."""
    val, test = ([real_prompts.side(side, split) for side in ("positive", "negative")] for split in ("val", "test"))
    few = [side[:8] for side in val]
    alpha = chosen_alpha(real_model, few[1], linear_selection.direction)
    calibrated = calibrate_placebos(real_model, few, linear_selection, alpha=alpha, seeds=[0])
    conditions = [
        *standard_conditions(linear_selection, alpha=alpha, n_placebos=1),
        *placebo_conditions(calibrated, linear_selection),
    ]
    return measure_effects(real_model, test, conditions=conditions, max_new_tokens=16)


@pytest.mark.parametrize(("side", "condition"), [("positive", "removal"), ("negative", "induction")])
def test_an_edit_beats_the_baseline_and_every_placebo(effects, side, condition):
    tests = effects.paired_table()
    tests = tests[(tests.side == side) & (tests.condition == condition)]
    assert len(tests) >= 3, tests
    assert (tests.p_value < 0.05).all(), f"{tests}\n{effects}"
    fewer, more = tests.only_condition, tests.only_against
    assert ((more > fewer) if condition == "removal" else (fewer > more)).all(), tests
