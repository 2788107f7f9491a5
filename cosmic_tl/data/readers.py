"""Files that prompts come in: JSON, JSONL, CSV and plain text. Nothing is guessed, changed or left out."""

import codecs
import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from cosmic_tl.errors import CosmicError, first_line

Rows = dict[int, dict[str, Any]]
"""Number of the line in the file to the row that begins there."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of utf-16-le
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte-order marks and their encodings."""


def decoded(path: Path, what: str = "prompts") -> str:
    """A file's text: UTF-8, or what its byte-order mark says.

    Args:
        path: The file.
        what: The argument that the error names.

    Raises:
        CosmicError: If it cannot be read, or is not text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_bytes("naïve".encode("latin-1"))
        ...     decoded(Path(folder, "a.txt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: prompts: line 1 of ... is not UTF-8 (byte 0xef); save the file as UTF-8
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CosmicError(f"{what}: cannot read {str(path)!r} ({error.strerror}); give a readable file") from error
    mark, encoding = next((one for one in _MARKS if raw.startswith(one[0])), (b"", "utf-8"))
    try:
        text = raw.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        line, name = raw[: error.start].count(b"\n") + 1, encoding.upper()
        raise CosmicError(
            f"{what}: line {line} of {str(path)!r} is not {name} (byte {raw[error.start]:#x}); save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise CosmicError(f"{what}: line {line} of {str(path)!r} holds a NUL; it is no text: save it as UTF-8")
    return text


def numbered_lines(path: Path, what: str = "prompts") -> dict[int, str]:
    r"""Lines that are not blank, by their number in the file.

    Lines end in `\n` or `\r\n` alone: other characters at which `str.splitlines` cuts, such as U+2028, belong to the text.

    Args:
        path: The file.
        what: The argument that the error names.

    Raises:
        CosmicError: As `decoded`, or if its lines end in `\r` alone.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.txt"
        ...     _ = path.write_bytes("one\u2028line\r\n\nanother".encode())
        ...     numbered_lines(path)
        {1: 'one\u2028line', 3: 'another'}
    """
    text = decoded(path, what)
    if "\r" in text and "\n" not in text:
        raise CosmicError(f"{what}: lines of {str(path)!r} end in \\r alone; save it with \\n")
    lines = text.split("\n")
    return {number: line.removesuffix("\r") for number, line in enumerate(lines, 1) if line.strip()}


def read_json(path: Path, what: str = "prompts") -> Any:
    """What a JSON file holds.

    Args:
        path: The file.
        what: The argument that the error names.

    Raises:
        CosmicError: If it cannot be read, is not JSON, or has a key twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.json").write_text('{"positive": []}')
        ...     read_json(Path(folder, "a.json"))
        {'positive': []}
    """
    return _parsed(decoded(path, what), f"{what}: {str(path)!r}")


def read_rows(path: Path, what: str = "prompts") -> Rows:
    """Rows of a CSV or JSONL file.

    Args:
        path: The file.
        what: The argument that the error names.

    Raises:
        CosmicError: If it cannot be read, a line holds no JSON object, a row of a table has too many or too few fields, or a
            column's name stands twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("prompt,side\\nhi,positive")
        ...     read_rows(Path(folder, "a.csv"))
        {2: {'prompt': 'hi', 'side': 'positive'}}
    """
    if path.suffix == ".csv":
        return _table(path, what)
    found = {}
    for number, line in numbered_lines(path, what).items():
        where = f"{what}: line {number} of {str(path)!r}"
        row = _parsed(line, where)
        if not isinstance(row, dict):
            raise CosmicError(f"{where} must be a JSON object, found {type(row).__name__}; fix the file")
        found[number] = row
    return found


def _table(path: Path, what: str) -> Rows:
    reader = csv.reader(io.StringIO(decoded(path, what), newline=""), strict=True)
    names: list[str] = []
    found: Rows = {}
    before = 0
    try:
        for fields in reader:
            number, before = before + 1, reader.line_num  # a row may take several lines
            if not fields:
                continue
            if not names:
                names = fields
                if twice := [name for name, n in Counter(names).items() if n > 1]:
                    raise CosmicError(f"{what}: {str(path)!r} has the column {twice[0]!r} more than once; rename one")
                continue
            if len(fields) != len(names):
                raise CosmicError(
                    f"{what}: line {number} of {str(path)!r} has {len(fields)} fields for {len(names)} columns; put texts with "
                    "commas into quotes"
                )
            found[number] = dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise CosmicError(
            f"{what}: line {reader.line_num} of {str(path)!r} cannot be read ({error}); fix the file"
        ) from error
    return found


def _parsed(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
            raise CosmicError(f"{where} has the key {twice[0]!r} more than once in one object; remove one")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except CosmicError:
        raise
    except (ValueError, RecursionError) as error:  # numbers and nesting beyond what Python reads, too
        raise CosmicError(f"{where} is not JSON ({first_line(error)}); fix the file") from error
