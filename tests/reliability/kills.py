"""Stops commands at bad moments, starts them again, and compares what they leave with what an undisturbed one leaves.

    python tests/reliability/kills.py --random 100            # kill -9, SIGTERM and Ctrl-C at random moments
    python tests/reliability/kills.py --operations 3          # at every third file operation: kill -9, disk full
    python tests/reliability/kills.py --writes 20             # no room in the middle of a write
    python tests/reliability/kills.py --together 5            # two at once in one directory

It imports and loads once, and forks for every trial. The last line is a JSON object; the exit code is 1 if a trial failed.
"""

import argparse
import csv
import errno
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any, NoReturn

RUN = "run demo --n-train 8 --n-val 4 --positions 1 --max-kl 50 --n-test 2 --max-new-tokens 4 --placebos 1 --out run"
OPTIONS = {
    "run": RUN,
    "run, linear": f"{RUN} --mode linear",
    "run, refusal tokens": f"{RUN} --select refusal-tokens --min-induce -50",
    "run, generators": f"{RUN} --directions dim,pca",
    "sweep": "sweep run --n-test 2 --max-new-tokens 4 --alphas 0,1",
    "suffix": "suffix run --steps 15 --n-candidates 32 --n-tokens 8 --n-prompts 1 --n-test 2 --max-new-tokens 8",
    "calibrate": "calibrate run --n-test 2 --max-new-tokens 4 --alphas 0.5",
    "causal": "causal run --n-test 2 --positions 1 --part mlp",
    "follow": "follow run --max-new-tokens 4",
    "judge": "judge run",
    "evaluate": "evaluate demo demo-weak --device cpu --n-test 2 --max-new-tokens 4 --out run",
    "study": "study study.yaml --out run",
    "sensitivity": "sensitivity demo --device cpu --n-train 8 --n-val 4 --positions 1 --max-kl 50 --resume run",
    "variants": "variants demo --device cpu --n-train 8 --n-val 4 --positions 1 --max-kl 50 --resume run",
}
STUDY = """
name: small
models: [{name: demo, model: demo, device: cpu}]
prompts: [{name: demo, source: demo}]
settings:
  - name: affine
    selection: {n_train: 8, n_val: 4, n_positions: 1, max_kl: 50.0}
    n_test: 2
    max_new_tokens: 4
    n_placebos: 1
"""
MEASURED = ("seconds", "memory_gb", "gpu_gb")
"""What is not the same twice."""
LATE = ("beartype.door", "plotly.graph_objects", "rich.live", "rich.progress", "rich.table", "scipy.stats")
"""What the commands import on the way."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Fault = Callable[[], None]
LONGEST = 600
"""Seconds that a command may take."""
REACHED = "reached"
"""A file beside the run that says that a file operation was reached."""


def warm() -> None:
    """Import what the commands import, once for all trials."""
    import torch

    torch.set_num_threads(1)  # a fork has no other threads
    import cosmic_tl.cli
    import cosmic_tl.report.experiment_pages
    import cosmic_tl.runs.job
    import cosmic_tl.suffixes.search  # noqa: F401
    from cosmic_tl import load_model

    for name in LATE:
        import_module(name)
    load_model("demo", device="cpu")


def start(command: str, where: Path, fault: Fault | None = None, at: int = 0) -> int:
    """The process of a command, in a directory; `fault` happens in its `at`-th file operation, or first of all."""
    sys.stdout.flush()
    reads, writes = os.pipe()  # and no file, which might have no room either
    if process := os.fork():
        os.close(writes)
        _said[process] = reads, where / "log.txt"
        return process
    os.close(reads)
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 2**20)  # all that it says
    _work(command, where, writes, fault, at)


_said: dict[int, tuple[int, Path]] = {}
"""What each process says, and where that goes once it has ended."""


def _work(command: str, where: Path, log: int, fault: Fault | None, at: int) -> NoReturn:
    import torch
    import tqdm.auto

    torch.set_num_threads(1)  # replaces the parent's pool of threads, before several threads want to at once
    for bar in (tqdm.tqdm, tqdm.auto.tqdm):  # forks share their lock, and one that is killed never gives it back
        bar.set_lock(RLock())
    signal.alarm(LONGEST)  # ends a trial that hangs, as a failure
    code = 1
    try:
        os.chdir(where)
        for place in (1, 2):
            os.dup2(log, place)
        sys.stdout, sys.stderr = (open(place, "w", buffering=1, closefd=False) for place in (1, 2))  # noqa: SIM115
        sys.argv = ["cosmic-tl", *OPTIONS[command].split()]
        if fault is not None and at:
            _count_operations(where / "run", fault, at)
        elif fault is not None:
            fault()
        from cosmic_tl import cli

        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _count_operations(folder: Path, fault: Fault, at: int) -> None:
    """Let a fault happen before the `at`-th operation that changes something in a folder."""
    left = at

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate") or (
            event == "open" and isinstance(args[2], int) and args[2] & WRITING
        )
        if changes and isinstance(args[0], str | os.PathLike) and folder in Path(args[0]).absolute().parents:
            left -= 1
            if left == 0:
                folder.with_name(REACHED).touch()
                fault()

    sys.addaudithook(hook)


def kill() -> None:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    """As a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ended(process: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    reads, log = _said.pop(process)
    with open(reads, "rb") as said, log.open("ab") as file:
        file.write(said.read())
    return code


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run or a study, without the time and memory that it took and the holders of its locks."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name in ("lock", "study.html"):  # the page draws time and memory; its tables are here
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            data = re.sub(rb'"(%s)": [\d.]+' % "|".join(MEASURED).encode(), rb'"\1": 0', data)
        if path.suffix == ".html":
            data = re.sub(rb"\b[\d.]+ s\b", b"0 s", data)
        if path.name == "selections.csv":
            rows = list(csv.DictReader(data.decode().splitlines()))
            data = json.dumps([{key: row[key] for key in row if key not in MEASURED} for row in rows]).encode()
        found[str(path.relative_to(folder))] = data
    return found


class Trials:
    """Trials of one command, from one beginning, against one undisturbed result."""

    def __init__(self, command: str, base: Path | None, scratch: Path) -> None:
        self.command, self.base, self.scratch, self.number = command, base, scratch, 0
        self.failures: list[str] = []
        self.refused = [2, 1] if command == "study" else [2]
        """Exit codes when there is no room; a study in which one run fails goes on with the others."""
        began = time.monotonic()
        where = self.fresh()
        if code := ended(start(command, where)):
            raise SystemExit(f"{command} does not work undisturbed: {code}\n{(where / 'log.txt').read_text()}")
        self.seconds = time.monotonic() - began
        self.folder = where / "run"
        self.expected = contents(self.folder)

    def fresh(self) -> Path:
        """A directory in which the command can start."""
        self.number += 1
        where = self.scratch / f"{self.command}-{self.number}"
        where.mkdir()
        (where / "study.yaml").write_text(STUDY)
        if self.base is not None:
            shutil.copytree(self.base, where / "run")
        return where

    def finish(self, where: Path, what: str) -> None:
        """Give the command again, undisturbed, and compare."""
        if code := ended(start(self.command, where)):
            self.failures.append(f"{what}: then exit code {code}\n{(where / 'log.txt').read_text()[-2000:]}")
        else:
            found = contents(where / "run")
            if differing := [n for n in found.keys() | self.expected.keys() if found.get(n) != self.expected.get(n)]:
                self.failures.append(f"{what}: {', '.join(sorted(differing))} differ")
        if "Traceback" in (log := (where / "log.txt").read_text()):
            self.failures.append(f"{what}: a traceback\n{log[-2000:]}")
        shutil.rmtree(where)

    def at_random(self, rng: random.Random) -> None:
        """One to three stops in a row, each at a random moment."""
        where, said = self.fresh(), []
        for _ in range(rng.choice([1, 1, 2, 3])):
            how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            after = rng.uniform(0, self.seconds)
            process = start(self.command, where)
            time.sleep(after)
            os.kill(process, how)
            said.append(f"{how.name} after {after:.2f} s of {self.seconds:.2f} s ({ended(process)})")
        self.finish(where, f"{self.command}, {', '.join(said)}")

    def at_operations(self, every: int) -> int:
        """At every so-manieth file operation, a kill and a full disk in turn; the number of trials."""
        at, n = 1, 0
        while True:
            fault, codes = (kill, [-signal.SIGKILL]) if n % 2 == 0 else (full, self.refused)
            where = self.fresh()
            found = ended(start(self.command, where, fault, at))
            if not (where / REACHED).exists():  # it has fewer operations
                shutil.rmtree(where)
                return n
            what = f"{self.command}, {fault.__name__} at file operation {at}"
            done = found == 0 and contents(where / "run") == self.expected  # what it can do without may fail
            if not done and found not in codes:
                self.failures.append(f"{what}: exit code {found}\n{(where / 'log.txt').read_text()[-2000:]}")
            self.finish(where, what)
            at, n = at + every, n + 1

    def at_writes(self, rng: random.Random) -> None:
        """No file can grow beyond a random size, so that a write gets as far as that and no further."""
        before = {} if self.base is None else contents(self.base)
        written = [data for name, data in self.expected.items() if before.get(name) != data]
        size = int(len(rng.choice(written)) * rng.random())

        def little_room() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # Python ignores the signal

        where, what = self.fresh(), f"{self.command}, no room beyond {size} bytes"
        if (code := ended(start(self.command, where, little_room))) not in self.refused:
            self.failures.append(f"{what}: exit code {code}\n{(where / 'log.txt').read_text()[-2000:]}")
        self.finish(where, what)

    def together(self, rng: random.Random) -> None:
        """Two at once: one works, and the other does too once it is done, or is refused."""
        where = self.fresh()
        first = start(self.command, where)
        time.sleep(rng.uniform(0, self.seconds / 2))
        codes = ended(start(self.command, where)), ended(first)
        if 0 not in codes or not set(codes) <= {0, 2}:
            self.failures.append(f"{self.command}, two at once: exit codes {codes}")
        self.finish(where, f"{self.command}, two at once")


def main() -> None:
    """Run the trials that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--commands", nargs="*", default=list(OPTIONS), choices=list(OPTIONS), help="which; default all"
    )
    parser.add_argument("--random", type=int, default=0, help="trials per command with stops at random moments")
    parser.add_argument("--operations", type=int, default=0, help="a stop at every so-manieth file operation")
    parser.add_argument("--writes", type=int, default=0, help="trials per command in which a write finds no room")
    parser.add_argument("--together", type=int, default=0, help="trials per command of two at once")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    asked = parser.parse_args()
    warm()
    done, failures = {}, []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        run = Trials("run", None, Path(folder))
        shutil.copytree(run.folder, base)
        for command in asked.commands:
            begins = base if OPTIONS[command].split()[1] == "run" else None  # which has to be there
            trials = run if command == "run" else Trials(command, begins, Path(folder))
            rng = random.Random(f"{command} {asked.seed}")
            for _ in range(asked.random):
                trials.at_random(rng)
            n = trials.at_operations(asked.operations) if asked.operations else 0
            for _ in range(asked.writes):
                trials.at_writes(rng)
            for _ in range(asked.together):
                trials.together(rng)
            done[command] = {
                "random": asked.random,
                "operations": n,
                "writes": asked.writes,
                "together": asked.together,
                "failed": len(trials.failures),
            }
            failures += trials.failures
            print(f"{command}: {done[command]}, {trials.seconds:.1f} s undisturbed", flush=True)
    for failure in failures:
        print(failure)
    print(json.dumps(done))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
