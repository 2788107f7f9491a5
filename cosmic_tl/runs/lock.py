"""One process at a time in a run's directory."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cosmic_tl._util.files import RESUME, writing
from cosmic_tl.errors import CosmicError
from cosmic_tl.runs.directory import check_directory
from cosmic_tl.runs.lock_file import holder
from cosmic_tl.runs.run_files import LOCK

PATIENCE = 0.5
"""Seconds: `cosmic-tl status` holds the lock for a moment to see whether anybody does."""


@contextmanager
def locked(out: Path, identity: dict[str, Any] | None = None) -> Iterator[None]:
    """Keep other processes, and other threads, from writing into a run's directory.

    The operating system frees the lock when its process ends, however it ends.

    Args:
        out: The directory; made if needed.
        identity: Of the run that it must still hold, as in `settings.json`. By default it may hold any, or none.

    Raises:
        CosmicError: If another one writes into it now, it holds another run, or it cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)), locked(Path(folder)):
        ...     pass
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: ... is in use by process ...; wait until it has ended, or choose another directory
    """
    path = out / RESUME / LOCK
    with writing(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        held_by = holder(path)
        lock = FileLock(path, timeout=PATIENCE)
        try:
            lock.acquire()
        except Timeout as error:
            raise CosmicError(
                f"out: {str(out)!r} is in use by {held_by}; wait until it has ended, or choose another directory"
            ) from error
        path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    try:
        if identity is not None:
            check_directory(out, identity)
        yield
    finally:
        lock.release()
