"""Edits in other tools' formats: each in its own reader, beside the same edit here."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from plain_block import is_same

from cosmic_tl import Ablation, Addition, AffineEdit, CosmicError, Direction, load_model
from cosmic_tl.directions import Subspace
from cosmic_tl.export import check_export, export_edit, format_table
from cosmic_tl.export.formats import EDITS
from cosmic_tl.export.names import FORMATS
from cosmic_tl.interventions import AffineEverywhere, AffineMap, MapEdit, SubspaceAblation, SubspaceEdit
from cosmic_tl.model.fingerprint import model_fingerprint

HERE = {"steer.py": "steer.py", "lm-eval": "steered.pt", "steering-vectors": "vector.safetensors"}
"""Formats whose readers are among the test dependencies."""


def edits(model, layer=1, **options):
    """One edit of each kind."""
    d_model, fingerprint = int(model.cfg.d_model), model_fingerprint(model)
    generator = torch.Generator().manual_seed(3)
    vector, reference = torch.randn(2, d_model, generator=generator) * 4
    direction = Direction(vector, reference, layer=layer, position=-1, fingerprint=fingerprint)
    basis = torch.linalg.qr(torch.randn(d_model, 2, generator=generator, dtype=torch.float64))[0].T.contiguous()
    plane = Subspace(basis, reference.double(), reference.double() + vector.double(), layer, "random", fingerprint)
    left, right = torch.randn(2, 3, d_model, generator=generator) / d_model**0.5
    return {
        "Addition": Addition(direction, alpha=0.5, **options),
        "Ablation": Ablation(direction, **options),
        "AffineEdit": AffineEdit(direction, alpha=0.3, **options),
        "AffineEverywhere": AffineEverywhere(direction, alpha=0.3, **options),
        "SubspaceAblation": SubspaceAblation(plane, **options),
        "SubspaceEdit": SubspaceEdit(plane, alpha=0.5, **options),
        "MapEdit": MapEdit(AffineMap(left, right, torch.ones(3), fingerprint), layer, **options),
    }


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "olmo2", "mixtral"])
def test_whatever_the_table_calls_exact_is_the_same_edit_in_its_reader(model_type, layer, save_model, tmp_path):
    model = load_model(save_model(tmp_path / "model", model_type), device="cpu")
    checked = 0
    for (kind, edit), (to, file) in [(edit, form) for edit in edits(model, layer).items() for form in HERE.items()]:
        if FORMATS[to].verdict(kind).status != "exact":
            continue
        if layer and kind in ("Ablation", "AffineEverywhere", "SubspaceAblation"):
            continue  # it has no layer
        if layer < FORMATS[to].first_layer:
            with pytest.raises(CosmicError, match=rf"edit: {to} cannot carry {kind} \(it acts from layer 1 on\); use"):
                export_edit(model, edit, to, tmp_path / "nowhere.safetensors")
            continue
        found = check_export(
            model, export_edit(model, edit, to, tmp_path / f"{kind}_{file}"), ["hello", "who are you"], max_new_tokens=6
        )
        assert is_same(found), (to, kind, found)
        assert found.table.control.max() > 1e-2
        checked += 1
    assert checked >= (6 if layer else 11)


@pytest.mark.parametrize("tokens", ["prompt", "completion"])
def test_a_script_knows_prompt_and_completion(tokens, demo, tmp_path):
    edit = edits(demo, 3, tokens=tokens)["AffineEdit"]
    found = check_export(demo, export_edit(demo, edit, "steer.py", tmp_path / "steer.py"), ["Bake a pizza.", "hello"])
    assert is_same(found), found
    with pytest.raises(
        CosmicError, match=f"tokens: lm-eval edits all tokens, found '{tokens}'; use the format steer.py"
    ):
        export_edit(demo, edit, "lm-eval", tmp_path / "steered.pt")


def test_an_edit_that_is_another_one_fails(demo, tmp_path):
    some = edits(demo, 3)
    exported = export_edit(demo, some["AffineEdit"], "lm-eval", tmp_path / "steered.pt")
    for other in (edits(demo, 2)["AffineEdit"], some["Addition"], some["Ablation"]):
        found = check_export(demo, replace(exported, edit=other), ["Bake a pizza."], max_new_tokens=2)
        assert not found.passed and "is not the same edit" in repr(found)


@pytest.mark.parametrize("to", FORMATS)
def test_what_a_format_cannot_carry_is_refused_with_one_that_can(to, demo, tmp_path):
    for kind, edit in edits(demo, 3).items():
        if FORMATS[to].verdict(edit).status == "impossible":
            with pytest.raises(CosmicError, match=f"edit: {to} cannot carry {kind} \\(.+\\); use the format steer.py"):
                export_edit(demo, edit, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_table_has_every_format_and_edit_and_says_why():
    table = format_table()
    assert len(table) == len(FORMATS) * len(EDITS)
    assert (table.why[table.status != "exact"] != "").all() and (table.why[table.status == "exact"] == "").all()


def test_nothing_is_overwritten_unasked_and_every_file_says_what_it_is(demo, tmp_path):
    for to, file in HERE.items():
        kind = "AffineEdit" if "AffineEdit" in FORMATS[to].carries else "Addition"
        edit = edits(demo, 3)[kind]
        export_edit(demo, edit, to, tmp_path / file, contrast="refusal")
        before = (tmp_path / file).read_bytes()
        with pytest.raises(CosmicError, match="exists; give another path, or overwrite it"):
            export_edit(demo, edits(demo, 2)[kind], to, tmp_path / file)
        assert (tmp_path / file).read_bytes() == before
        again = export_edit(demo, edit, to, tmp_path / file, contrast="refusal", overwrite=True)
        assert (tmp_path / file).read_bytes() == before
        about = again.about
        assert about["layer"] == 3 and about["alpha"] == edit.alpha and about["contrast_set"] == "refusal"
        assert about["fingerprint"] == model_fingerprint(demo) and about["licence"] and about["method"]
    with pytest.raises(CosmicError, match=r"to: unknown .gguf."):
        export_edit(demo, edit, "gguf", tmp_path / "x")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_beside_it_that_no_export_wrote_is_left_alone(overwrite, demo, tmp_path):
    (tmp_path / "direction.safetensors").write_text("mine")
    with pytest.raises(CosmicError, match="safetensors' exists; no earlier export wrote it"):
        export_edit(demo, edits(demo)["Ablation"], "steer.py", tmp_path / "direction.py", overwrite=overwrite)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("before", [False, True])
def test_an_export_that_cannot_be_finished_leaves_everything_as_it_was(before, demo, tmp_path):
    path = tmp_path / "steer.py"
    if before:
        export_edit(demo, edits(demo, 2)["AffineEdit"], "steer.py", path)
    kept = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    (tmp_path / "steer.py.part").mkdir()  # which the script is written to, after its tensors
    with pytest.raises(CosmicError, match="cannot write"):
        export_edit(demo, edits(demo, 3)["AffineEdit"], "steer.py", path, overwrite=True)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()} == kept


def test_the_users_tokenizer_stays_as_it_is(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "tokenizer", deepcopy(demo.tokenizer))
    demo.tokenizer.pad_token = None
    with FORMATS["lm-eval"].applied(
        export_edit(demo, edits(demo)["Ablation"], "lm-eval", tmp_path / "a.pt").path, demo
    ):
        assert demo.tokenizer.pad_token is None
