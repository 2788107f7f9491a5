"""The most memory that a run takes, as far as the system tells."""

from pathlib import Path

import torch

from cosmic_tl.check.memory import NotPossible, peak

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


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
