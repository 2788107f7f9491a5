"""Numbers of a run that are on disk as soon as they are known: scores and what they follow from, and rows per pass."""

import json
from abc import abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, Generic, TypeVar
from zlib import crc32

import torch
from torch import Tensor

from cosmic_tl._util.files import append_lines, read_lines, write_atomically
from cosmic_tl.selection.scores import ScoreKey

K = TypeVar("K")
V = TypeVar("V")


class _Log(MutableMapping[K, V], Generic[K, V]):
    """A mapping in a JSONL file that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[K, V] = {}
        read_lines(path, self._add)

    _may_change = False
    """Whether a later line may replace an earlier one."""

    def _add(self, row: dict[str, Any]) -> None:
        key, value = self._read(row)
        if key in self.known and not self._may_change:
            raise ValueError(f"{key} twice")
        self.known[key] = value

    @abstractmethod
    def _read(self, row: dict[str, Any]) -> tuple[K, V]:
        """What a line says.

        Raises:
            TypeError: If it was not written here.
        """

    @abstractmethod
    def _row(self, key: K, value: V) -> dict[str, Any]:
        """The line."""

    def __setitem__(self, key: K, value: V) -> None:
        self.known[key] = value
        append_lines(self.path, [self._row(key, value)])

    def sort(self) -> None:
        """Put the lines into one order, in whatever order they came."""
        lines = {key: self._row(key, value) for key, value in self.known.items()}
        in_order = sorted(lines.items(), key=lambda line: _place(line[0]))
        if [key for key, _ in in_order] != list(lines):
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for _, row in in_order))
            self.known = {key: self.known[key] for key, _ in in_order}

    def __getitem__(self, key: K) -> V:
        return self.known[key]

    def __delitem__(self, key: K) -> None:
        raise TypeError("entries are only added")

    def __iter__(self) -> Iterator[K]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _place(key: Any) -> tuple[str, Any]:
    """Where a key belongs: those of scores by measure, then by layer and position."""
    return (key[-1], key[:-1]) if isinstance(key, tuple) and isinstance(key[-1], str) else ("", key)


class ScoreLog(_Log[ScoreKey, float]):
    """Scores by layer, position and measure.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ScoreLog(Path(folder) / "a.jsonl")[3, -1, "s_comply"] = 0.5
        ...     dict(ScoreLog(Path(folder) / "a.jsonl"))
        {(3, -1, 's_comply'): 0.5}
    """

    def _read(self, row: dict[str, Any]) -> tuple[ScoreKey, float]:
        key, value = (row["layer"], row["position"], row["measure"]), row["value"]
        if tuple(map(type, key)) != (int, int, str) or type(value) is not float:
            raise TypeError(f"{key}: {value!r}")
        return key, value

    def _row(self, key: ScoreKey, value: float) -> dict[str, Any]:
        return {"layer": key[0], "position": key[1], "measure": key[2], "value": value}


class ProductLog(_Log[ScoreKey, Tensor]):
    """What scores follow from for other prompts, by layer, position and measure: float32 numbers in base64.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ProductLog(Path(folder) / "a.jsonl")[3, -1, "kl"] = torch.tensor([0.5, 0.25])
        ...     dict(ProductLog(Path(folder) / "a.jsonl"))
        {(3, -1, 'kl'): tensor([0.5000, 0.2500])}
    """

    def _read(self, row: dict[str, Any]) -> tuple[ScoreKey, Tensor]:
        key, data = (row["layer"], row["position"], row["measure"]), b64decode(row["float32"], validate=True)
        if tuple(map(type, key)) != (int, int, str) or row["crc32"] != crc32(data):
            raise TypeError(f"{key}: its numbers have changed")
        return key, torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(row["shape"])

    def _row(self, key: ScoreKey, value: Tensor) -> dict[str, Any]:
        data = value.contiguous().numpy().tobytes()
        return {
            "layer": key[0],
            "position": key[1],
            "measure": key[2],
            "shape": list(value.shape),
            "crc32": crc32(data),
            "float32": b64encode(data).decode(),
        }


class PartLog(_Log[str, list[dict[str, Any]]]):
    """Finished parts of a longer work by name, each with its rows.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PartLog(Path(folder) / "a.jsonl")["divergences"] = [{"first": 0.5}]
        ...     dict(PartLog(Path(folder) / "a.jsonl"))
        {'divergences': [{'first': 0.5}]}
    """

    def _read(self, row: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        part, rows = row["part"], row["rows"]
        if not isinstance(part, str) or not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
            raise TypeError(f"{part!r}: it has no rows")
        return part, rows

    def _row(self, key: str, value: list[dict[str, Any]]) -> dict[str, Any]:
        return {"part": key, "rows": value}


class SizeLog(_Log[tuple[str, int], int]):
    """Rows per pass by device and length of the prompts in tokens; fewer once memory has run out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SizeLog(Path(folder) / "a.jsonl")["cpu", 20] = 51
        ...     dict(SizeLog(Path(folder) / "a.jsonl"))
        {('cpu', 20): 51}
    """

    _may_change = True

    def _read(self, row: dict[str, Any]) -> tuple[tuple[str, int], int]:
        key, value = (row["device"], row["tokens"]), row["rows"]
        if (*map(type, key), type(value)) != (str, int, int) or value < 1:
            raise TypeError(f"{key}: {value!r}")
        return key, value

    def _row(self, key: tuple[str, int], value: int) -> dict[str, Any]:
        return {"device": key[0], "tokens": key[1], "rows": value}
