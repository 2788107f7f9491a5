"""Scores on disk."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path

from cosmic_tl._util.files import append_lines, read_lines, readable
from cosmic_tl.selection.scores import ScoreKey


class ScoreLog(MutableMapping[ScoreKey, float]):
    """Scores that are on disk as soon as they are known.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ScoreLog(Path(folder) / "a.jsonl")[3, -1, "s_comply"] = 0.5
        ...     dict(ScoreLog(Path(folder) / "a.jsonl"))
        {(3, -1, 's_comply'): 0.5}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[ScoreKey, float] = {}
        with readable(path):
            for row in read_lines(path):
                key, value = (row["layer"], row["position"], row["measure"]), row["value"]
                if tuple(map(type, key)) != (int, int, str) or type(value) is not float:
                    raise TypeError(f"{key}: {value!r}")
                if key in self.known:
                    raise ValueError(f"{key} twice")
                self.known[key] = value

    def __setitem__(self, key: ScoreKey, value: float) -> None:
        self.known[key] = value
        layer, position, measure = key
        append_lines(self.path, [{"layer": layer, "position": position, "measure": measure, "value": value}])

    def __getitem__(self, key: ScoreKey) -> float:
        return self.known[key]

    def __delitem__(self, key: ScoreKey) -> None:
        raise TypeError("scores are only added")

    def __iter__(self) -> Iterator[ScoreKey]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)
