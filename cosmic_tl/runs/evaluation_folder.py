"""Whether a comparison of two models may be written into a folder; imports nothing heavy."""

import json
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import RESUME
from cosmic_tl.errors import CosmicError

SETTINGS = "evaluation.json"
"""What the comparison in a folder depends on; written first."""
FILES = (
    "summary.json",
    "evaluation.html",
    "evaluation.csv",
    "categories.csv",
    "weights.csv",
    "tasks.csv",
    "completions.jsonl",
    "removed.safetensors",
    "comparison.safetensors",
)
"""What a comparison found; its summary is written last and removed first."""


def check_evaluation_folder(out: Path) -> None:
    """Check that a folder is new or empty, or holds a comparison.

    Raises:
        CosmicError: If it is a file, or holds anything else.

    Example:
        >>> check_evaluation_folder(Path(__file__))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: ... is a file; give a directory
    """
    if out.exists() and not out.is_dir():
        raise CosmicError(f"out: {str(out)!r} is a file; give a directory")
    held = [path.name for path in out.iterdir()] if out.is_dir() else []
    # A stopped command leaves a lock before it has written its settings.
    if SETTINGS not in held and any(name not in (RESUME, f"{SETTINGS}.part") for name in held):
        raise CosmicError(f"out: {str(out)!r} is not empty and holds no comparison; choose another directory")
    if SETTINGS not in held and (out / RESUME).is_dir() and any(one.suffix for one in (out / RESUME).iterdir()):
        raise CosmicError(f"out: {str(out)!r} holds what another command keeps; choose another directory")


def read_evaluation(out: Path) -> dict[str, Any] | None:
    """What the comparison in a folder depends on; None if there is none.

    Raises:
        CosmicError: If the file is damaged.

    Example:
        >>> read_evaluation(Path("nowhere"))
    """
    try:
        found = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CosmicError(f"out: {str(out / SETTINGS)!r} is damaged ({error}); delete it") from error
    if not isinstance(found, dict):
        raise CosmicError(f"out: {str(out / SETTINGS)!r} is damaged; delete it")
    return found
