"""Kills workers, and the process that has them, at random moments, and compares what is left with an undisturbed run.

    python tests/reliability/worker_kills.py --workers 30 --drivers 10

The last line is a JSON object; the exit code is 1 if a trial failed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
import torch
from kills import contents

from cosmic_tl import CosmicOptions, RunSettings, load_model, load_prompts, run
from cosmic_tl.backends.ray_backend import RayBackend

SETTINGS = RunSettings(
    CosmicOptions(n_train=72, n_val=16, n_positions=2, max_kl=10.0), n_test=8, max_new_tokens=8, n_placebos=1
)
COMMAND = (
    "run demo --device cpu --n-train 72 --n-val 16 --positions 2 --max-kl 10 --n-test 8 --max-new-tokens 8 --placebos 1 "
    "--ray auto --workers 2 --cpus-per-worker 1 --out run"
)


def kill_some_worker(backend: RayBackend, after: float) -> None:
    """One that has loaded its model by then."""
    time.sleep(after)
    if names := [backend._names[one] for one in backend._workers if one in backend._names]:
        process = int(random.choice(names).rpartition(":")[2])
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # killed in an earlier trial, and not back yet
            print("  (it was gone already)", flush=True)


def same(folder: Path, expected: dict[str, bytes], what: str) -> bool:
    found = contents(folder)
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    print(f"{what}: {'identical' if not differing else 'differs in ' + ', '.join(differing)}", flush=True)
    return not differing


def worker_trials(n: int, where: Path, expected: dict[str, bytes], model, prompts) -> int:
    good = 0
    with RayBackend("demo", workers=2, device="cpu", cpus_per_worker=1) as backend:
        run(model, prompts, where / "warm", SETTINGS, backend=backend)
        started = time.perf_counter()
        run(model, prompts, where / "timed", SETTINGS, backend=backend)
        seconds = time.perf_counter() - started
        same(where / "timed", expected, f"undisturbed, {seconds:.1f} s")
        for number in range(n):
            after = random.uniform(0, seconds)
            killer = threading.Thread(target=kill_some_worker, args=(backend, after))
            killer.start()
            run(model, prompts, where / f"worker-{number}", SETTINGS, backend=backend)
            killer.join()
            good += same(where / f"worker-{number}", expected, f"worker killed after {after:.1f} s")
    return good


def driver_trials(n: int, where: Path) -> int:
    good = 0
    command = [sys.executable, "-m", "cosmic_tl.cli", *COMMAND.split()]
    (where / "undisturbed").mkdir()
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=where / "undisturbed")
    seconds = time.perf_counter() - started
    expected = contents(where / "undisturbed" / "run")
    print(f"undisturbed command, {seconds:.1f} s", flush=True)
    for number in range(n):
        here, after = where / f"driver-{number}", random.uniform(seconds / 4, seconds)
        here.mkdir()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=here)
        time.sleep(after)
        process.kill()
        process.wait()
        again = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
        if again.returncode:
            print(f"driver killed after {after:.1f} s: exit code {again.returncode}, {again.stderr[-300:]}", flush=True)
        else:
            good += same(here / "run", expected, f"driver killed after {after:.1f} s")
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=30, help="kills of workers")
    parser.add_argument("--drivers", type=int, default=10, help="kills of the process that has them")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        run(model, prompts, where / "alone", SETTINGS)
        expected = contents(where / "alone")
        found = {
            "workers": f"{worker_trials(asked.workers, where, expected, model, prompts)} of {asked.workers}",
            "drivers": f"{driver_trials(asked.drivers, where)} of {asked.drivers}",
        }
    print(json.dumps(found))
    return int(any(len(set(text.split(" of "))) > 1 for text in found.values()))


if __name__ == "__main__":
    sys.exit(main())
