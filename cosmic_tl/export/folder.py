"""Folders that are written whole or not at all, and whether one may be replaced; imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from cosmic_tl._util.files import writing
from cosmic_tl.errors import CosmicError

OURS = (
    "README.md",
    "*config.json",
    "chat_template.*",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.py",
)
"""What a checkpoint or an adapter consists of."""


def check_folder(name: str, folder: Path, overwrite: bool) -> None:
    """Check that a folder is new or empty, or holds a checkpoint and nothing else that is to be replaced.

    Args:
        name: The argument.
        folder: Where to write.
        overwrite: Whether a checkpoint may be replaced.

    Raises:
        CosmicError: If it is a file, or holds something.

    Example:
        >>> check_folder("out", Path(__file__), overwrite=True)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: ... is a file; give a directory
    """
    if folder.exists() and not folder.is_dir():
        raise CosmicError(f"{name}: {str(folder)!r} is a file; give a directory")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held and not overwrite:
        raise CosmicError(f"{name}: {str(folder)!r} is not empty; choose another directory, or overwrite what it holds")
    if foreign := [one for one in held if not any(fnmatch(one, ours) for ours in OURS)]:
        raise CosmicError(
            f"{name}: {str(folder)!r} holds {foreign[0]!r}, which is no part of a checkpoint and would be lost; choose another "
            "directory"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the context ends without an error; an earlier one is then gone.

    Raises:
        CosmicError: If it cannot be written. An earlier folder is then as it was.

    Example:
        >>> with TemporaryDirectory() as place:
        ...     with whole_folder(Path(place) / "a") as new:
        ...         _ = (new / "config.json").write_text("{}")
        ...     [path.name for path in Path(place).rglob("*")]
        ['a', 'config.json']
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
