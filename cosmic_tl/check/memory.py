"""How much memory the checks take, as far as the system tells."""

from pathlib import Path

import torch

from cosmic_tl.model.load import TransformerBridge


class NotPossible(Exception):
    """Why a check cannot be made on this model."""


class Memory:
    """Peak memory beyond what the loaded model holds."""

    def __init__(self, model: TransformerBridge) -> None:
        self.device = torch.device(str(model.cfg.device))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            self.start = resident()

    def extra(self) -> float:
        """In GB; for a CPU an upper bound, since the peak is that of the whole process so far."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / 1e9
        return (peak() - self.start) / 1e9


def resident() -> int:
    """Bytes that the process holds now; where the system does not say, the most so far."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak()
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes that the process held."""
    import sys

    try:
        import resource
    except ImportError as error:
        raise NotPossible("this system does not say how much memory a process takes") from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
