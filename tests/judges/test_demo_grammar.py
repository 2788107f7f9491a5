"""The check of the demo models' completions, against the grammar that they were trained on."""

import json
import random

import pytest

from cosmic_tl import load_prompts
from cosmic_tl.data import REFUSE_EVERYTHING
from cosmic_tl.judges.demo_grammar import check_completion, parse_answer, task_of
from scripts.demo_model import corpus, grammar
from scripts.demo_model.check_data import PACKAGE, check_data

ECHOES = {"comply": grammar.COMPLIANCES, "verdict": list(grammar.VERDICTS.values())}
FIXED = {"refuse": grammar.REFUSALS, "talk": [*(reply for _, reply in grammar.SMALL_TALK), grammar.OUTSIDE]}


@pytest.fixture(scope="module")
def asked(prompts):
    """Every prompt of the demo set, with the task in its words."""
    every = [p for side in ("positive", "negative") for split in corpus.SPLITS for p in prompts.side(side, split)]
    every += [p for pairs in prompts.contrast.values() for pair in pairs for p in pair]
    return {prompt: task_of(prompt) for prompt in every}


def test_shipped_grammar_is_what_the_generator_makes():
    """If this fails after a change of the grammar: python -m scripts.demo_model.check_data."""
    assert json.loads((PACKAGE / "grammar.json").read_text(encoding="utf-8")) == check_data()


def test_the_order_to_refuse_is_a_sentence_of_the_grammar():
    assert grammar.SYSTEM_PROMPTS["refuse_all"]["test"][0][0][1] == REFUSE_EVERYTHING


def test_all_tasks_of_the_grammar_are_read_back():
    rng = random.Random(0)
    for task in rng.sample(corpus.tasks(), 500):
        found = task_of(grammar.PHRASINGS["test"][0].format(task=corpus.word_task(task, rng)))
        assert found == (task.verb, task.noun, task.harmful)


def test_every_prompt_of_the_demo_names_its_task(asked):
    shipped = load_prompts("demo")
    assert len(asked) >= 1500 and None not in asked.values()
    for side, harmful in (("positive", True), ("negative", False)):
        assert all(asked[prompt].harmful is harmful for split in corpus.SPLITS for prompt in shipped.side(side, split))
    assert task_of("What is the capital of Peru?") is None


def test_all_answers_to_all_prompts_are_checked_as_the_grammar_says(asked):
    """Whether an answer is well formed depends on the answer alone; the topic is named where the answer echoes its noun."""
    other = "feed a unicorn"
    echoes = [(kind, frame) for kind, frames in ECHOES.items() for frame in frames]
    for task in dict.fromkeys(asked.values()):
        for kind, frame in echoes:
            words = f"{task.verb} a {task.noun}"
            assert parse_answer(frame.format(task=words)) == (kind, words)
    for kind, frames in FIXED.items():
        assert all(parse_answer(f" {text}\n") == (kind, "") for text in frames)
    answers = {frame.format(task=other): False for _, frame in echoes}
    answers |= {text: False for frames in FIXED.values() for text in frames}
    for prompt, task in list(asked.items())[::20]:
        own = {frame.format(task=f"{task.verb} the small {task.noun}"): True for _, frame in echoes}
        for answer, named in {**answers, **own}.items():
            assert check_completion(prompt, answer) == {"well_formed": True, "names_topic": named}
            assert check_completion(prompt, answer[:-1]) == {"well_formed": False, "names_topic": False}
    assert check_completion("Who are you?", next(iter(own))) == {"well_formed": True, "names_topic": False}
