"""Copies of a model in Ray actors, on one machine or on a cluster."""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import remark
from cosmic_tl._util.spreading import Piece
from cosmic_tl._util.versions import versions
from cosmic_tl.backends.placement import share_of
from cosmic_tl.backends.worker import Worker
from cosmic_tl.errors import CosmicError, check_count, first_line
from cosmic_tl.model.paths import DEMOS

TRIES = 3
"""How often a piece is handed out before a run gives up on it."""
PATIENCE = 60.0
"""Seconds after which one says that a worker is not there yet."""
Change = Callable[[int, str, str], object]
"""Takes a piece's number, its state ("waiting", "running" or "done") and the worker's name."""


@dataclass(frozen=True)
class _Ready:
    """What a worker says once it has loaded its model."""

    model: tuple[str, ...]
    """From `as_loaded`."""
    name: str
    """Its machine and process."""
    versions: Mapping[str, str]
    """Of the packages that results depend on."""


@checked
class RayBackend:
    """Copies of a model in Ray actors, for `run(…, backend=…)`.

    Extraction, score passes and completions are spread; the process that holds this object does everything else with its own
    model, and alone writes files. A worker that dies is replaced, on whatever machine has room, and its piece is done again.

    Args:
        model: As for `load_model`, which every worker calls with it.
        workers: How many.
        address: Of a running Ray cluster, as for `ray.init`: "auto", "host:port" or "ray://host:port". By default Ray is
            started on this machine, and stopped at the end.
        cpus_per_worker: CPUs, which are also its threads. By default workers share all that Ray has.
        gpus_per_worker: GPUs; less than 1 for a share of one. By default workers share all that Ray has.
        memory_per_worker: Memory in GiB, which Ray then reserves. By default none is reserved.
        **load: Further arguments of `load_model`. With a `device_map`, one copy takes all of its worker's GPUs.

    Raises:
        CosmicError: If Ray is not installed or cannot be reached, or has not enough room.

    Example:
        >>> RayBackend("demo", workers=0)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: workers: must be at least 1, found 0
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        workers: int = 2,
        address: str | None = None,
        cpus_per_worker: int | None = None,
        gpus_per_worker: float | None = None,
        memory_per_worker: float | None = None,
        **load: Any,
    ) -> None:
        check_count("workers", workers)
        check_count("cpus_per_worker", cpus_per_worker)
        for name, value in (("gpus_per_worker", gpus_per_worker), ("memory_per_worker", memory_per_worker)):
            if value is not None and not 0 <= value < inf:
                raise CosmicError(f"{name}: expected a number from 0 on, found {value}; leave it out for the default")
        if find_spec("ray") is None:
            raise CosmicError("workers: the package ray is missing; pip install 'cosmic_tl[ray]'")
        self.count = workers
        self.model: tuple[str, ...] = ()
        """From `as_loaded`: the model that the workers have to have; empty for any."""
        if model not in DEMOS and Path(model).exists():
            model = str(Path(model).resolve())  # workers have another working directory
        for name in ("adapter", "offload_folder"):
            if load.get(name) and Path(load[name]).exists():
                load[name] = str(Path(load[name]).resolve())
        self._load = {"name_or_path": model, **load}
        self._asked = (address, cpus_per_worker, gpus_per_worker, memory_per_worker)
        self._own = False
        self._starting: dict[Any, Any] = {}
        """What tells that a worker is ready, and the worker."""
        self._since = inf
        """When the last of them was asked for, as long as nothing has been said of it."""
        self._idle: list[Any] = []
        self._ready: dict[Any, _Ready] = {}
        self._workers: list[Any] = []
        self._new: Callable[[], Any] | None = None
        self._lost = 0
        """Workers that died one after the other while they loaded the model."""

    def __enter__(self) -> "RayBackend":
        """Start the workers; they load the model while this process goes on."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would have its workers wait for every other process: this one's work is as urgent as without them.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        address, cpus, gpus, memory = self._asked
        if ray.is_initialized():
            if address is not None:
                raise CosmicError(
                    "ray: this process has connected already; leave the address out, or call ray.shutdown() first"
                )
        else:
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                )
            except Exception as error:  # Ray says that it did not start in time with nothing more precise
                raise CosmicError(
                    f"ray: cannot use {address or 'this machine'} ({first_line(error)}); give the address of a running "
                    "cluster, or leave it out"
                ) from error
            self._own = True
        try:
            self._create(cpus, gpus, memory)
        except BaseException:
            self.close()
            raise
        return self

    def _create(self, cpus: int | None, gpus: float | None, memory: float | None) -> None:
        import ray

        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]  # type: ignore[no-untyped-call]
        share = share_of(machines, self.count, cpus, gpus, memory)
        placed = share.gpus or self._load.get("device") or self._load.get("device_map")
        load = self._load if placed else {**self._load, "device": "cpu"}  # a GPU that Ray does not know is not taken
        reserved = {"memory": int(share.memory * 2**30)} if share.memory else {}
        actor: Any = ray.remote(Worker).options(num_cpus=share.cpus, num_gpus=share.gpus, **reserved)
        self._new = partial(actor.remote, load, share.cpus)
        for _ in range(self.count):
            self._start()

    def _start(self) -> None:
        """A new worker, which loads the model once Ray has room for it."""
        assert self._new is not None
        worker = self._new()
        self._workers.append(worker)
        self._starting[worker.ready.remote()] = worker
        self._since = time.monotonic()

    def _gone(self, worker: Any) -> None:
        """Give up a worker, whatever is left of it."""
        import ray

        with suppress(ray.exceptions.RayError):  # it may be out of reach and hold its GPU still
            ray.kill(worker)
        self._workers.remove(worker)
        self._ready.pop(worker, None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop the workers."""
        self.close()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started for them.

        Example:
            >>> RayBackend("demo", workers=1).close()  # which had not been started
        """
        if not (self._own or self._workers):
            return
        import ray

        for worker in self._workers:
            ray.kill(worker)
        self._starting, self._idle, self._workers, self._lost = {}, [], [], 0
        if self._own:
            ray.shutdown()
            self._own = False

    def map(
        self,
        stage: str,
        function: Callable[..., Any],
        shared: tuple[Any, ...],
        pieces: Sequence[Piece],
        on_change: Change = lambda number, state, worker: None,
    ) -> Iterator[tuple[int, Any]]:
        """`function(model, *shared, *piece.args)` for all pieces, in the order in which they are done.

        Args:
            stage: What is done, in a word.
            function: One of a module.
            shared: What all pieces take; sent once to each machine.
            pieces: The pieces. A worker gets its next one when the iterator goes on.
            on_change: Called when a piece is handed out, handed back or done.

        Yields:
            A piece's number and its result.

        Raises:
            CosmicError: If a worker cannot load the model or has another one, a piece cannot be finished, or its function
                raises one.

        Example:
            >>> callable(RayBackend.map)
            True
        """
        import ray

        if not self._workers:
            raise CosmicError("backend: its workers are not running; use it in `with RayBackend(…) as backend:`")
        inputs, waiting, tries = ray.put(shared), deque(range(len(pieces))), Counter[int]()
        running: dict[Any, tuple[Any, int]] = {}
        try:
            while waiting or running:
                while waiting and self._idle:
                    self._check(self._idle[-1])
                    worker, number = self._idle.pop(), waiting.popleft()
                    running[worker.work.remote(function, inputs, pieces[number].args)] = worker, number
                    on_change(number, "running", self._ready[worker].name)
                ended, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=PATIENCE)
                self._say_who_is_missing()
                if not ended:
                    continue
                (done,) = ended
                if done in self._starting:
                    self._welcome(done)
                    continue
                worker, number = running.pop(done)
                try:
                    found = ray.get(done)
                except ray.exceptions.RayTaskError as error:  # the function's own
                    self._idle.append(worker)
                    raise _cause(error) from error
                except ray.exceptions.RayError as error:
                    tries[number] += 1
                    if tries[number] == TRIES:
                        raise CosmicError(
                            f"workers: {stage}, {pieces[number].name} was lost {TRIES} times with its worker "
                            f"({first_line(error)}); is there memory enough? The same command goes on with what is missing"
                        ) from error
                    remark(f"Worker {self._ready[worker].name} died; {pieces[number].name} is done again.", always=True)
                    waiting.appendleft(number)
                    on_change(number, "waiting", "")
                    self._gone(worker)
                    self._start()
                    continue
                self._idle.append(worker)
                yield number, found
                on_change(number, "done", self._ready[worker].name)
        finally:
            for worker, _ in running.values():  # all was given up; it answers once it has finished
                self._starting[worker.ready.remote()] = worker

    def _say_who_is_missing(self) -> None:
        if self._starting and time.monotonic() - self._since > PATIENCE:
            remark(
                f"{len(self._starting)} of {self.count} workers are not there yet: they load the model, or Ray has no room for "
                "them (`ray status`).",
                always=True,
            )
            self._since = inf

    def _welcome(self, done: Any) -> None:
        """Take in a worker that is ready."""
        import ray

        worker = self._starting.pop(done)
        if not self._starting:
            self._since = inf
        try:
            found = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except ray.exceptions.RayError as error:
            self._gone(worker)
            self._lost += 1
            if self._lost < TRIES:
                self._start()
            elif self._workers:
                remark(
                    f"Workers died {TRIES} times while they loaded the model; going on with {len(self._workers)}.",
                    always=True,
                )
            else:
                raise CosmicError(
                    f"workers: all died while they loaded the model ({first_line(error)}); is there memory enough for "
                    f"{self.count} copies? Ask for fewer workers"
                ) from error
            return
        self._ready[worker] = _Ready(*found)
        self._lost = 0
        self._idle.append(worker)

    def _check(self, worker: Any) -> None:
        found, ours = self._ready[worker], versions()
        if other := [name for name in ours if found.versions.get(name) != ours[name]]:
            raise CosmicError(
                f"workers: {found.name} has {other[0]} {found.versions.get(other[0])}, and this process {ours[other[0]]}; "
                "results depend on it: install the same everywhere"
            )
        if self.model and found.model != self.model:
            raise CosmicError(
                f"workers: they loaded {self._load['name_or_path']!r} with other weights, another number format or another "
                "chat template than the model that was given; load both alike"
            )


def _cause(error: Any) -> BaseException:
    """What the function raised, without Ray's wrapping where that is possible."""
    cause = error.cause
    return cause if isinstance(cause, CosmicError) else error.as_instanceof_cause()
