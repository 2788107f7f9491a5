"""Tests on a real model are left out without one."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def collected(monkeypatch, capfd):
    """What pytest says that it would run. In this process, which has imported everything already."""

    def collect(*args, **environment):
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(("COSMIC_TL_REAL", "PYTEST_ADDOPTS"))]:
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(ROOT)
            capfd.readouterr()
            pytest.main(
                [
                    "-q",
                    "--collect-only",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:xdist",
                    "-o",
                    "addopts=--strict-markers",
                    *args,
                ]
            )
            return capfd.readouterr().out

    return collect


def test_without_a_model_real_tests_are_deselected_and_one_line_says_how_to_run_them(collected):
    found = collected("tests/real")
    assert "test_real" not in found and "skipped" not in found and " deselected" in found
    assert found.count("make test-real MODEL=…") == 1
    assert "make test-real" not in collected("tests/whole/test_markers.py")
    with_model = collected("tests/real", COSMIC_TL_REAL_MODEL="anything")
    assert "test_real_scores.py" in with_model and "make test-real" not in with_model
    assert "(1 deselected)" in with_model and "test_real_gguf" not in with_model  # there is no model.gguf beside it
