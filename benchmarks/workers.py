"""A COSMIC selection shared by Ray workers on this machine, against the same in one process.

python -m benchmarks.workers MODEL --prompts PROMPTS

Each selection is a process of its own, timed from its start to its end: imports, the model, Ray's start and end, and the workers'
imports and models among it.

* one process with all threads;
* as many workers as there are cores, with one thread each;
* one worker with one thread;
* beside these, what the cores gain in plain matrix products, one thread each, which no number of workers can exceed;
* with `--overhead` also one worker with all threads, and one process with one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import record

Found = dict[str, list[float]]
"""The chosen candidate, and scores."""


def select(model: str, prompts: str, n_train: int, n_val: int, workers: int, threads: int, out: Path) -> None:
    """One selection; its scores go into a file."""
    from cosmic_tl.backends.ray_backend import RayBackend

    with ExitStack() as stack:
        backend = None
        if workers:  # as the command line does: they import and load while this process does
            backend = RayBackend(model, workers=workers, cpus_per_worker=threads, device="cpu")
            stack.enter_context(backend)
        import torch

        from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        from cosmic_tl.backends import shared_by

        if not workers:
            torch.set_num_threads(threads)
        bridge = load_model(model, device="cpu")
        if backend is not None:
            stack.enter_context(shared_by(backend, bridge))
        found = select_cosmic(bridge, load_prompts(prompts), CosmicOptions(n_train=n_train, n_val=n_val))
    chosen = [found.direction.layer, found.direction.position]
    scores = {name: found.table[name].tolist() for name in ("s_comply", "s_refuse")}
    out.write_text(json.dumps({"chosen": chosen, **scores}))  # all digits; NaN is NaN


def timed(asked: argparse.Namespace, workers: int, threads: int, folder: Path) -> tuple[float, Found]:
    """Seconds of one selection, and its table."""
    out = folder / f"{workers}-{threads}.json"
    # One thread per worker; the process that waits for them has all.
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "benchmarks.workers", asked.model, "--prompts", asked.prompts]
    command += [
        "--n-train",
        str(asked.n_train),
        "--n-val",
        str(asked.n_val),
        "--one",
        str(workers),
        str(threads),
        str(out),
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    print(f"{workers} workers, {threads} threads each: {seconds:.1f} s", flush=True)
    return seconds, json.loads(out.read_text())


def apart(one: Found, other: Found) -> float:
    """The largest difference between two tables' scores; infinite where another candidate is chosen."""
    if one["chosen"] != other["chosen"]:
        return float("inf")
    pairs = [pair for name in ("s_comply", "s_refuse") for pair in zip(one[name], other[name], strict=True)]
    return max(abs(a - b) for a, b in pairs if a == a)


def gain_of_cores(model: str, cores: int) -> float:
    """How much faster matrices of the model's shapes are multiplied on all cores, one thread each, than on one alone."""
    import torch

    from benchmarks.selection import matmul_rate
    from cosmic_tl import load_on_paper

    config = load_on_paper(model).original_model.config.get_text_config()
    torch.set_num_threads(1)
    rate = partial(matmul_rate, config, "cpu", torch.float32, tokens=512)
    alone = rate()
    with ThreadPoolExecutor(cores) as threads:
        return sum(one.result() for one in [threads.submit(rate) for _ in range(cores)]) / alone


def measure(asked: argparse.Namespace) -> dict[str, float]:
    """Seconds, speed-up and the largest difference between scores."""
    cores = os.cpu_count() or 1
    gain = gain_of_cores(asked.model, cores)
    print(f"{cores} cores multiply matrices {gain:.2f} times as fast as one alone", flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        plain, expected = timed(asked, 0, cores, folder)
        shared, of_all = timed(asked, cores, 1, folder)
        single, of_one = timed(asked, 1, 1, folder)
        found = {
            "cores": cores,
            "matrix products on all cores over one alone": gain,
            "validation prompts per side": asked.n_val,
            "seconds, one process with all threads": plain,
            "seconds, one worker with one thread": single,
            "seconds, as many workers as cores, one thread each": shared,
            "speed over one worker of one thread": single / shared,
            "speed over one process with all threads": plain / shared,
            "max_score_difference, same threads": apart(of_all, of_one),
            "max_score_difference, other threads": apart(of_all, expected),
        }
        if asked.overhead:
            whole, _ = timed(asked, 1, cores, folder)
            slow, of_slow = timed(asked, 0, 1, folder)
            found |= {
                "one worker over one process, all threads": whole / plain,
                "one worker over one process, one thread": single / slow,
                "max_score_difference, workers and one process of one thread": apart(of_all, of_slow),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", default="demo")
    parser.add_argument("--n-train", type=int, default=64)
    parser.add_argument("--n-val", type=int, default=32)
    parser.add_argument(
        "--overhead", action="store_true", help="also what one worker costs beside none; twice the time"
    )
    parser.add_argument("--one", nargs=3, metavar=("WORKERS", "THREADS", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        workers, threads, out = asked.one
        select(asked.model, asked.prompts, asked.n_train, asked.n_val, int(workers), int(threads), Path(out))
        return
    values = measure(asked)
    print(json.dumps(values))
    record("workers", values)


if __name__ == "__main__":
    main()
