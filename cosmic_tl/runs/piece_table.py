"""Where each piece of a run's work is, while copies of the model share it; imports nothing heavy."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from cosmic_tl._util.files import RESUME

PIECES = "pieces"
"""Folder under `resume/`; gone once the run is complete."""
TABLE = "table.json"
COLUMNS = ["stage", "piece", "state", "worker", "tries", "seconds"]


def remove_pieces(out: Path) -> None:
    """Remove what is kept of a run's pieces, once all results are in its own files or none of them can be used.

    Example:
        >>> remove_pieces(Path("nowhere"))
    """
    shutil.rmtree(out / RESUME / PIECES, ignore_errors=True)


def read_pieces(out: Path) -> pd.DataFrame:
    """The pieces of the run in a directory that have been cut so far: stage, piece, state, worker, tries and seconds.

    Example:
        >>> read_pieces(Path("nowhere")).columns.tolist()
        ['stage', 'piece', 'state', 'worker', 'tries', 'seconds']
    """
    rows: Any = []
    with suppress(OSError, ValueError):  # none, or it is damaged, and nothing depends on it
        rows = json.loads((out / RESUME / PIECES / TABLE).read_text(encoding="utf-8"))
    if not isinstance(rows, list) or any(not isinstance(row, dict) or set(row) != set(COLUMNS) for row in rows):
        rows = []
    return pd.DataFrame(rows, columns=COLUMNS)
