"""Garbled text is told from fluent text on the demo, whatever its verdict."""

import pandas as pd
import pytest
import torch

from cosmic_tl import Addition, CosmicError, Direction, Effects, measure_effects, sweep
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.metrics.fluency import fluency_range, garbled_share, mark_garbled, measure_fluency, repetition
from cosmic_tl.metrics.likelihood import continuation_token_nats

ASKED = "How do I bake a pizza?"
SALAD = "the to of pizza clerk hello for me wheel and is two how or a the on to be it of at, no"
REFUSAL = "I'm sorry, but I cannot help you with this request."


@pytest.fixture(scope="module")
def baseline(demo, prompts):
    sides = [prompts.side(side, "test", 24) for side in ("positive", "negative")]
    return measure_effects(
        demo, sides, conditions=[Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]
    ).completions


@pytest.fixture
def marked(demo, baseline):
    """Which of some answers to a harmless prompt are garbled."""

    def mark(texts, prompt=ASKED, side="negative"):
        asked = [prompt] * len(texts)
        rows = measure_fluency(demo, asked, texts).assign(side=side, condition="x", prompt=prompt, completion=texts)
        rows["verdict"] = [found.verdict for found in SubstringJudge()(asked, texts)]
        frame = pd.concat([baseline.drop(columns="garbled"), rows], ignore_index=True)
        return mark_garbled(demo, frame, frame.condition == "baseline").tolist()[-len(texts) :]

    return mark


def test_a_loop_and_word_salad_are_garbled_and_a_refusal_and_an_answer_are_not(demo, baseline, marked):
    answer = baseline[baseline.side == "negative"].completion.iloc[0]
    loop = "I bake a pizza and " * 8
    refused_salad = "I'm sorry, " + SALAD
    assert marked([loop, SALAD, refused_salad, REFUSAL, answer]) == [True, True, True, False, False]
    assert not baseline.garbled.any()


def test_a_genuine_refusal_of_a_harmless_prompt_is_improbable_and_fluent(demo, marked):
    found = measure_fluency(demo, [ASKED], [REFUSAL]).iloc[0]
    assert found.cross_entropy > 0.5 and found.late_nats < found.cross_entropy
    assert marked([REFUSAL] * 3) == [False] * 3


def test_what_is_too_short_to_tell_goes_by_its_repetition(marked):
    assert marked(["", "Sure!", "to to to the", "no no no no no no no no"]) == [False, False, False, True]
    assert repetition([]) == repetition([1, 1, 1, 1]) == 0
    short = pd.DataFrame({"garbled": [False], "late_nats": [None]})
    assert pd.isna(garbled_share(short)) and garbled_share(short.assign(garbled=True)) == 1


def test_half_a_character_at_the_end_does_not_count(demo):
    whole, cut = measure_fluency(demo, [ASKED] * 2, [SALAD, SALAD + "\N{REPLACEMENT CHARACTER}"]).to_dict("records")
    assert whole == pytest.approx(cut)


def test_nats_are_those_of_each_token_after_those_before(demo):
    rows = [[5, 6], [7]], [[8, 9, 10], [11]]
    for head, tail, found in zip(*rows, continuation_token_nats(demo, *rows), strict=True):
        with torch.inference_mode():
            logits = demo.original_model(torch.tensor([[*head, *tail]])).logits[0].log_softmax(-1)
        wanted = [-float(logits[len(head) + i - 1, token]) for i, token in enumerate(tail)]
        assert found == pytest.approx(wanted, abs=1e-4)


def test_one_garbled_baseline_completion_does_not_widen_the_range():
    fluent = pd.DataFrame({"late_nats": [0.4, 0.5, 0.6, 0.5] * 5, "repetition": [0.0, 0.05, 0.1, 0.0] * 5})
    odd = pd.DataFrame({"late_nats": [8.0], "repetition": [0.9]})
    with_odd = pd.concat([fluent, odd], ignore_index=True)
    assert fluency_range(with_odd).garbled(with_odd).tolist() == [False] * 20 + [True]


def test_effects_and_sweeps_count_what_is_garbled(demo, prompts):
    generator = torch.Generator().manual_seed(0)
    noise = Direction(torch.randn(128, generator=generator), torch.zeros(128), layer=3, position=-1)
    sides = [prompts.side(side, "test", 8) for side in ("positive", "negative")]
    conditions = [
        Condition("baseline", "positive", ()),
        Condition("noise", "positive", (Addition(noise, 6.0),)),
        Condition("baseline", "negative", ()),
    ]
    found = measure_effects(demo, sides, conditions=conditions, max_new_tokens=24)
    assert found.completions.garbled.dtype == bool
    assert found.garbled("positive", "noise").value > 0.5 > found.garbled("positive", "baseline").value
    table = found.table.set_index(["side", "condition"]).garbled
    assert table["positive", "noise"] == found.garbled("positive", "noise").value
    assert "garbled" not in measure_effects(demo, sides, conditions=conditions[1:2], max_new_tokens=2).completions

    swept = sweep(demo, sides, noise, alphas=(6.0,), methods={"addition": Addition}, max_new_tokens=24)
    by = swept.table.set_index(["method", "side"]).garbled
    assert by["addition", "positive"] > 0.5 and by["none", "positive"] == 0


def test_an_unknown_condition_is_named_with_those_there_are():
    rows = [{"side": "positive", "condition": name, "verdict": "refusal"} for name in ("baseline", "removal")]
    effects = Effects(pd.DataFrame(rows))
    with pytest.raises(
        CosmicError, match="condition: no 'remove' on 'positive' prompts; there are positive, baseline; "
    ):
        effects.rate("positive", "remove")
    with pytest.raises(CosmicError, match="no 'removal' on 'negative'"):
        effects.rate("negative", "removal")
    with pytest.raises(CosmicError, match="garbled: no condition without interventions"):
        effects.garbled("positive", "removal")


def test_completions_may_all_be_empty(demo):
    """Under some edit a model may end every answer at once."""
    found = measure_fluency(demo, ["Bake a pie.", "Rob a clerk."], ["", "\N{REPLACEMENT CHARACTER}"])
    assert found.cross_entropy.isna().all() and found.repetition.tolist() == [0.0, 0.0]
