import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def collected(*args, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COSMIC_TL_REAL", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=--strict-markers", *args]  # without run-time types, which take long to load
    done = subprocess.run(command, cwd=ROOT, env={**env, **environment}, capture_output=True, text=True, check=False)
    return done.stdout


def test_without_a_model_real_tests_are_deselected_and_one_line_says_how_to_run_them():
    found = collected("tests/real")
    assert "test_real" not in found and "skipped" not in found and " deselected" in found
    assert found.count("make test-real MODEL=…") == 1
    assert "make test-real" not in collected("tests/whole/test_markers.py")
    with_model = collected("tests/real", COSMIC_TL_REAL_MODEL="anything")
    assert "test_real_scores.py" in with_model and "make test-real" not in with_model
    assert "(1 deselected)" in with_model and "test_real_gguf" not in with_model  # there is no model.gguf beside it
