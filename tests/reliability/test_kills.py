"""A sample of `make test-reliability`: a run that is stopped, however and wherever, ends with the very same files."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_run_that_is_stopped_ends_with_the_same_bytes() -> None:
    asked = ["--commands", "run", "--random", "1", "--operations", "100", "--writes", "1", "--together", "1"]
    found = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), *asked], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    done = json.loads(found.stdout.splitlines()[-1])["run"]
    assert (
        done["random"] == 1
        and done["operations"] >= 2
        and done["writes"] == 1
        and done["together"] == 1
        and done["failed"] == 0
    )
