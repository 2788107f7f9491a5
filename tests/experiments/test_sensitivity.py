"""What other settings choose, from one set of passes: the same as a selection under each of them."""

from dataclasses import replace

import pytest

from cosmic_tl import CosmicError, CosmicOptions, select_cosmic
from cosmic_tl.experiments import measure_sensitivity

OPTIONS = CosmicOptions(n_train=24, n_val=8, n_positions=3, max_kl=0.5, n_resamples=0)


@pytest.fixture(scope="module")
def found(demo, prompts):
    return measure_sensitivity(demo, prompts, OPTIONS)


@pytest.mark.parametrize(
    ("varied", "value", "changes"),
    [
        ("asked for", "", {}),
        ("evaluation_share", "50%", {"evaluation_share": 0.5}),
        ("evaluation_share", "25%", {"evaluation_share": 0.25}),
        ("target", "concatenated", {"target": "concatenated"}),
        ("target", "per-prompt", {"target": "per-prompt"}),
        ("target", "centred", {"target": "centred"}),
        ("n_positions", "1", {"n_positions": 1}),
        ("n_positions", "2", {"n_positions": 2}),
        ("n_val", "4", {"n_val": 4}),
    ],
)
def test_every_setting_chooses_as_a_selection_under_it(demo, prompts, found, varied, value, changes):
    table = found.table
    (row,) = table[(table.varied == varied) & (table.value == value)].to_dict("records")
    alone = select_cosmic(demo, prompts, replace(OPTIONS, **changes))
    assert (row["layer"], row["position"]) == (alone.direction.layer, alone.direction.position)
    assert row["evaluation_layers"] == alone.evaluation_layers
    assert row["score"] == pytest.approx(alone.winner.score, abs=1e-5)
    asked = select_cosmic(demo, prompts, OPTIONS).direction
    assert row["cosine"] == pytest.approx(float(alone.direction.unit @ asked.unit), abs=1e-5)


def test_its_plan_goes_to_the_highest_layer_that_is_read(found):
    read = {layer for layers in found.table.evaluation_layers for layer in layers}
    assert found.plan.evaluation_layers == tuple(sorted(read))
    passes = found.plan.cells[(found.plan.cells.measure == "s_comply") & (found.plan.cells.status == "pass")]
    assert set(passes["last"]) == {max(read)}


def test_a_setting_under_which_nothing_passes_has_no_choice(demo, prompts):
    strict = measure_sensitivity(demo, prompts, replace(OPTIONS, max_kl=1e-9))
    assert strict.table.layer.isna().all() and strict.agreeing == 0
    assert len(strict.plot().data) == 4


def test_its_figure_has_a_panel_per_setting(found):
    figure = found.plot()
    titles = [note.text for note in figure.layout.annotations if note.name]
    assert titles == ["share of evaluation layers", "target", "number of positions", "validation prompts per side"]
    assert [len(trace.y) for trace in figure.data] == [8, 4, 3, 4]


def test_what_names_one_candidate_is_refused(demo, prompts):
    for changes, name in (
        ({"cell": (3, -1)}, "cell"),
        ({"successive_halving": True}, "successive_halving"),
        ({"filter_prompts": True}, "filter_prompts"),
    ):
        with pytest.raises(CosmicError, match=f"^{name}: "):
            measure_sensitivity(demo, prompts, replace(OPTIONS, **changes))
