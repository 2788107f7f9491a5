import json
from dataclasses import replace

import pytest
import torch

from cosmic_tl import ChatFormat, CosmicError, Direction
from cosmic_tl.runs.derived import Derivation, derivation, read_derived
from cosmic_tl.runs.directory import prepare_directory
from cosmic_tl.runs.run_files import DERIVED, read_settings

DIRECTION = Direction(torch.ones(128), torch.zeros(128), 3, -1)
SETTINGS = {
    "alphas": [0.0, 1.0],
    "prompts": "abc",
    "max_new_tokens": 4,
    "phrases": ("sorry",),
    "chat": ChatFormat(),
}


@pytest.mark.parametrize(
    "other",
    [
        {"direction": replace(DIRECTION, vector=2 * DIRECTION.vector)},
        {"direction": replace(DIRECTION, reference=DIRECTION.vector)},
        {"direction": replace(DIRECTION, layer=4)},
        {"direction": replace(DIRECTION, position=-2)},
        {"model": "weak"},
        {"model": "bfloat16"},
        {"prompts": "abd"},
        {"max_new_tokens": 5},
        {"phrases": ("ahoy",)},
        {"chat": ChatFormat(system="Be brief.")},
    ],
    ids=str,
)
def test_results_that_depend_on_something_else_are_kept_apart(other, demo, tmp_path):
    from cosmic_tl import load_model

    def part(direction=DIRECTION, model=None, **settings):
        models = {
            None: lambda: demo,
            "weak": lambda: load_model("demo-weak", device="cpu"),
            "bfloat16": lambda: load_model("demo", device="cpu", dtype="bfloat16"),
        }
        return derivation(tmp_path, "sweep", direction, models[model](), **{**SETTINGS, **settings}).part(
            ".jsonl", "alphas"
        )

    assert part() == part(alphas=[2.0])
    assert part() != part(**other)


def test_a_stop_between_files_leaves_no_record(tmp_path):
    made = Derivation(tmp_path, "sweep", {"seed": 0})
    made.write(dict.fromkeys(DERIVED["sweep"], "old"))
    Derivation(tmp_path, "judge", {"seed": 1}).write({"judgements.jsonl": ""})
    assert read_derived(tmp_path) == {"sweep": {"seed": 0}, "judge": {"seed": 1}}
    (tmp_path / "sweep.html.part").mkdir()  # so that writing fails half-way
    with pytest.raises(CosmicError, match=r"file: cannot write .*sweep\.html"):
        made.write(dict.fromkeys(DERIVED["sweep"], "new"))
    assert read_derived(tmp_path) == {"judge": {"seed": 1}}
    assert not (tmp_path / "sweep.html").exists()
    with pytest.raises(ValueError, match=r"sweep writes sweep\.csv, sweep\.html; found sweep\.pdf"):
        made.write({"sweep.pdf": ""})


def test_a_run_of_another_format_is_one_line(tmp_path):
    prepare_directory(tmp_path / "run", {"seed": 0})
    settings = tmp_path / "run" / "settings.json"
    found = json.loads(settings.read_text())
    assert found.pop("format") == 2
    settings.write_text(json.dumps(found))
    with pytest.raises(CosmicError, match="has format 1, and this version reads format 2; run again with --overwrite"):
        read_settings(tmp_path / "run")
    prepare_directory(tmp_path / "run", {"seed": 0}, overwrite=True)
    assert read_settings(tmp_path / "run") == {"seed": 0}
