"""One process at a time in a run's directory; whatever stops it, nothing is lost and the next one goes on."""

import multiprocessing
import os
import resource
import signal
import stat
import sys
from contextlib import contextmanager

import pytest

from cosmic_tl import CosmicError, CosmicOptions, RunSettings, cli, run
from cosmic_tl._util.files import append_lines, read_lines, write_atomically
from cosmic_tl.runs import job
from cosmic_tl.runs.directory import prepare_directory
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.run_files import read_settings

FORK = multiprocessing.get_context("fork")
SETTINGS = RunSettings(
    CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0), n_test=2, max_new_tokens=2, n_placebos=1
)


def _hold(out, parent, child):
    parent.close()
    with locked(out):
        child.send("in")
        child.poll(None)  # until the parent ends, or kills it


@pytest.fixture
def holding():
    """A process that holds the lock of a directory until it is killed. A fork, which has torch imported already."""
    started = []

    def hold(out):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_hold, args=(out, ours, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
        assert ours.recv() == "in"
        return process

    yield hold
    for process, ours in started:
        process.kill()
        process.join()
        ours.close()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_in_use_is_left_alone_until_its_process_has_ended(demo, prompts, tmp_path, holding, monkeypatch, capsys):
    out = tmp_path / "run"
    other = holding(out)
    before = contents(out)
    with pytest.raises(CosmicError, match=rf"out: .*run' is in use by process {other.pid} on .*; wait until it has"):
        run(demo, prompts, out, SETTINGS)
    assert contents(out) == before
    other.kill()
    other.join()
    assert other.exitcode == -signal.SIGKILL
    assert not run(demo, prompts, out, SETTINGS).was_complete  # a lock is not outlived by its holder

    other = holding(out)
    before = contents(out)
    assert run(demo, prompts, out, SETTINGS).was_complete  # reading needs no lock
    with pytest.raises(CosmicError, match="is in use"):
        run(demo, prompts, out, SETTINGS, overwrite=True)
    few = ["--n-test", "1", "--max-new-tokens", "2"]
    for command in (["judge"], ["sweep", *few], ["calibrate", *few], ["suffix", "--n-prompts", "1"]):
        monkeypatch.setattr(sys, "argv", ["cosmic-tl", command[0], str(out), *command[1:]])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and f"is in use by process {other.pid}" in said and "Traceback" not in said
    assert contents(out) == before


def test_a_lock_is_held_for_one_run(tmp_path):
    prepare_directory(tmp_path, {"seed": 0})
    with locked(tmp_path, {"seed": 0}):
        pass
    with (
        pytest.raises(CosmicError, match=r"holds a run with other settings \(seed\)"),
        locked(tmp_path, {"seed": 1}),
    ):
        pytest.fail("it was entered")
    with locked(tmp_path):  # it is free again
        pass


def test_what_a_stop_before_the_settings_leaves_counts_as_empty(tmp_path):
    with locked(tmp_path):
        pass
    (tmp_path / "settings.json.new").write_text("{")
    (tmp_path / "settings.json.new.part").write_text("{")
    prepare_directory(tmp_path, {"seed": 0})
    assert read_settings(tmp_path) == {"seed": 0}
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "resume"}
    for name in ("notes.txt", "resume/notes.txt"):
        mine = tmp_path / f"mine-{name[:3]}" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(CosmicError, match="is not empty and holds no run"):
                prepare_directory(tmp_path / f"mine-{name[:3]}", {"seed": 0}, overwrite)
        assert mine.read_text() == "mine"


@contextmanager
def full_disk():
    """No file of this process can grow, as on a full disk; not even the one that pytest may write to, so only briefly."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_run_that_another_process_finished_meanwhile_is_left_as_it_is(demo, prompts, tmp_path, monkeypatch):
    run(demo, prompts, tmp_path, SETTINGS)
    before = contents(tmp_path)
    look, looks = job._finished, []

    def late(out):
        """Not finished yet at the first look, before the lock."""
        looks.append(out)
        return look(out) if len(looks) > 1 else None

    monkeypatch.setattr(job, "_finished", late)
    assert run(demo, prompts, tmp_path, SETTINGS).was_complete and len(looks) == 2
    assert contents(tmp_path) == before


def test_a_full_disk_loses_nothing(tmp_path):
    prepare_directory(tmp_path, {"seed": 0})
    (tmp_path / "summary.json").write_text("{}")
    append_lines(tmp_path / "log.jsonl", [{"a": 1}])
    before = contents(tmp_path)
    with full_disk():
        with pytest.raises(
            CosmicError, match=r"file: cannot write .*settings\.json\.new' \(File too large\); make room or"
        ):
            prepare_directory(tmp_path, {"seed": 1}, overwrite=True)
        with pytest.raises(CosmicError, match=r"file: cannot write .*log\.jsonl"):
            append_lines(tmp_path / "log.jsonl", [{"a": 2}])
        with pytest.raises(CosmicError, match=r"file: cannot write .*summary\.json"):
            write_atomically(tmp_path / "summary.json", "{1}")
    assert contents(tmp_path) == before
    assert read_settings(tmp_path) == {"seed": 0} and read_lines(tmp_path / "log.jsonl", dict) == [{"a": 1}]


def test_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / "a.txt").symlink_to(victim)
    (tmp_path / "a.txt.part").symlink_to(victim)
    write_atomically(tmp_path / "a.txt", "new")
    assert victim.read_text() == "mine" and (tmp_path / "a.txt").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "victim.txt"}


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.txt", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(
        CosmicError, match=r"cannot write .*a\.txt' \(No such file or directory\); make the folder first"
    ):
        write_atomically(tmp_path / "no" / "a.txt", "new")
