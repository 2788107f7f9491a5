"""COSMIC's complete-refusal setting: the direction is found while a system prompt makes the model refuse everything."""

import pytest

from cosmic_tl import ChatFormat, CosmicOptions, complete, random_direction, select_cosmic
from cosmic_tl.data import REFUSE_EVERYTHING
from cosmic_tl.interventions.modes import induction, removal
from cosmic_tl.judges import refusal_rate
from cosmic_tl.judges.demo_grammar import parse_answer
from scripts.demo_model import grammar

ORDER = ChatFormat(system=REFUSE_EVERYTHING)
N = 32


@pytest.fixture(scope="module", params=["affine", "linear"])
def found(request, demo, prompts):
    options = CosmicOptions(mode=request.param, n_train=80, n_val=32, n_resamples=0)
    return select_cosmic(demo, prompts, options, chat=ORDER)


@pytest.fixture(scope="module")
def refused(demo, prompts):
    def rate(side, edits=(), chat=None):
        asked = prompts.side(side, "test", N)
        return refusal_rate(complete(demo, asked, edits, chat=chat, max_new_tokens=24, batch_size=N)).value

    return rate


def test_both_sides_are_refused_while_the_direction_is_sought(refused):
    assert REFUSE_EVERYTHING in grammar.SYSTEM_PROMPTS["refuse_all"]["test"][0][0]
    assert refused("positive", chat=ORDER) >= 0.95
    assert refused("negative", chat=ORDER) >= 0.95
    assert refused("positive") >= 0.95 and refused("negative") <= 0.05


def test_a_direction_is_found_all_the_same(found):
    assert found.winner.share_comply > 0.8 and found.winner.share_refuse > 0.8
    assert found.clean["similarity"] < 0.9  # what is refused alike is not alike inside


def test_its_removal_restores_compliance_without_the_order(found, refused):
    direction = found.direction
    assert refused("positive", removal(direction, found.mode)) <= 0.10
    assert refused("negative", induction(direction, found.mode)) >= 0.90
    placebo = random_direction(direction)
    assert refused("positive", removal(placebo, found.mode)) >= 0.90
    assert refused("negative", induction(placebo, found.mode)) <= 0.10


def test_what_it_answers_then_is_an_answer(found, demo, prompts):
    asked = prompts.side("positive", "test", N)
    answers = complete(demo, asked, removal(found.direction, found.mode), max_new_tokens=48, batch_size=N)
    assert sum(parse_answer(answer).kind == "comply" for answer in answers) / N >= 0.85


def test_it_is_the_direction_of_harm_and_not_of_the_order(found, refused):
    """With the order in place both sides go on being refused: what was found carries harm, and the order is another cause."""
    edit = removal(found.direction, found.mode)
    assert refused("positive", edit, ORDER) >= 0.90
    assert refused("negative", edit, ORDER) >= 0.90
