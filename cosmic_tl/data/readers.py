"""Files that prompts come in: JSON, JSONL, CSV and plain text."""

import csv
import json
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import text_lines
from cosmic_tl.errors import CosmicError


def read_json(path: Path, what: str = "prompts") -> Any:
    """What a JSON file holds.

    Args:
        path: The file, in UTF-8 with or without a byte-order mark.
        what: The argument that the error names.

    Raises:
        CosmicError: If it is not JSON.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.json").write_text('{"positive": []}')
        ...     read_json(Path(folder, "a.json"))
        {'positive': []}
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CosmicError(f"{what}: {str(path)!r} is not JSON ({error}); fix the file") from error


def read_text(path: Path) -> list[str]:
    """Lines of a text file that are not blank.

    Raises:
        CosmicError: If it is not UTF-8.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("one\\n\\ntwo")
        ...     read_text(Path(folder, "a.txt"))
        ['one', 'two']
    """
    try:
        return text_lines(path)
    except UnicodeDecodeError as error:
        raise CosmicError(f"prompts: {str(path)!r} is not UTF-8 text ({error}); save it as UTF-8") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV or JSONL file, one mapping each.

    Raises:
        CosmicError: If it cannot be read, or a line holds no JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("prompt,side\\nhi,positive")
        ...     read_rows(Path(folder, "a.csv"))
        [{'prompt': 'hi', 'side': 'positive'}]
    """
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        rows = [json.loads(line) for line in text_lines(path)]
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise CosmicError(f"prompts: {str(path)!r} cannot be read ({error}); fix the file") from error
    if not all(isinstance(row, dict) for row in rows):
        raise CosmicError(f"prompts: every line of {str(path)!r} must be a JSON object")
    return rows
