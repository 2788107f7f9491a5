"""A cache of an endpoint's answers, written to disk as they arrive."""

import json
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from cosmic_tl._util.files import append_lines, read_lines
from cosmic_tl.errors import CosmicError, first_line


class ResponseCache:
    """Maps questions to answers in an append-only JSONL file. Safe for several threads of one process.

    Each line holds the hash of a question and its answer. An incomplete last line is ignored.

    Example:
        >>> cache = ResponseCache(None)
        >>> cache.add({"model": "m"}, "safe")
        >>> cache.get({"model": "m"}), cache.get({"model": "n"})
        ('safe', None)
    """

    def __init__(self, path: str | Path | None) -> None:
        """Read the file if it exists.

        Args:
            path: Path of the file; None keeps answers in memory only.

        Raises:
            CosmicError: If the file has another format.
        """
        self._lock = Lock()
        self._path = None if path is None else Path(path)
        self._known: dict[str, str] = {}
        if self._path is None:
            return
        try:
            self._known = dict(read_lines(self._path, lambda row: (row["key"], str(row["answer"]))))
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CosmicError(
                f"cache: {str(path)!r} cannot be used ({first_line(error)}); give the path of a new file"
            ) from error

    @staticmethod
    def _key(question: dict[str, Any]) -> str:
        return sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()

    def get(self, question: dict[str, Any]) -> str | None:
        """The answer to a question, if it is known.

        Example:
            >>> ResponseCache(None).get({}) is None
            True
        """
        return self._known.get(self._key(question))

    def add(self, question: dict[str, Any], answer: str) -> None:
        """Store an answer.

        Example:
            >>> ResponseCache(None).add({"model": "m"}, "safe")
        """
        key = self._key(question)
        with self._lock:
            self._known[key] = answer
            if self._path is not None:
                append_lines(self._path, [{"key": key, "answer": answer}])
