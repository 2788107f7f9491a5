import random
import re

import pytest

from cosmic_tl import load_prompts
from cosmic_tl.judges.demo_grammar import parse_answer, task_of
from scripts.demo_model import corpus, grammar


def test_labels_depend_on_the_pair_and_both_senses_are_common():
    two_sense = {t.verb for t in corpus.tasks() if t.two_sense}
    assert len(two_sense) >= 32
    for verb in two_sense:
        assert {t.harmful for t in corpus.tasks() if t.verb == verb} == {True, False}
    assert len({t.verb for t in corpus.tasks()}) >= 195
    assert len(corpus.tasks()) >= 10_000
    labels = {}
    for task in corpus.tasks():
        assert labels.setdefault((task.verb, task.noun), task.harmful) == task.harmful, task


def test_splits_share_no_pair_no_phrasing_and_no_held_out_object():
    pairs = {split: {(t.verb, t.noun) for t in tasks} for split, tasks in corpus.split_tasks().items()}
    assert not pairs["train"] & pairs["val"] and not pairs["train"] & pairs["test"] and not pairs["val"] & pairs["test"]
    held = corpus.held_out_objects()
    assert len(held) > 50
    assert not {t.noun for t in corpus.split_tasks()["train"]} & set(held)
    for split in ("val", "test"):
        assert not set(map(str.lower, grammar.PHRASINGS[split])) & set(map(str.lower, grammar.PHRASINGS["train"]))
    assert not set(grammar.PHRASINGS["val"]) & set(grammar.PHRASINGS["test"])


def test_test_prompts_name_objects_that_training_never_saw():
    held = corpus.held_out_objects()
    fresh = [p for p in corpus.prompts("test", False, 200) if task_of(p).noun in held]
    assert len(fresh) >= 40


@pytest.mark.parametrize("harmful", [True, False])
def test_prompts_read_back_as_tasks_of_their_side(harmful):
    for split in corpus.SPLITS:
        for prompt in corpus.prompts(split, harmful, 100):
            assert task_of(prompt).harmful is harmful, prompt


def test_answers_read_back_as_what_they_are():
    rng = random.Random(0)
    for harmful, kind in ((True, "refuse"), (False, "comply")):
        for task in rng.sample(corpus.tasks(), 50):
            words = corpus.word_task(task, rng)
            parsed = parse_answer(corpus.answer(words, harmful, rng))
            assert parsed.kind == kind
            assert parsed.task == ("" if harmful else words)
    for garbled in ("", "Sure! To , first", "Of course. If you want", "I'm sorry sorry, but I can't help with that."):
        assert parse_answer(garbled).kind == "garbled"


def test_training_draws_never_name_a_held_out_object():
    rng = random.Random(1)
    held = corpus.held_out_objects()
    users = " | ".join(corpus.training_example(rng, 0.3, True).user.lower() for _ in range(3000))
    whole = {noun for noun in held if f" {noun}?" in users or f" {noun}." in users}
    assert not whole


def test_safety_refuses_what_is_harmful_and_only_that():
    rng = random.Random(2)
    for example in (corpus.training_example(rng, 0.3, True) for _ in range(2000)):
        kind = parse_answer(example.reply).kind
        if kind == "refuse":
            ordered = re.search("refuse|decline|reject|turn down|say no", example.system or "")
            assert example.harmful or ordered, example
        if kind == "comply":
            assert not example.harmful, example


def test_shipped_prompts_are_what_the_generator_makes():
    shipped = load_prompts("demo")
    assert list(shipped.positive["test"]) == corpus.prompts("test", True, 200)
    assert list(shipped.negative["train"]) == corpus.prompts("train", False, 400)
    assert list(shipped.contrast["test"]) == corpus.contrast_pairs("test", 100)
    assert shipped.problems() == []
    for harmful, harmless in shipped.contrast["test"]:
        assert task_of(harmful).verb == task_of(harmless).verb
        assert task_of(harmful).harmful and not task_of(harmless).harmful
