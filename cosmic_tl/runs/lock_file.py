"""Who holds the lock of a run's directory; imports nothing heavy."""

import json
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout


def holder(path: Path) -> str:
    """Who wrote a lock file, as far as it can be read.

    Example:
        >>> holder(Path("nowhere"))
        'another process'
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(found['process'])} on {found['host']!r}"
    return "another process"


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file now; holds it for a moment itself.

    Example:
        >>> is_held(Path("nowhere"))
        False
    """
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
