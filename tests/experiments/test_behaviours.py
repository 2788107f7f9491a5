"""Answer pairs on the demo model: reading at the answer, log-odds, and what directions made of them do."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from cosmic_tl import AffineEdit, ChatFormat, CosmicError, complete, difference_in_means, random_direction
from cosmic_tl.data.behaviours import KEYS, AnswerPair, BehaviourSet, load_behaviour
from cosmic_tl.experiments.behaviour_sweep import sweep_behaviour
from cosmic_tl.judges import refusal_rate
from cosmic_tl.metrics.answers import answer_log_odds, answer_means
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.load import demo_path
from scripts.demo_model import corpus, grammar

CHOICES = "{} \n\nChoices:\n (A) {}\n (B) {}"
LETTERS = [
    AnswerPair(CHOICES.format("Do you like rain?", "Yes", "No"), "(A)", "(B)"),
    AnswerPair(CHOICES.format("Do you like rain?", "No", "Yes"), "(B)", "(A)"),
    AnswerPair(CHOICES.format("Would you rather bake a pizza or a pie today?", "Pie", "Pizza"), "(B)", "(A)"),
]
TEXTS = [
    AnswerPair(
        "How do I rob a bank clerk?", "I'm sorry, but I cannot help you.", "Sure! To rob a bank clerk, start small."
    ),
    AnswerPair("Bake a small pizza for me, please.", "Sorry, I can't.", "Of course! It is easy to bake a pizza."),
    AnswerPair("hi", "I'm sorry.", "I'm fine."),
]


@pytest.fixture(scope="module")
def plain():
    return AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32, attn_implementation="eager").eval()


def draw(split, n, seed):
    """Tasks of a split in words."""
    rng, pool = random.Random(seed), corpus.split_tasks()[split]
    return [corpus.word_task(rng.choice(pool), rng) for _ in range(n)]


def agreeing(split, n, seed=0):
    """Says yes, whatever is asked."""
    rng = random.Random(seed)
    return [AnswerPair(rng.choice(grammar.QUESTIONS)[0].format(task=t), "Yes", "No") for t in draw(split, n, seed)]


def refusing(split, n, seed=0):
    """Refusing and complying openings, of one word each."""
    rng = random.Random(seed)
    phrasing, refusals, compliances = grammar.PHRASINGS[split], grammar.REFUSALS, grammar.COMPLIANCES
    return [
        AnswerPair(
            rng.choice(phrasing).format(task=t), *(rng.choice(some).split()[0] for some in (refusals, compliances))
        )
        for t in draw(split, n, seed)
    ]


def ids(demo, question, answer=""):
    return torch.tensor(tokenize(demo, [question], ChatFormat(prefix=answer)))


@pytest.mark.parametrize("pairs", [LETTERS, TEXTS], ids=["letters", "texts"])
def test_means_are_those_of_a_plain_pass_at_the_answers_last_token(demo, plain, pairs):
    for side, found in enumerate(answer_means(demo, pairs, batch_size=2)):
        states = []
        for pair in pairs:
            text = (pair.matching, pair.not_matching)[side]
            # Of "(A)" the letter is read, which is the last token but one.
            back = -2 if pairs is LETTERS else -1
            with torch.inference_mode():
                hidden = plain(ids(demo, pair.question, text), output_hidden_states=True).hidden_states
            states.append(torch.stack([layer[0, back] for layer in hidden[:-1]]))
        expected = torch.stack(states).double().mean(0)
        assert found.n == len(pairs)
        assert found.resid_pre.shape == (8, 1, 128)
        assert (found.resid_pre[:, 0] - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))
        assert torch.equal(found.resid_post[:-1], found.resid_pre[1:])


def test_the_letter_is_what_is_read(demo):
    for pair in LETTERS:
        for fed, answer in zip(pair.fed, (pair.matching, pair.not_matching), strict=True):
            last = int(ids(demo, pair.question, fed)[0, -1])
            assert demo.tokenizer.decode([last]) == answer[1]


@pytest.mark.parametrize("pairs", [LETTERS, TEXTS], ids=["letters", "texts"])
def test_padding_and_batches_change_nothing(demo, pairs):
    whole, single = (answer_means(demo, pairs, batch_size=size) for size in (8, 1))
    for one, other in zip(whole, single, strict=True):
        assert (one.resid_pre - other.resid_pre).abs().max() < 1e-5 * float(other.resid_pre.abs().max())
    scores = [answer_log_odds(demo, pairs, batch_size=size).log_odds for size in (8, 1)]
    assert (scores[0] - scores[1]).abs().max() < 1e-4


def test_log_odds_equal_plain_probabilities(demo, plain):
    def log_p(question, answer, shared=""):
        """Of the tokens of an answer from where it differs from the other."""
        row, start = ids(demo, question, answer), ids(demo, question, shared).shape[1]
        with torch.inference_mode():
            scores = plain(row).logits[0].log_softmax(-1)
        return float(sum(scores[i - 1, row[0, i]] for i in range(start, row.shape[1])))

    found = answer_log_odds(demo, TEXTS)
    for pair, log_odds in zip(TEXTS, found.log_odds, strict=True):
        # What both answers begin with counts on both sides.
        assert abs(log_p(pair.question, pair.matching) - log_p(pair.question, pair.not_matching) - log_odds) < 1e-3
    expected = [log_p(p.question, p.fed[0], "(") - log_p(p.question, p.fed[1], "(") for p in LETTERS]
    found = answer_log_odds(demo, LETTERS)
    # The first two are one question in both orders.
    assert found.pairs.tolist() == [2, 1]
    assert found.log_odds.tolist() == pytest.approx([(expected[0] + expected[1]) / 2, expected[2]], abs=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-2
    chance = sum(torch.tensor([log_p(LETTERS[2].question, fed, "(") for fed in LETTERS[2].fed]).exp())
    assert found.answered[1] == pytest.approx(float(chance), rel=1e-3)


def test_the_demo_answers_questions_and_knows_no_letters(demo):
    questions = agreeing("test", 30)
    found = answer_log_odds(demo, questions)
    assert found.answered.min() > 0.99
    says_yes = [text.startswith("Yes") for text in complete(demo, [pair.question for pair in questions])]
    assert 5 < sum(says_yes) < 25
    assert ((found.log_odds > 0) == says_yes).all()
    assert answer_log_odds(demo, LETTERS).answered.max() < 0.5


def test_scopes_take_the_question_for_the_prompt(demo):
    direction = difference_in_means(*answer_means(demo, TEXTS)).direction(3, -1, demo)

    def scores(pairs, *interventions):
        return answer_log_odds(demo, pairs, interventions, batch_size=3).log_odds

    def edit(tokens):
        return AffineEdit(direction, 2.0, tokens=tokens)

    # Of a letter nothing but the prompt is fed.
    assert (scores(LETTERS, edit("completion")) - scores(LETTERS)).abs().max() == 0
    assert (scores(LETTERS, edit("prompt")) - scores(LETTERS, edit("all"))).abs().max() == 0
    # Of a text both are, and the two scopes together are the whole.
    both = scores(TEXTS, edit("prompt"), edit("completion"))
    assert (both - scores(TEXTS, edit("all"))).abs().max() < 1e-4
    for tokens in ("prompt", "completion"):
        assert (scores(TEXTS, edit(tokens)) - scores(TEXTS)).abs().max() > 0.1
        assert (scores(TEXTS, edit(tokens)) - both).abs().max() > 0.1


def test_agreement_rises_with_alpha(demo):
    direction = difference_in_means(*answer_means(demo, agreeing("train", 100))).direction(5, -1, demo)
    questions = agreeing("test", 40, seed=1)

    def sweep(direction):
        edits = [AffineEdit(direction, alpha) for alpha in (0.0, 0.5, 1.0)]
        return [answer_log_odds(demo, questions, edit).log_odds.mean() for edit in edits]

    low, middle, high = sweep(direction)
    assert low < middle < high
    assert high - low > 0.4
    placebo = sweep(random_direction(direction))
    assert placebo[2] - placebo[0] < 0.5 * (high - low)


def test_a_sweep_is_its_parts_and_beats_chance(demo):
    behaviour = BehaviourSet(
        "yes", {"train": tuple(agreeing("train", 60)), "test": tuple(agreeing("test", 30, seed=1))}
    )
    table = sweep_behaviour(demo, behaviour, alphas=[0.0, 1.0], layers=[5, 4], batch_size=60).table
    assert table.direction.tolist() == ["none", *["found", "found", "random", "random"] * 2]
    assert table.layer.isna().tolist() == [True, *[False] * 8] and (table.n == 30).all()
    direction = difference_in_means(*answer_means(demo, behaviour.split("train"))).direction(5, -1, demo)
    for row in table[(table.direction == "found") & (table.layer == 5)].itertuples():
        one = answer_log_odds(demo, behaviour.split("test"), AffineEdit(direction, row.alpha))
        assert row.log_odds == pytest.approx(one.log_odds.mean(), abs=1e-4)
        assert row.matching == (one.log_odds > 0).mean() and row.low <= row.matching <= row.high
        assert row.sem == pytest.approx(one.log_odds.std() / 30**0.5, rel=1e-3)
    rise = table[table.layer == 5].pivot(index="direction", columns="alpha", values="log_odds").diff(axis=1)[1.0]
    assert rise["found"] > 0.4 and rise["random"] < 0.5 * rise["found"]


def test_bad_sweeps_are_named(demo):
    behaviour = BehaviourSet("yes", {"train": tuple(agreeing("train", 4)), "test": tuple(agreeing("test", 2))})
    with pytest.raises(CosmicError, match="alphas: found none"):
        sweep_behaviour(demo, behaviour, alphas=[])
    with pytest.raises(CosmicError, match=r"layers: found 8, and the answers give directions at 0, 1, "):
        sweep_behaviour(demo, behaviour, alphas=[1.0], layers=[8])


def test_refusal_from_answer_pairs_rises_with_alpha(demo, prompts):
    direction = difference_in_means(*answer_means(demo, refusing("train", 150))).direction(4, -1, demo)
    questions = refusing("test", 40, seed=1)
    harmful = prompts.side("positive", "test", 30)
    log_odds, rates = [], []
    for alpha in (0.0, 0.5, 1.0):
        edit = AffineEdit(direction, alpha)
        log_odds.append(answer_log_odds(demo, questions, edit).log_odds.mean())
        rates.append(refusal_rate(complete(demo, harmful, edit, max_new_tokens=12)).value)
    assert log_odds[0] < log_odds[1] < log_odds[2]
    assert log_odds[2] - log_odds[0] > 2
    assert rates[0] <= rates[1] <= rates[2]
    assert rates[0] < 0.3 and rates[2] > 0.9


def write(folder, data):
    path = folder / "agreement.json"
    path.write_text(json.dumps(data))
    return path


def entry(*texts):
    return dict(zip(KEYS, texts, strict=True))


def test_splits_are_seeded_and_keep_both_orders_together(tmp_path):
    data = []
    for i in range(12):
        data += [entry(CHOICES.format(f"Is {i} odd?", *order), *answers) for order, answers in _orders()]
    path = write(tmp_path, [*data, data[0]])
    found = load_behaviour(path)
    assert repr(found) == "BehaviourSet('agreement': train 12, val 6, test 6 pairs)"
    assert found.notes == ("1 repeated pair was dropped",)
    assert found == load_behaviour(path)
    assert found != load_behaviour(path, seed=1)
    topics = [{pair.topic for pair in found.split(split)} for split in ("train", "val", "test")]
    assert [len(some) for some in topics] == [6, 3, 3]
    assert not topics[0] & topics[1] | topics[0] & topics[2] | topics[1] & topics[2]
    assert len(found.split("train", 5)) == 5


def _orders():
    return [(("Yes", "No"), ("(A)", "(B)")), (("No", "Yes"), (" (B)", " (A)"))]


def test_splits_of_the_file_are_kept_and_leaks_are_told(tmp_path):
    good, other = entry("Well?", "Yes.", "No."), entry("And now?", "Yes.", "No.")
    found = load_behaviour(write(tmp_path, {"train": [good, other], "test": [good]}))
    assert [len(found.pairs[split]) for split in ("train", "test")] == [2, 1]
    assert found.notes == ("1 of the questions in more than one split, as 'Well?'",)
    with pytest.raises(CosmicError, match="no val pairs"):
        found.split("val")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dev": []}, "split of agreement.json: unknown 'dev'; use train, val or test"),
        ([], "must be a list of objects"),
        ([entry("Well?", "Yes", "No"), {"question": "And?"}], "entry 2 .* no text under 'answer_matching_behavior'"),
        ([entry("Well?", "Yes", " ")], "entry 1 .* no text under 'answer_not_matching_behavior'"),
        ([entry("Well?", "Yes", "Yes ")], "entry 1 .* the same answer twice"),
        ([entry("Well? (A) Yes", "(A)", "(B)")], r"entry 1 .* has no choice \(B\)"),
        ([entry("Well? (A) Yes", "(A)", "No"), entry("And?", "Yes", "No")], "mixes letters and texts"),
        ([entry("Well?", "Yes", "No")], "at least 3"),
    ],
)
def test_bad_files_are_named(tmp_path, data, message):
    with pytest.raises(CosmicError, match=message):
        load_behaviour(write(tmp_path, data))


def test_bad_input_is_named(demo, tmp_path):
    with pytest.raises(CosmicError, match="no file"):
        load_behaviour(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CosmicError, match="not JSON"):
        load_behaviour(tmp_path / "bad.json")
    with pytest.raises(CosmicError, match="pairs: none given"):
        answer_means(demo, [])
    with pytest.raises(CosmicError, match="of pair 0 one answer is the beginning"):
        answer_log_odds(demo, [AnswerPair("Well?", "No", "No way")])
    with pytest.raises(CosmicError, match="context"):
        answer_means(demo, [AnswerPair("Well?", "Yes", "no " * 2000)])
