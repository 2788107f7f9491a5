"""A run's work in pieces that copies of the model share, and results of theirs that nothing else keeps."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmic_tl._util.files import RESUME, make_folder, write_atomically
from cosmic_tl._util.sealed import DAMAGE, read_sealed, write_sealed
from cosmic_tl._util.spreading import Piece
from cosmic_tl.runs.derived import digest
from cosmic_tl.runs.piece_table import COLUMNS, PIECES, TABLE

if TYPE_CHECKING:
    from cosmic_tl.backends.ray_backend import RayBackend


class RunPieces:
    """Spreads a run's work, and keeps in its directory where each piece is.

    Args:
        backend: The workers.
        out: The run's directory.

    Example:
        >>> from cosmic_tl.backends.ray_backend import RayBackend
        >>> RunPieces(RayBackend("demo", workers=3), Path("my-run")).count
        3
    """

    def __init__(self, backend: "RayBackend", out: Path) -> None:
        self.backend, self.count, self.model = backend, backend.count, backend.model
        self.folder = out / RESUME / PIECES
        self.rows: list[dict[str, Any]] = []

    def map(
        self, stage: str, function: Callable[..., Any], shared: tuple[Any, ...], pieces: Sequence[Piece]
    ) -> Iterator[tuple[int, Any]]:
        """As `Spread.map`. Results with a key are kept, and not made again.

        Example:
            >>> callable(RunPieces.map)
            True
        """
        first = len(self.rows)
        self.rows += [dict(zip(COLUMNS, [stage, one.name, "waiting", "", 0, None], strict=True)) for one in pieces]
        left = []
        for number, piece in enumerate(pieces):
            if (found := self._kept(piece)) is None:
                left.append(number)
            else:
                self.rows[first + number]["state"] = "done"
                yield number, found
        started: dict[int, float] = {}

        def on_change(at: int, state: str, worker: str) -> None:
            row = self.rows[first + left[at]]
            row |= {"state": state, "worker": worker}
            if state == "running":
                row["tries"], started[at] = row["tries"] + 1, time.time()
            elif state == "done":
                row["seconds"] = round(time.time() - started[at], 3)
            self._write()

        for at, found in self.backend.map(stage, function, shared, [pieces[number] for number in left], on_change):
            if (path := self._path(pieces[left[at]])) is not None:
                make_folder(path.parent)
                write_sealed(path, found, {})
            yield left[at], found

    def _path(self, piece: Piece) -> Path | None:
        return None if piece.key is None else self.folder / f"{digest(piece.key)}.safetensors"

    def _kept(self, piece: Piece) -> Any:
        """A result from before a stop; a damaged one is made again."""
        if (path := self._path(piece)) is not None and path.exists():
            with suppress(*DAMAGE):
                return read_sealed(path)[1]
        return None

    def _write(self) -> None:
        make_folder(self.folder)
        write_atomically(self.folder / TABLE, json.dumps(self.rows))
