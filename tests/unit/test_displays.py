"""What results look like where they are the last line of a cell."""

import pandas as pd
import plotly.io as pio
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from cosmic_tl import (
    AffineEdit,
    Comparison,
    Effects,
    MapEdit,
    difference_in_means,
    fit_eraser,
    layer_similarities,
    mean_activations,
)


@pytest.fixture(scope="module")
def results(demo, prompts):
    sides = [prompts.side(side, "train", 8) for side in ("positive", "negative")]
    means = [mean_activations(demo, side) for side in sides]
    candidates = difference_in_means(*means)
    direction = candidates.direction(4, -1, demo)
    eraser = fit_eraser(demo, *sides, layers=[4])[4]
    return {
        "means": means[0],
        "candidates": candidates,
        "direction": direction,
        "edit": AffineEdit(direction, 0.5),
        "map": MapEdit(eraser.map(), 4),
        "eraser": eraser,
        "similarity": layer_similarities(demo, *sides, direction),
        "prompts": prompts,
    }


def test_no_result_prints_its_tensors(results):
    for name, result in results.items():
        text = repr(result)
        assert len(text) < 400 and "tensor(" not in text, name
        assert type(result).__name__ in text, name
    assert "8 layers" in repr(results["candidates"]) and "alpha=0.5" in repr(results["edit"])


def test_similarity_shows_as_its_figure(results, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    bundle = results["similarity"]._repr_mimebundle_()
    assert any("plotly" in kind or "html" in kind for kind in bundle)


def test_text_from_outside_is_escaped(results):
    evil = "<img src=x onerror=alert(1)>"
    row = {"kind": "harmful", "condition": evil, "verdict": "refusal", "cross_entropy": 1.0}
    effects = Effects(pd.DataFrame([row]))
    shown = Comparison({}, {"COSMIC": evil}, effects, pd.DataFrame([{"method": evil}]))._repr_html_()
    assert "<img" not in effects._repr_html_() and "<img" not in shown
    assert "&lt;img" in shown


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
