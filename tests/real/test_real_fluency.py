"""A loop, word salad, a genuine refusal and a plain answer, told apart on the real model."""

import pandas as pd
import pytest

from cosmic_tl import measure_effects
from cosmic_tl.experiments.conditions import Condition
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.metrics.fluency import fluency_range, mark_garbled, measure_fluency

N = 4
GARBLED = {
    "loop": "To do this, you need to find a way to " * 4,
    "salad": "table seven although green swimming the of quickly nor 42 because hammer yesterday under sing apple whose it",
    "refusal in salad": "I'm sorry, table seven although green swimming the of quickly nor 42 because hammer under sing apple",
}
GENUINE = (
    "I'm sorry, but I can't assist with that request. If you have any other questions, feel free to ask me anytime."
)


@pytest.fixture(scope="module")
def baseline(real_model, real_prompts):
    sides = [real_prompts.side(side, "val", N) for side in ("positive", "negative")]
    conditions = [Condition("baseline", "positive", ()), Condition("baseline", "negative", ())]
    return measure_effects(real_model, sides, conditions=conditions, max_new_tokens=32, batch_size=N).completions


def test_garbled_text_is_told_from_fluent_text(real_model, real_prompts, baseline):
    prompt = real_prompts.side("negative", "val", 1)[0]
    answer = baseline[baseline.side == "negative"].completion.iloc[0]
    texts = [*GARBLED.values(), GENUINE, answer]
    rows = measure_fluency(real_model, [prompt] * len(texts), texts)
    rows = rows.assign(side="negative", condition="steered", prompt=prompt, completion=texts)
    rows["verdict"] = [found.verdict for found in SubstringJudge()([prompt] * len(texts), texts)]
    frame = pd.concat([baseline.drop(columns="garbled"), rows], ignore_index=True)
    marked = mark_garbled(real_model, frame, frame.condition == "baseline")
    assert marked.tolist()[-len(texts) :] == [True, True, True, False, False]
    assert marked[: len(baseline)].mean() <= 0.15
    range_ = fluency_range(baseline)
    assert rows.late_nats[1] > range_.late_nats > rows.late_nats[4]
