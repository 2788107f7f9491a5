"""Exported edits in their own readers, beside the same edits here."""

import pytest

from cosmic_tl import Ablation, Addition, AffineEdit
from cosmic_tl.export import check_export, export_edit


@pytest.mark.parametrize("to", ["steer.py", "lm-eval"])
def test_an_export_is_the_same_edit_in_its_reader(to, real_model, real_prompts, affine_selection, tmp_path):
    prompt = real_prompts.side("positive", "test")[0]
    # Early directions of some models hold most of the stream, which float32 takes out to 1e-3 only, whoever does it.
    direction = affine_selection.candidates.direction(int(0.6 * real_model.cfg.n_layers), -1)
    for number, edit in enumerate((AffineEdit(direction, 0.0), Ablation(direction), Addition(direction))):
        path = tmp_path / (f"steer{number}.py" if to == "steer.py" else f"{number}.pt")
        found = check_export(real_model, export_edit(real_model, edit, to, path), [prompt], max_new_tokens=4)
        assert found.passed and found.table.difference.max() <= 1e-4, found
