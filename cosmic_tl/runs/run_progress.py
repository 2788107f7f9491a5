"""How far a run is, from its files alone; imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cosmic_tl._util.files import RESUME, read_lines
from cosmic_tl.runs.lock_file import holder, is_held
from cosmic_tl.runs.piece_table import read_pieces
from cosmic_tl.runs.run_files import LOCK, RESULTS, RESUME_FILES, read_settings


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a run is."""

    is_complete: bool
    """Whether all of its results are there."""
    is_running: bool
    """Whether a process works in its directory now."""
    said: str
    """In one sentence."""
    pieces: pd.DataFrame
    """Stage, piece, state, worker, tries and seconds of what workers share; empty without workers, and after the run."""


def read_progress(out: Path) -> Progress:
    """How far the run in a directory is; changes nothing there.

    Args:
        out: The directory.

    Raises:
        CosmicError: If there is no run, or its files are damaged.

    Example:
        >>> read_progress(Path("nowhere"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: run: 'nowhere' holds no run; give a directory that `cosmic-tl run` wrote
    """
    read_settings(out)
    pieces, path = read_pieces(out), out / RESUME / LOCK
    who = holder(path)  # before the lock is tried, which may empty the file
    working = is_held(path)
    if all((out / name).exists() for name in RESULTS):
        return Progress(True, working, "The run is complete.", pieces)
    scores, answers = (len(read_lines(out / RESUME / RESUME_FILES[number], dict)) for number in (1, 3))
    far = f"{scores} numbers of candidates and {answers} conditions are done"
    if not working:
        pieces = pieces[pieces.state == "done"]
        return Progress(False, False, f"The run was stopped: {far}. The same command goes on from there.", pieces)
    if len(pieces):
        counts = pieces.state.value_counts()
        far += "; of the pieces so far, " + ", ".join(f"{n} {state}" for state, n in counts.items())
    return Progress(False, True, f"Under way by {who}: {far}.", pieces)
