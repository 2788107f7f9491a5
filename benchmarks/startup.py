"""How long the command line takes to answer, and what importing the library adds to importing TransformerLens.

python -m benchmarks.startup
"""

import subprocess
import sys
from statistics import median

from benchmarks.shapes import seconds

IMPORT_ALL = "import cosmic_tl; [getattr(cosmic_tl, name) for name in cosmic_tl.__all__]"


def _time(*command: str, rounds: int = 5) -> float:
    return median(
        seconds(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True))
        for _ in range(rounds)
    )


def measure() -> dict[str, float]:
    lens = _time("-c", "from transformer_lens.model_bridge import TransformerBridge")
    return {
        "cosmic-tl --help, seconds": _time("-m", "cosmic_tl.cli", "--help"),
        "import cosmic_tl, seconds": _time("-c", "import cosmic_tl"),
        "every public name, minus the import of TransformerBridge, seconds": _time("-c", IMPORT_ALL) - lens,
    }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name}: {value:.3f}")
