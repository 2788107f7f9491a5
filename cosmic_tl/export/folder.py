"""Whether a checkpoint may be written into a folder; imports nothing heavy."""

from fnmatch import fnmatch
from pathlib import Path

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
"""What a checkpoint consists of."""


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
