import errno
import os
from pathlib import Path

import pytest

from cosmic_tl._util.files import make_folder, remove_file
from cosmic_tl.backends import RayBackend
from cosmic_tl.errors import CosmicError
from cosmic_tl.runs.derived import Derivation
from cosmic_tl.runs.evaluation import write_evaluation_files
from cosmic_tl.runs.pieces import RunPieces


@pytest.fixture
def no_room(monkeypatch):
    """A disk on which no folder can be made, and of files only a write's own part be removed."""
    unlink = Path.unlink

    def refused(path, *args, **options):
        if path.suffix == ".part":
            return unlink(path, *args, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("unlink", "mkdir"):
        monkeypatch.setattr(Path, name, refused)


@pytest.mark.parametrize(
    "work",
    [
        remove_file,
        make_folder,
        lambda path: Derivation(path.parent, "judge", {"judge": "phrases"}).write({"judgements.jsonl": ""}),
        lambda path: Derivation(path.parent, "sweep", {"seed": 0}).part(".jsonl"),
        lambda path: write_evaluation_files(path.parent, None, {}),
        lambda path: RunPieces(RayBackend("demo"), path.parent)._write(),
    ],
    ids=["a file", "a folder", "results", "a part", "a comparison", "pieces"],
)
def test_what_cannot_be_removed_or_made_is_one_line(tmp_path, no_room, work):
    with pytest.raises(CosmicError, match=r"^file: cannot write '.*' \(No space left on device\); make room"):
        work(tmp_path / "judgements.jsonl")
