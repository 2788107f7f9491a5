"""Names of a run's files, and its settings; imports nothing heavy."""

import json
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import settings_file
from cosmic_tl.errors import CosmicError

FORMAT = 2
"""Of a run's files; 1 was that of cosmic_tl 0.1."""
CHOICE = "selection.safetensors"
COMING = "settings.json.new"
"""Settings of a run that is about to replace another."""
RESULTS = ("summary.json", "direction.safetensors", CHOICE, "scores.csv", "completions.jsonl", "report.html")
"""What `run` writes at its end, beside `settings.json`; `summary.json` is written last and removed first."""
RESUME_FILES = (
    "activations.safetensors",
    "scores.jsonl",
    "products.jsonl",
    "completions.jsonl",
    "placebos.jsonl",
    "sizes.jsonl",
    "null-choice.jsonl",
    "null.jsonl",
    "causal.jsonl",
)
"""Those of `run`; the other commands' begin with their name."""
DERIVED = {
    "sweep": ("sweep.csv", "sweep.html"),
    "causal": ("causal.csv", "causal.html"),
    "follow": ("conversation.csv", "conversation.html"),
    "calibrate": ("calibration.csv", "calibration.html"),
    "suffix": (
        "suffix.json",
        *(f"suffix-{name}.csv" for name in ("rates", "cosines", "contributions", "attention")),
        "suffix.html",
    ),
    "judge": ("judgements.jsonl",),
}
"""What other commands write into a finished run, by command."""
RECORD = "derived.json"
"""What each of them was made from, by command."""
JUDGE_CACHE = "judge-cache.jsonl"
LOCK = "lock"
"""File in it that the command which writes into the run holds."""


def read_settings(out: Path) -> dict[str, Any]:
    """The settings of the run in a directory.

    Raises:
        CosmicError: If there is no run, or its settings cannot be read.

    Example:
        >>> read_settings(Path("nowhere"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: run: 'nowhere' holds no run; give a directory that `cosmic-tl run` wrote
    """
    path = settings_file(out)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise CosmicError(f"run: settings.json in {str(out)!r} is damaged; run again with --overwrite")
    if (form := found.pop("format", 1)) != FORMAT:
        raise CosmicError(
            f"run: {str(out)!r} has format {form!r}, and this version reads format {FORMAT}; run again with --overwrite"
        )
    return found
