"""Workers from the command line."""

import sys

import pytest

FEW = (
    *("--device", "cpu", "--n-train", "40", "--n-val", "4", "--positions", "1", "--max-kl", "50"),
    *("--n-test", "1", "--max-new-tokens", "2", "--placebos", "1"),
)


@pytest.fixture
def stages(monkeypatch):
    """What workers are asked for."""
    from cosmic_tl.backends import RayBackend

    found, whole = [], RayBackend.map

    def noted(self, stage, *args):
        found.append(stage)
        return whole(self, stage, *args)

    monkeypatch.setattr(RayBackend, "map", noted)
    return found


def test_a_run_is_shared_and_a_complete_one_is_read_without_workers(command, tmp_path, stages):
    out = tmp_path / "run"
    code, said, errors = command("run", "demo", *FEW, "--out", out, "--workers", 1)
    assert (code, errors.count("Error")) == (0, 0) and "Everything is in" in said
    assert {"activations", "scores", "completions"} == set(stages)
    assert (out / "summary.json").exists() and not (out / "resume" / "pieces").exists()
    stages.clear()
    code, said, _ = command("run", "demo", *FEW, "--out", out, "--workers", 1)
    assert code == 0 and "complete already" in said and not stages
    code, said, errors = command("judge", out, "--workers", 1)
    assert code == 2 and "workers: substring judges in this process" in errors
    assert "ray" in sys.modules and not sys.modules["ray"].is_initialized()


def test_a_ray_that_does_not_start_is_one_line(command, tmp_path, monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    code, _, errors = command("run", "demo", *FEW, "--out", tmp_path / "run", "--workers", 1)
    assert code == 2 and "ray: cannot use this machine (The current node timed out during startup.)" in errors
    assert errors.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "-1"], "workers: must be at least 1, found -1"),
        (["--ray", "auto"], "ray: found auto without workers"),
        (["--gpus-per-worker", "1"], "gpus_per_worker: found 1.0 without workers"),
        (["--workers", "1", "--memory-per-worker", "-2"], "memory_per_worker: expected a number from 0 on, found -2.0"),
        (["--workers", "1", "--cpus-per-worker", "0"], "cpus_per_worker: must be at least 1, found 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(command, tmp_path, options, said):
    code, _, errors = command("run", "demo", "--out", tmp_path / "run", *options)
    assert code == 2 and said in errors and "\n" not in errors.strip() and not (tmp_path / "run").exists()
