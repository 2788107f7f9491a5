"""Threads that share a model never see each other's edits: the second one gets an error."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch

from cosmic_tl import Ablation, CosmicError, complete, load_model, load_prompts, mean_activations, steering
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.interventions.orthogonalize import orthogonalize_weights
from cosmic_tl.metrics.refusal_score import refusal_scores, refusal_tokens
from cosmic_tl.model.fingerprint import model_fingerprint


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return load_prompts("demo").side("positive", "test", 4)


def _direction(model: Any) -> Direction:
    return random_direction(Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1))


USES: dict[str, Callable[[Any, list[str]], Any]] = {
    "complete": lambda model, prompts: complete(model, prompts, max_new_tokens=2),
    "mean_activations": lambda model, prompts: mean_activations(model, prompts),
    "refusal_scores": lambda model, prompts: refusal_scores(model, prompts, refusal_tokens(model, ["I"])),
    "steering": lambda model, prompts: steering(model, Ablation(_direction(model))).__enter__(),
    "orthogonalize_weights": lambda model, prompts: orthogonalize_weights(model, _direction(model)),
}


@pytest.mark.parametrize("use", USES)
def test_a_model_under_edits_is_not_open_to_another_thread(model: Any, prompts: list[str], use: str) -> None:
    before = model_fingerprint(model)
    with (
        ThreadPoolExecutor(1) as pool,
        steering(model, Ablation(_direction(model))),
        pytest.raises(CosmicError, match="another thread is using it") as error,
    ):
        pool.submit(USES[use], model, prompts).result()
    assert "\n" not in str(error.value)
    assert model_fingerprint(model) == before


def test_the_model_is_open_again_afterwards_also_after_an_error(model: Any, prompts: list[str]) -> None:
    plain = complete(model, prompts, max_new_tokens=8)
    with pytest.raises(ZeroDivisionError), steering(model, Ablation(_direction(model))):
        _ = 1 / 0
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(complete, model, prompts, max_new_tokens=8).result() == plain


def test_one_thread_may_nest_as_it_likes(model: Any, prompts: list[str]) -> None:
    with steering(model, Ablation(_direction(model))), steering(model, Ablation(_direction(model))):
        assert len(complete(model, prompts, max_new_tokens=2)) == 4


def test_two_threads_at_once_give_right_answers_or_an_error(model: Any, prompts: list[str]) -> None:
    direction = _direction(model)
    right = {
        "plain": complete(model, prompts, max_new_tokens=8),
        "edited": complete(model, prompts, Ablation(direction), max_new_tokens=8),
    }
    edits = {"plain": (), "edited": Ablation(direction)}
    go = Event()

    def outcome(kind: str) -> str:
        try:
            answers = complete(model, prompts, edits[kind], max_new_tokens=8)
        except CosmicError as error:
            return "refused" if "another thread" in str(error) else str(error)
        return "right" if answers == right[kind] else "wrong"

    def work(kind: str) -> list[str]:
        go.wait()
        return [outcome(kind) for _ in range(6)]

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(work, kind) for kind in edits]
        go.set()
        found = [one for some in waiting for one in some.result()]
    assert set(found) <= {"right", "refused"} and "right" in found


def test_models_of_their_own_work_side_by_side(prompts: list[str]) -> None:
    models = [load_model("demo", device="cpu") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda one: complete(one, prompts, max_new_tokens=8), models)
    assert first == second
