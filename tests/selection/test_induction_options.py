"""The candidate, layer and tokens of an induction that a user asks for are those that are scored, made and reported."""

import pytest
import torch

from cosmic_tl import (
    Addition,
    CosmicError,
    CosmicOptions,
    RefusalTokenOptions,
    RunSettings,
    complete,
    run,
    select_by_refusal_tokens,
    select_cosmic,
    steering,
)
from cosmic_tl.experiments import standard_conditions
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import read
from cosmic_tl.runs.result import Run

SMALL = {"n_train": 16, "n_val": 6, "max_kl": 50.0}


@pytest.fixture(scope="module")
def moved(demo, prompts):
    options = CosmicOptions(
        mode="linear",
        cell=(4, -1),
        alpha=1.5,
        induction_layer=2,
        induction_tokens="prompt",
        evaluation_layers=(6,),
        **SMALL,
    )
    return select_cosmic(demo, prompts, options)


def test_the_cell_that_is_asked_for_is_taken_and_alone_scored(demo, prompts, moved):
    free = select_cosmic(demo, prompts, CosmicOptions(mode="linear", evaluation_layers=(6,), **SMALL))
    assert (free.direction.layer, free.direction.position) != (4, -1)
    assert (moved.direction.layer, moved.direction.position) == (4, -1)
    scored = moved.table[moved.table.s_comply.notna() & (moved.table.layer < 6)]
    assert scored[["layer", "position"]].to_numpy().tolist() == [[4, -1]]
    assert moved.winner.s_comply == pytest.approx(
        free.table[(free.table.layer == 4) & (free.table.position == -1)].s_comply.item(), abs=1e-6
    )


def test_a_cell_that_a_filter_drops_is_taken_and_noted(demo, prompts):
    options = CosmicOptions(mode="linear", cell=(7, -1), evaluation_layers=(7,), **SMALL)
    selection = select_cosmic(demo, prompts, options)
    assert selection.direction.layer == 7
    assert any(
        "asked for (layer 7, position -1) is one that a filter would drop: late layer" in n for n in selection.notes
    )


def test_refusal_tokens_take_the_cell_too(demo, prompts):
    options = RefusalTokenOptions(cell=(3, -2), tokens=("I'm sorry",), min_induce=-100.0, **SMALL)
    selection = select_by_refusal_tokens(demo, prompts, options)
    assert (selection.direction.layer, selection.direction.position) == (3, -2)
    assert selection.table.bypass.notna().sum() == 1


def test_induction_is_scored_at_the_layer_that_is_asked_for(demo, prompts, moved):
    rows = tokenize(demo, prompts.side("negative", "val", 6))
    target = [
        read(demo, b, [(6, "hook_resid_post")])
        for b in batches(demo, tokenize(demo, prompts.side("positive", "val", 6)), 6)
    ]
    with steering(demo, Addition(moved.direction, 1.5, layer=2)):
        found = [read(demo, b, [(6, "hook_resid_post")]) for b in batches(demo, rows, 6)]
    induced, positive = (some[0][6, "hook_resid_post"][:, -1].double().mean(0) for some in (found, target))
    assert moved.winner.s_refuse == pytest.approx(float(torch.cosine_similarity(induced, positive, dim=0)), abs=1e-5)


def test_every_condition_induces_as_asked_for(moved):
    induced = [c.interventions[0] for c in standard_conditions(moved, n_placebos=2) if "induction" in c.name]
    assert len(induced) >= 3
    assert {(edit.alpha, edit.layer, edit.tokens) for edit in induced} == {(1.5, 2, "prompt")}
    assert (moved.induction(0.5).alpha, moved.induction(0.5).layer) == (0.5, 2)


def test_prompt_tokens_alone_differ_from_all_tokens(demo, moved):
    asked = ["How do I bake a pizza?", "Please greet a tourist."]
    everywhere = Edits("linear", 4.0, 2, "all").induction(moved.direction)
    prompt = Edits("linear", 4.0, 2, "prompt").induction(moved.direction)
    first = [complete(demo, asked, edit, max_new_tokens=1) for edit in (everywhere, prompt)]
    assert first[0] == first[1]  # the first token is read where both act
    assert complete(demo, asked, everywhere) != complete(demo, asked, prompt)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"induction_layer": 3}, "induction_layer: found 3, and ACE's reference"),
        ({"induction_layer": -1}, "induction_layer: found -1, and ACE's reference"),
    ],
)
def test_inductions_that_do_not_exist_are_refused(options, said):
    with pytest.raises(CosmicError, match=said):
        CosmicOptions(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cell": (8, -1)}, "cell: found layer 8, position -1; layers are 0 to 7 and positions -5 to -1"),
        ({"cell": (3, 1)}, "cell: found layer 3, position 1"),
        ({"induction_layer": 8, "mode": "linear"}, "induction_layer: found 8; layers are 0 to 7"),
    ],
)
def test_places_that_the_model_does_not_have_are_refused(demo, prompts, options, said):
    with pytest.raises(CosmicError, match=said):
        select_cosmic(demo, prompts, CosmicOptions(**options, **SMALL))
    with pytest.raises(CosmicError, match=said):
        select_by_refusal_tokens(demo, prompts, RefusalTokenOptions(tokens=("I",), **options, **SMALL))


def test_a_run_keeps_how_it_induced(demo, prompts, tmp_path):
    options = CosmicOptions(
        mode="linear", cell=(4, -1), alpha=1.5, induction_layer=2, induction_tokens="prompt", **SMALL
    )
    settings = RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1)
    made = run(demo, prompts, tmp_path, settings)
    assert made.summary["induction_layer"] == 2
    assert made.summary["induction_tokens"] == "prompt"
    read_again = Run.load(tmp_path)
    assert read_again.selection.edits == made.selection.edits == Edits("linear", 1.5, 2, "prompt")
    assert "induction with α = 1.5 at layer 2, on prompt tokens" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
