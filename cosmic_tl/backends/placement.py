"""How much of what Ray has each worker gets, so that there is a place for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cosmic_tl.errors import CosmicError

Machine = Mapping[str, float]
"""What one machine has, in Ray's units: CPU, GPU, and memory in bytes."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Share:
    """What one worker gets."""

    cpus: int
    gpus: float
    memory: float
    """GiB."""

    def places(self, machines: Sequence[Machine]) -> int:
        """How many workers have room.

        Example:
            >>> Share(cpus=5, gpus=0, memory=0).places([{"CPU": 8}, {"CPU": 8}])
            2
        """
        needed = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory * 2**30}
        return sum(
            min(int(one.get(name, 0.0) / each + ROUNDING) for name, each in needed.items() if each) for one in machines
        )

    def __str__(self) -> str:
        gpus, memory = (f", {n:g} {what}" * bool(n) for n, what in ((self.gpus, "GPUs"), (self.memory, "GiB")))
        return f"{self.cpus} CPUs{gpus}{memory}"


def share_of(
    machines: Sequence[Machine],
    workers: int,
    cpus: int | None = None,
    gpus: float | None = None,
    memory: float | None = None,
) -> Share:
    """What each worker gets: all GPUs and then all CPUs are shared, as far as every worker still has room on one machine.

    Args:
        machines: What each of them has.
        workers: How many.
        cpus: CPUs of each, if given.
        gpus: GPUs of each, if given; less than 1 for a share of one.
        memory: GiB of each. Default none is reserved.

    Raises:
        CosmicError: If there is not enough room for all.

    Example:
        >>> share_of([{"CPU": 4}, {"CPU": 64, "GPU": 2}], workers=2)
        Share(cpus=32, gpus=1.0, memory=0.0)
        >>> share_of([{"CPU": 8}, {"CPU": 8}], workers=3).cpus
        4
    """

    def most(name: str) -> int:
        return int(max((one.get(name, 0.0) for one in machines), default=0.0))

    if gpus is not None:
        of_gpus = [gpus]
    elif n := most("GPU"):
        # Ray takes no fractions above 1; two digits of those below it are enough.
        of_gpus = [*map(float, range(n, 0, -1)), *(int(100 / k) / 100 for k in range(2, workers + 1))]
    else:
        of_gpus = [0.0]
    of_cpus = range(max(1, most("CPU")), 0, -1) if cpus is None else [cpus]
    tried = [Share(some, each, memory or 0.0) for each in of_gpus for some in of_cpus]
    for one in tried:
        if one.places(machines) >= workers:
            return one
    there = "; ".join(
        str(Share(int(m.get("CPU", 0.0)), m.get("GPU", 0.0), int(m.get("memory", 0.0) / 2**30))) for m in machines
    )
    raise CosmicError(
        f"workers: Ray has room for {tried[-1].places(machines)} of {workers} with {tried[-1]} each (its machines have {there}); "
        "ask for fewer workers or less for each"
    )
