"""How much memory the process takes, as far as the system tells."""

from pathlib import Path

import torch

from cosmic_tl.model.load import TransformerBridge

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class NotPossible(Exception):
    """Why a check cannot be made on this model."""


class Memory:
    """Peak memory beyond what the loaded model holds."""

    def __init__(self, model: TransformerBridge) -> None:
        self.device = torch.device(str(model.cfg.device))
        self.start = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else resident()
        self.peak = PeakMemory()

    def extra(self) -> float:
        """In GB; for a CPU an upper bound where the system cannot begin the count of the peak anew."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / 1e9
        most = self.peak.memory_gb()
        return (peak() / 1e9 if most is None else most) - self.start / 1e9


class PeakMemory:
    """The most memory that the process holds from now on, the model included."""

    def __init__(self) -> None:
        self.cleared = False
        try:
            _CLEAR.write_text("5")  # begins the count of the peak anew
            self.cleared = _STATUS.exists()
        except OSError:  # another system, or not permitted
            pass
        self.devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
        for device in self.devices:
            torch.cuda.reset_peak_memory_stats(device)

    def memory_gb(self) -> float | None:
        """Memory of the process, without that of GPUs, in GB. Where the system cannot begin anew, the most since the process
        began, which is an upper bound; None where it says nothing.

        Example:
            >>> PeakMemory().memory_gb() > 0
            True
        """
        if self.cleared:
            lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
            if "VmHWM" in lines:
                return int(lines["VmHWM"].split()[0]) * 1024 / 1e9
        try:
            return peak() / 1e9
        except NotPossible:
            return None

    def gpu_gb(self) -> float | None:
        """Memory that torch had allocated on all GPUs, in GB; None without any.

        Example:
            >>> PeakMemory().gpu_gb() is None or torch.cuda.is_available()
            True
        """
        return sum(torch.cuda.max_memory_allocated(one) for one in self.devices) / 1e9 if self.devices else None


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
