"""Figures of a study show what its tables say."""

import pandas as pd
import pytest

from cosmic_tl import CosmicError
from cosmic_tl.experiments import StudyResult
from cosmic_tl.figures import plot_study, plot_study_choices, plot_study_scores

PLACE = {"prompts": "demo", "settings": "cosmic", "seed": None, "alpha": None}
NONE = pd.DataFrame()


@pytest.fixture
def study():
    rates = {
        ("a <b>", "positive"): (0.9, 0.1),
        ("a <b>", "negative"): (0.05, 0.8),
        ("c", "positive"): (0.5, 0.4),
        ("c", "negative"): (0.0, 1.0),
    }
    rows = []
    for (run, side), values in rates.items():
        edit = {"positive": "removal", "negative": "induction"}[side]
        for condition, rate in zip(("baseline", edit), values, strict=True):
            row = {**PLACE, "run": run, "model": run, "side": side, "condition": condition, "rate": rate, "problem": ""}
            rows.append(row | {"low": rate / 2, "high": (1 + rate) / 2, "placebo_low": 0.3, "placebo_high": 0.6})
        rows.append({**rows[-1], "condition": "random induction", "rate": 0.45})
    rows.append({**PLACE, "run": "broken", "model": "broken", "side": "", "condition": "", "problem": "no weights"})
    chosen = [
        {"run": "a <b>", "model": "a <b>", "layer": 2, "n_layers": 8, "depth": 0.25, "stability": 0.9, "seconds": 5.0},
        {"run": "c", "model": "c", "layer": 3, "n_layers": 4, "depth": 0.75, "stability": None, "seconds": 7.0},
    ]
    memory = [{"memory_gb": 1.0, "gpu_gb": None, "problem": ""}, {"memory_gb": 2.0, "gpu_gb": 30.0, "problem": ""}]
    bad = {"run": "broken", "model": "broken", "problem": "no weights"}
    published = [
        {"model": "c", "measure": "layer", "published": 2.0, "source": "<i>", "run": "c", "ours": 3.0},
        {"model": "c", "measure": "positive_removal", "published": 0.2, "source": "Table 1", "run": "c", "ours": 0.4},
        {"model": "broken", "measure": "layer", "published": 9.0, "source": "Table 1", "run": None, "ours": None},
    ]
    cells = [
        {"run": run, "layer": layer, "position": place, "token": "x", "score": layer + 0.1 * place, "kl": 0.1}
        | {"kept": layer < 3, "chosen": (layer, place) == (2, -1)}
        for run, n in (("a <b>", 8), ("c", 4))
        for layer in range(n)
        for place in (-2, -1)
    ]
    selections = pd.DataFrame([one | other for one, other in zip(chosen, memory, strict=True)] + [bad])
    return StudyResult("two", pd.DataFrame(rows), selections, pd.DataFrame(cells), pd.DataFrame(published))


def bars(figure, name, axis):
    return next(one for one in figure.data if one.type == "bar" and one.name == name and (one.xaxis or "x") == axis)


def test_bars_are_the_rates_with_intervals_and_placebos(study):
    figure = plot_study(study)
    assert list(figure.layout.yaxis.ticktext) == ["a &lt;b&gt;", "c"]
    for axis, name, values in (
        ("x", "no edit", [0.9, 0.5]),
        ("x", "removal", [0.1, 0.4]),
        ("x2", "no edit", [0.05, 0.0]),
        ("x2", "induction", [0.8, 1.0]),
    ):
        found = bars(figure, name, axis)
        assert list(found.x) == values
        for value, up, down in zip(values, found.error_x.array, found.error_x.arrayminus, strict=True):
            assert (value - down, value + up) == pytest.approx((value / 2, (1 + value) / 2))
    placebos = bars(figure, "placebos", "x2")
    assert [round(one + 0.005, 6) for one in placebos.base] == [0.3, 0.3]
    assert [round(one - 0.01, 6) for one in placebos.x] == [0.3, 0.3]
    (diamond,) = (one for one in figure.data if one.name == "published")
    assert list(diamond.x) == [0.2] and round(diamond.y[0]) == 1 and figure.layout.barmode == "overlay"
    edit = bars(figure, "removal", "x")
    assert diamond.y[0] == edit.y[1]


def test_choices_are_relative_to_the_depth_and_memory_is_the_gpus_where_there_is_one(study):
    figure = plot_study_choices(study)
    depth, wins, seconds, memory, published = figure.data
    assert list(depth.x) == [0.25, 0.75] and list(seconds.x) == [5.0, 7.0] and list(memory.x) == [1.0, 30.0]
    assert wins.x[0] == 0.9 and wins.x[1] != wins.x[1]
    assert list(published.x) == [0.5] and list(published.y) == [1] and published.customdata[0] == "&lt;i&gt;"


def test_every_run_has_its_heatmap_with_its_choice(study):
    figure = plot_study_scores(study)
    maps = [one for one in figure.data if one.type == "heatmap"]
    assert [one.z.shape for one in maps] == [(2, 8), (2, 4)]
    assert maps[0].z[1][2] == pytest.approx(1.9)  # position −1, layer 2
    stars = [one for one in figure.data if one.name == "chosen"]
    assert [(list(one.x), list(one.y)) for one in stars] == [([2], ["x (-1)"])] * 2
    crosses = [one for one in figure.data if one.name == "filtered"]
    assert [set(one.x) for one in crosses] == [{3, 4, 5, 6, 7}, {3}]


@pytest.mark.parametrize("plot", [plot_study, plot_study_choices, plot_study_scores])
def test_a_study_without_a_finished_run_cannot_be_drawn(plot):
    bad = pd.DataFrame([{"run": "broken", "model": "broken", **PLACE, "side": "", "problem": "no weights"}])
    with pytest.raises(CosmicError, match="no run is finished"):
        plot(StudyResult("none", bad, bad, NONE, NONE))
