"""Exported edits in their own readers, beside the same edits here."""

import pytest

from cosmic_tl import Ablation, Addition, AffineEdit
from cosmic_tl.export import check_export, export_edit


@pytest.mark.parametrize("to", ["steer.py", "lm-eval"])
def test_an_export_is_the_same_edit_in_its_reader(to, real_model, real_prompts, affine_selection, tmp_path):
    direction, prompt = affine_selection.direction, real_prompts.side("positive", "test")[0]
    for number, edit in enumerate((AffineEdit(direction, 0.0), Ablation(direction), Addition(direction))):
        path = tmp_path / (f"steer{number}.py" if to == "steer.py" else f"{number}.pt")
        found = check_export(real_model, export_edit(real_model, edit, to, path), [prompt], max_new_tokens=4)
        assert found.passed, found
