"""A study's record (`study.json`): which runs it asks for, and what is known of each beside its own files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import RESUME
from cosmic_tl._util.versions import versions
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.errors import CosmicError
from cosmic_tl.runs.derived import digest, prompts_digest, write_json
from cosmic_tl.runs.run_files import LOCK
from cosmic_tl.studies.study import Case, Study

FORMAT = 1
RECORD = "study.json"
RUNS = "runs"
"""Subdirectory with the runs."""
OUTPUTS = (RECORD, "study.csv", "selections.csv", "published.csv", "study.html")


@dataclass(frozen=True)
class Entry:
    """One run of a study."""

    folder: str
    """Name of its directory, which ends in a digest of all that the run depends on but the weights."""
    model: str
    prompts: str
    settings: str
    seed: int | None = None
    alpha: float | None = None
    problem: str = ""
    """Why it is not there, in one line; "" if it is, or was not tried yet."""
    trace: str = ""
    """Where that happened, for errors that nobody expected."""
    files: str = ""
    """Identifies the files that the model was loaded from; "" if that is not known."""
    memory_gb: float | None = None
    gpu_gb: float | None = None


@dataclass(frozen=True)
class Record:
    """What a study's directory holds."""

    name: str
    asked: tuple[Entry, ...]
    """The runs that the study asks for, in order."""
    known: Mapping[str, Entry] = field(default_factory=dict)
    """By folder, runs of earlier versions of the study."""
    published: tuple[Mapping[str, Any], ...] = ()
    """Published figures: model, settings, measure, value, source."""

    def changed(self, entry: Entry) -> "Record":
        """The record with another entry in place of the one of the same folder.

        Example:
            >>> record = Record("one", (Entry("a", "demo", "demo", "cosmic"),))
            >>> record.changed(replace(record.asked[0], problem="out of memory")).asked[0].problem
            'out of memory'
        """
        return replace(self, asked=tuple(entry if one.folder == entry.folder else one for one in self.asked))

    def write(self, out: Path) -> None:
        """Write it into the study's directory.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Record("one", ()).write(Path(folder))
            ...     read_record(Path(folder)).name
            'one'
        """
        write_json(
            out / RECORD,
            {
                "format": FORMAT,
                "name": self.name,
                "asked": [asdict(one) for one in self.asked],
                "known": [asdict(one) for one in self.known.values()],
                "published": [dict(one) for one in self.published],
            },
        )


def read_record(out: Path) -> Record:
    """The record of the study in a directory.

    Raises:
        CosmicError: If there is none, or it cannot be read.

    Example:
        >>> read_record(Path("nowhere"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: study: 'nowhere' holds no study; give a directory that `cosmic-tl study` wrote
    """
    path = out / RECORD
    if not path.is_file():
        raise CosmicError(f"study: {str(out)!r} holds no study; give a directory that `cosmic-tl study` wrote")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise CosmicError(
                f"study: {str(out)!r} has format {found['format']!r}, and this version reads format {FORMAT}; "
                "choose another directory"
            )
        known = [Entry(**one) for one in found["known"]]
        return Record(
            found["name"],
            tuple(Entry(**one) for one in found["asked"]),
            {one.folder: one for one in known},
            tuple(found["published"]),
        )
    except CosmicError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CosmicError(f"study: {str(path)!r} is damaged; delete it, which loses no run") from error


def check_study_directory(out: Path) -> None:
    """Make sure that a study may be written into a directory; changes nothing.

    Raises:
        CosmicError: If it is a file, or holds something else.

    Example:
        >>> check_study_directory(Path("nowhere"))
    """
    if out.exists() and not out.is_dir():
        raise CosmicError(f"out: {str(out)!r} is a file; give a directory")
    if not out.is_dir() or (out / RECORD).is_file():
        return
    ours = {RUNS, *OUTPUTS, *(f"{name}.part" for name in OUTPUTS)}
    for path in out.iterdir():
        left = path.name == RESUME and path.is_dir() and all(one.name == LOCK for one in path.iterdir())
        if path.name not in ours and not left:
            raise CosmicError(f"out: {str(out)!r} holds something else ({path.name}); choose another directory")


def identity_of(case: Case, prompts: ContrastSet) -> dict[str, Any]:
    """All that a run depends on but the weights, as its `settings.json` has it.

    Example:
        >>> callable(identity_of)
        True
    """
    return {
        "model": case.model.model,
        "dtype": f"torch.{case.model.dtype}",
        "prompts": {
            "name": prompts.name,
            "sha256": prompts_digest(prompts),
            "labels": None if prompts.labels is None else list(prompts.labels),
        },
        "settings": case.settings.to_json(),
        "versions": versions(),
    }


def entry_of(case: Case, prompts: ContrastSet) -> Entry:
    """A run's entry, before anything is known of it.

    Example:
        >>> callable(entry_of)
        True
    """
    depends_on = {**identity_of(case, prompts), "revision": case.model.revision, "code": case.model.trust_remote_code}
    readable = "".join(
        c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in case.name.replace("α ", "alpha")
    )
    while "--" in readable:
        readable = readable.replace("--", "-")
    folder = f"{readable.strip('-.')[:100]}-{digest(depends_on)[:8]}"
    return Entry(folder, case.model.name, case.prompts.name, case.entry, case.seed, case.alpha)


def planned(study: Study, prompts: Mapping[tuple[str, int | None], ContrastSet], earlier: Record | None) -> Record:
    """The record of a study that is about to begin or to go on.

    Args:
        study: What is asked for.
        prompts: Contrast sets by name and seed of the shuffle.
        earlier: What the directory holds.

    Raises:
        CosmicError: If two of its runs are the same.

    Example:
        >>> callable(planned)
        True
    """
    known = dict(earlier.known) if earlier is not None else {}
    known |= {one.folder: one for one in (earlier.asked if earlier is not None else ())}
    asked: dict[str, Entry] = {}
    for case in study.cases:
        entry = entry_of(case, prompts[case.prompts.name, case.seed])
        plain = entry.folder.rsplit("-", 1)[1]
        if plain in asked:
            raise CosmicError(
                f"study: {case.name!r} is the same run as another one ({asked[plain].folder}); leave one out"
            )
        before = known.pop(entry.folder, None)
        if before is not None:
            entry = replace(entry, files=before.files, memory_gb=before.memory_gb, gpu_gb=before.gpu_gb)
        asked[plain] = entry
    published = tuple(
        {
            "model": model.name,
            "settings": one.settings,
            "measure": one.measure,
            "value": one.value,
            "source": one.source,
        }
        for model in study.models
        for one in model.published
    )
    return Record(study.name, tuple(asked.values()), known, published)
