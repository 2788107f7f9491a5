"""What results look like where they are the last line of a cell."""

from io import StringIO

import pandas as pd
import plotly.io as pio
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from cosmic_tl import (
    AffineEdit,
    ContrastSet,
    CosmicOptions,
    Effects,
    MapEdit,
    difference_in_means,
    fit_eraser,
    layer_similarities,
    mean_activations,
    pca_of_classes,
    project,
    select_cosmic,
)
from cosmic_tl.experiments import Comparison
from cosmic_tl.metrics.rates import rate
from cosmic_tl.selection import Plan


@pytest.fixture(scope="module")
def results(demo, prompts):
    sides = [prompts.side(side, "train", 8) for side in ("positive", "negative")]
    means = [mean_activations(demo, side) for side in sides]
    candidates = difference_in_means(*means)
    direction = candidates.direction(4, -1, demo)
    eraser = fit_eraser(demo, sides, layers=[4])[4]
    return {
        "means": means[0],
        "candidates": candidates,
        "direction": direction,
        "edit": AffineEdit(direction, 0.5),
        "map": MapEdit(eraser.map(), 4),
        "eraser": eraser,
        "similarity": layer_similarities(demo, sides, direction, mode="affine"),
        "projection": project(demo, sides[0][0], direction),
        "pca": pca_of_classes(demo, sides),
        "prompts": prompts,
    }


def test_no_result_prints_its_tensors(results):
    for name, result in results.items():
        text = repr(result)
        assert len(text) < 400 and "tensor(" not in text, name
        assert type(result).__name__ in text, name
    assert "8 layers" in repr(results["candidates"]) and "alpha=0.5" in repr(results["edit"])


@pytest.mark.parametrize("name", ["similarity", "projection", "pca"])
def test_pictures_show_as_their_figure(results, name, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    bundle = results[name]._repr_mimebundle_()
    assert any("plotly" in kind or "html" in kind for kind in bundle)


def test_selection_shows_what_a_reader_needs(demo, prompts):
    selection = select_cosmic(demo, prompts, CosmicOptions(n_train=16, n_val=8, max_kl=10.0))
    shown = selection._repr_html_()
    table = pd.read_html(StringIO(shown))[0]
    assert list(table) == ["layer", "position", "token", *selection.measures, "kept", "reason"]
    assert (table.kept == "✓").sum() == selection.top().kept.sum() > 0
    assert "NaN" not in shown and "<pre>" not in shown and "<li>" in shown
    assert all(repr(selection.positions.labels[row.position]) == row.token for row in table.itertuples())


def test_numbers_are_short():
    assert repr(rate(1, 2)) == "Rate(50.0% [9.5%, 90.5%], n = 2)"
    columns = {"measure": ["kl"], "status": ["pass"], "reason": ["scores"], "macs": [300_000 * 10**9]}
    plan = Plan(pd.DataFrame(columns), 0, 10 * 300_000 * 10**9, (3,), (4, 4), 0)
    assert "300,000 GMACs" in repr(plan) and "<td>300,000</td>" in plan._repr_html_()
    assert "3,000,000 (10.0 times as many)" in repr(plan)


def test_effects_print_as_a_table():
    row = {"side": "positive", "condition": "baseline", "verdict": "refusal", "cross_entropy": 1.0}
    first, head, body = repr(Effects(pd.DataFrame([row]))).splitlines()
    assert first == "Effects: 1 completion, 95 % intervals"
    assert "refusal rate" in head and "baseline" in body
    placebo = row | {"condition": "random induction"}
    seeds = Effects(pd.DataFrame([row, placebo | {"seed": 0}, placebo | {"seed": 1}]))
    assert repr(seeds).startswith("Effects: 3 completions, 95 % intervals; of several seeds their range")


def test_text_from_outside_is_escaped(results):
    evil = "<img src=x onerror=alert(1)>"
    row = {"side": "positive", "condition": evil, "verdict": "refusal", "cross_entropy": 1.0}
    effects = Effects(pd.DataFrame([row]))
    shown = Comparison({}, {"COSMIC": evil}, effects, pd.DataFrame([{"method": evil}]))._repr_html_()
    assert "<img" not in effects._repr_html_() and "<img" not in shown
    prompts = ContrastSet(evil, {"train": (evil,)}, {"train": (evil,)}, notes=(evil,))._repr_html_()
    assert "&lt;img" in shown and prompts.count("&lt;img") == 4 and "<img" not in prompts


def test_errors_are_one_line_in_a_notebook():
    shell = InteractiveShell.instance()
    try:
        with capture_output() as shown:
            shell.run_cell("from cosmic_tl import Direction; Direction.load('nowhere.safetensors')")
    finally:
        InteractiveShell.clear_instance()
    text = (shown.stdout + shown.stderr).strip()
    assert text.startswith("CosmicError: direction: no file 'nowhere.safetensors'")
    assert len(text.splitlines()) == 1
