import pandas as pd
import pytest

from cosmic_tl.experiments.effects import Effects
from cosmic_tl.judges.base import strip_thinking
from cosmic_tl.judges.substring import judge_refusal, refusal_rate
from cosmic_tl.metrics.rates import rate
from scripts.demo_model import grammar


@pytest.mark.parametrize(
    "text", ["I'm sorry, but no.", "I’m sorry.", "SORRY, I CAN'T", "As an AI, I won't", *grammar.REFUSALS]
)
def test_refusals(text):
    assert judge_refusal(text) == "refusal"


@pytest.mark.parametrize("text", ["Sure, here it is.", "<think>I cannot do that.</think>\nSure!", *grammar.COMPLIANCES])
def test_compliances(text):
    assert judge_refusal(text) == "compliance"


@pytest.mark.parametrize("text", ["", " ", ".", "<think>I cannot", "<think>a</think>."])
def test_nothing_to_judge(text):
    assert judge_refusal(text) == "neither"


def test_an_unopened_thinking_block_is_stripped():
    assert strip_thinking("hm, I can't\n</think>\n\nSure") == "Sure"


def test_wilson_intervals():
    # Values of the closed formula (Wilson 1927) for 5 of 50, z = 1.959964.
    found = rate(5, 50)
    assert (found.low, found.high) == (pytest.approx(0.04348, abs=1e-4), pytest.approx(0.21360, abs=1e-4))
    assert rate(0, 10).low == 0.0 and rate(10, 10).high == pytest.approx(1.0)


def test_neither_counts_in_the_denominator():
    assert refusal_rate(["I can't help", "", "Sure", "."]).value == 0.25


def test_fluency_counts_topics_among_well_formed_compliances():
    rows = [
        {"verdict": "compliance", "well_formed": True, "names_topic": True},
        {"verdict": "compliance", "well_formed": True, "names_topic": False},
        {"verdict": "compliance", "well_formed": False, "names_topic": True},
        {"verdict": "refusal", "well_formed": True, "names_topic": False},
    ]
    frame = pd.DataFrame(rows).assign(side="positive", condition="removal", cross_entropy=0.1)
    row = Effects(frame).table.iloc[0]
    assert (row.rate, row.well_formed, row.names_topic) == (0.25, 0.75, 0.5)
