"""Files that a stop in mid-write does not spoil."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cosmic_tl.errors import CosmicError, first_line

RESUME = "resume"
"""Subdirectory with what stopped commands had finished."""

T = TypeVar("T")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, text or bytes, whole or not at all; once this returns, not even a power cut loses it.

    The file has the permissions of any new file. A link at its place is replaced and not followed.

    Raises:
        CosmicError: If it cannot be written. An earlier file is then as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", "done")
        ...     (Path(folder) / "a.txt").read_text()
        'done'
    """
    part = path.with_name(path.name + ".part")
    with writing(path):
        part.unlink(missing_ok=True)  # a killed process left it
        try:
            with part.open("xb") as file:  # x: a new file, and never where a link leads to
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        with suppress(OSError):  # not every system can do this with a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that a file or folder cannot be written, and why: the disk is full, say.

    Raises:
        CosmicError: In place of an `OSError`.

    Example:
        >>> with writing(Path("nowhere/a.txt")):
        ...     _ = Path("nowhere/a.txt").write_text("done")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: file: cannot write 'nowhere/a.txt' (No such file or directory); make the folder ...
    """
    try:
        yield
    except OSError as error:
        todo = "make the folder first" if isinstance(error, FileNotFoundError) else "make room or give another place"
        raise CosmicError(f"file: cannot write {str(path)!r} ({error.strerror or error}); {todo}") from error


def remove_file(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        CosmicError: If it cannot be removed.

    Example:
        >>> remove_file(Path("nowhere/a.txt"))
    """
    with writing(path):
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those that it is in, unless it is there.

    Raises:
        CosmicError: If it cannot be made.

    Example:
        >>> make_folder(Path("."))
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def is_missing_path(name: str, suffixes: tuple[str, ...] = ()) -> bool:
    """Whether this can only be a path, and nothing is there; a hub id has no suffix of a file and at most one slash.

    Args:
        name: A path, or the name of something on the Hugging Face hub.
        suffixes: Endings that only files have.

    Example:
        >>> is_missing_path("no/such/folder"), is_missing_path("no-such.txt", (".txt",)), is_missing_path("Qwen/Qwen3-8B")
        (True, True, False)
    """
    path = Path(name)
    looks_like_one = name.startswith((".", "~", "/")) or len(path.parts) > 2 or path.suffix in suffixes
    return looks_like_one and not path.exists()


def settings_file(run: Path) -> Path:
    """The settings of the run in a directory.

    Raises:
        CosmicError: If there is no run.

    Example:
        >>> settings_file(Path("nowhere"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: run: 'nowhere' holds no run; give a directory that `cosmic-tl run` wrote
    """
    if not (path := run / "settings.json").is_file():
        raise CosmicError(f"run: {str(run)!r} holds no run; give a directory that `cosmic-tl run` wrote")
    return path


def read_lines(path: Path, take: Callable[[dict[str, Any]], T]) -> list[T]:
    """Rows of a JSONL file that is appended to, without a last line that was cut short by a stop; none if there is no file.

    Args:
        path: The file.
        take: What to make of a row; it raises `KeyError`, `TypeError` or `ValueError` for one that was not written here.

    Raises:
        CosmicError: If another line is no JSON object or no row of ours; it says which.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.jsonl"
        ...     _ = path.write_text('{"a": 1}\\n{"a": ')
        ...     read_lines(path, dict)
        [{'a': 1}]
    """
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CosmicError(f"file: cannot read {str(path)!r} ({error.strerror}); make it readable") from error
    *lines, last = whole.split(b"\n")
    if _row(last) is not None:
        lines.append(last)
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            if (row := _row(line)) is None:
                raise CosmicError(f"file: line {number} of {str(path)!r} is no JSON object; delete it")
            try:
                rows.append(take(row))
            except (KeyError, TypeError, ValueError) as error:
                raise CosmicError(
                    f"file: line {number} of {str(path)!r} was not written here ({first_line(error)}); delete it"
                ) from error
    return rows


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a JSONL file, on lines of their own; a last line that was cut short by a stop is replaced.

    Raises:
        CosmicError: If they cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_lines(Path(folder) / "a.jsonl", [{"a": 1}, {"a": 2}])
        ...     read_lines(Path(folder) / "a.jsonl", dict)
        [{'a': 1}, {'a': 2}]
    """
    with writing(path), path.open("a+b") as file:
        if not _ends_in_newline(file):
            file.seek(0)
            whole = file.read()
            start = whole.rfind(b"\n") + 1
            if _row(whole[start:]) is not None:
                file.write(b"\n")
            else:
                file.truncate(start)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def _ends_in_newline(file: BinaryIO) -> bool:
    """Or is empty."""
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def _row(line: bytes) -> dict[str, Any] | None:
    """A line's row, if it is a whole one: the beginning of a JSON object is no JSON."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def check_resume(folder: Path) -> None:
    """Make sure that a directory, if it is there, holds nothing but what stopped commands had finished.

    Raises:
        CosmicError: If it is a file, or holds anything else.

    Example:
        >>> check_resume(Path("pyproject.toml"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: resume: 'pyproject.toml' is a file; give a directory
    """
    if folder.exists() and not folder.is_dir():
        raise CosmicError(f"resume: {str(folder)!r} is a file; give a directory")
    if folder.is_dir() and any(path.name != RESUME for path in folder.iterdir()):
        raise CosmicError(f"resume: {str(folder)!r} holds something else; give a directory of its own")
