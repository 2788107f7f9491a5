"""How far a run is, by `cosmic-tl status` and from Python."""

import json
import subprocess
import sys

import pytest

from cosmic_tl import CosmicOptions, RunSettings, run
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.logs import ScoreLog
from cosmic_tl.runs.piece_table import COLUMNS, PIECES, TABLE
from cosmic_tl.runs.run_progress import read_progress

SETTINGS = RunSettings(
    CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0), n_test=1, max_new_tokens=2, n_placebos=1
)


@pytest.fixture
def stopped(demo, prompts, tmp_path, monkeypatch):
    """A run that was stopped at its tenth number, with two pieces in its table."""
    plain, left = ScoreLog.__setitem__, [10]

    def stop(self, key, value):
        plain(self, key, value)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScoreLog, "__setitem__", stop)
    with pytest.raises(KeyboardInterrupt):
        run(demo, prompts, tmp_path / "run", SETTINGS)
    folder = tmp_path / "run" / "resume" / PIECES
    folder.mkdir()
    rows = [
        ["scores", "s_comply, layer 1", "done", "here:1", 1, 0.5],
        ["scores", "kl, layer 2", "running", "[b]", 2, None],
    ]
    (folder / TABLE).write_text(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    return tmp_path / "run"


def test_a_stopped_run_says_what_is_done(stopped):
    found = read_progress(stopped)
    assert not found.is_complete and not found.is_running
    assert "stopped: 10 numbers of candidates and 0 conditions are done" in found.said
    assert found.pieces.piece.tolist() == ["s_comply, layer 1"]  # nobody runs the other one any more


def test_a_run_under_way_says_by_whom_and_with_which_pieces(stopped, command):
    with locked(stopped):
        found = read_progress(stopped)
        code, out, _ = command("status", stopped)
    assert found.is_running and not found.is_complete and "1 done, 1 running" in found.said
    assert code == 0 and "Under way by process" in out and "kl, layer 2" in out and "[b]" in out
    assert out.index("kl, layer 2") < out.index("s_comply, layer 1")  # what is under way comes first


def test_to_look_takes_no_lock_and_changes_nothing(stopped):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    read_progress(stopped)
    with locked(stopped):
        pass
    assert before.keys() == {path for path in stopped.rglob("*") if path.is_file()}
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != "lock")


def test_a_complete_run_says_so(demo, prompts, stopped, monkeypatch, command):
    monkeypatch.undo()
    run(demo, prompts, stopped, SETTINGS)
    found = read_progress(stopped)
    assert found.is_complete and found.pieces.empty and not (stopped / "resume" / PIECES).exists()
    assert command("status", stopped, "--watch")[:2] == (0, "The run is complete.\n")


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"stage": "scores"}]', "null"])
def test_a_damaged_table_is_none(stopped, content):
    (stopped / "resume" / PIECES / TABLE).write_text(content)
    assert read_progress(stopped).pieces.empty


def test_a_folder_without_a_run_is_refused(tmp_path, command):
    code, _, said = command("status", tmp_path)
    assert code == 2 and "holds no run" in said and "\n" not in said.strip()


def test_it_is_looked_up_without_torch():
    code = "import sys; import cosmic_tl.runs.run_progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
