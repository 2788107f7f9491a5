"""A run's directory: what may be written into it, and what the files that are derived from a run were made from."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import RESUME, writing
from cosmic_tl._util.packing import read_packed, write_packed
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.runs.derived import digest, direction_digest, write_json
from cosmic_tl.runs.piece_table import remove_pieces
from cosmic_tl.runs.run_files import (
    CHOICE,
    COMING,
    DERIVED,
    FORMAT,
    JUDGE_CACHE,
    LOCK,
    RECORD,
    RESULTS,
    RESUME_FILES,
    read_settings,
)
from cosmic_tl.selection.result import Selection

_CHOICE_ONLY = frozenset(
    [
        "directions",  # whose scores have their names
        "max_kl",
        "max_layer_share",
        "last_position_rule",
        "min_induce",
        "full_table",
        "successive_halving",
        "cell",
        "induction_tokens",
        "n_resamples",
    ]
)
"""Settings of a selection that change which candidate is chosen, but no activation and no score."""


def _scores_rest_on(identity: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for activations and scores to be the same."""
    settings = identity["settings"]
    selection = {name: value for name, value in settings["selection"].items() if name not in _CHOICE_ONLY}
    prompts = {name: value for name, value in identity["prompts"].items() if name != "labels"}
    return {**identity, "prompts": prompts, "settings": {"selection": selection, "chat": settings["chat"]}}


def _outdated(out: Path, identity: dict[str, Any]) -> tuple[str, ...]:
    """The resume files that a run with other settings cannot use; all of them, if the settings are the same."""
    try:
        found = read_settings(out)
        usable = found != identity and _scores_rest_on(found) == _scores_rest_on(identity)
    except (CosmicError, KeyError, TypeError, AttributeError):  # damaged
        return RESUME_FILES
    return RESUME_FILES[3:] if usable else RESUME_FILES


def prepare_directory(out: Path, identity: dict[str, Any], overwrite: bool = False) -> None:
    """Make the run's directory, or make sure that the one there belongs to the same run.

    Args:
        out: The directory.
        identity: What must be the same for a run to be resumed.
        overwrite: Remove an earlier run's files first, and all that other commands derived from it. Activations and scores
            stay if the other settings do not change them: a threshold of the selection, say. Files that are not in
            `RESULTS` or `DERIVED` are never touched.

    Raises:
        CosmicError: If something else is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prepare_directory(Path(folder) / "a", {"seed": 0})
        ...     prepare_directory(Path(folder) / "a", {"seed": 1})
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: ... holds a run with other settings (seed); choose another directory ...
    """
    check_directory(out, identity, overwrite)
    settings, coming = out / "settings.json", out / COMING
    with writing(out):
        (out / RESUME).mkdir(parents=True, exist_ok=True)
        if not settings.exists() or overwrite:
            write_json(coming, {"format": FORMAT, **identity})  # if the disk is full, nothing is lost yet
            _clear(out, identity)
            os.replace(coming, settings)


def check_directory(out: Path, identity: dict[str, Any], overwrite: bool = False) -> None:
    """Make sure that a run may be written into a directory, or go on there; changes nothing.

    Args:
        out: The directory.
        identity: As for `prepare_directory`.
        overwrite: Whether another run may be replaced.

    Raises:
        CosmicError: If something else is there.

    Example:
        >>> check_directory(Path("nowhere"), {"seed": 0})
    """
    if out.exists() and not out.is_dir():
        raise CosmicError(f"out: {str(out)!r} is a file; give a directory")
    if not (out / "settings.json").exists():
        if out.is_dir() and not all(map(_is_left_over, out.iterdir())):
            raise CosmicError(f"out: {str(out)!r} is not empty and holds no run; choose another directory")
    elif not overwrite:
        found = read_settings(out)
        if differing := [key for key in (identity | found) if found.get(key) != identity.get(key)]:
            raise CosmicError(
                f"out: {str(out)!r} holds a run with other settings ({', '.join(differing)}); "
                "choose another directory or pass --overwrite"
            )


def _is_left_over(path: Path) -> bool:
    """Whether this is what a run leaves that was stopped before it had written its settings."""
    if path.name == RESUME and path.is_dir():
        return all(found.name == LOCK for found in path.iterdir())
    return path.name in (COMING, f"{COMING}.part")


def _clear(out: Path, identity: dict[str, Any]) -> None:
    """Remove an earlier run's results, all that was derived from them, and what the new run cannot use."""
    ours = [*RESULTS, RECORD, JUDGE_CACHE, *(name for names in DERIVED.values() for name in names)]
    for name in ours:
        (out / name).unlink(missing_ok=True)
    for name in _outdated(out, identity):
        (out / RESUME / name).unlink(missing_ok=True)
    remove_pieces(out)
    for command in DERIVED:
        for path in (out / RESUME).glob(f"{command}-*"):
            path.unlink()


@dataclass(frozen=True, eq=False)
class Choice:
    """What `selection.safetensors` holds."""

    selection: Selection
    similarity: LayerSimilarity
    run: str
    """Hash of `settings.json`, to tell a file of another run."""
    causal: CausalMap | None = None


def write_choice(
    out: Path, selection: Selection, similarity: LayerSimilarity, causal: CausalMap | None, identity: dict[str, Any]
) -> None:
    """Write a selection, the cosines before and after its edits, and where it acts.

    Args:
        out: The run's directory.
        selection: The choice; its direction and table have files of their own too.
        similarity: Cosines before and after the intervention.
        causal: Where it acts, if that was measured.
        identity: As in `settings.json`.

    Example:
        >>> callable(write_choice)
        True
    """
    write_packed(out / CHOICE, Choice(selection, similarity, digest(identity), causal))


def read_choice(
    out: Path, direction: Direction, identity: dict[str, Any]
) -> tuple[Selection, LayerSimilarity, CausalMap | None]:
    """Read what `write_choice` wrote.

    Args:
        out: The run's directory.
        direction: From `direction.safetensors`.
        identity: From `settings.json`.

    Raises:
        CosmicError: If the file is damaged, or `settings.json`, `direction.safetensors` or `scores.csv` is another run's.

    Example:
        >>> callable(read_choice)
        True
    """
    found = read_packed(out / CHOICE)
    if not isinstance(found, Choice):
        raise CosmicError("it holds no selection of a run")
    scores = (out / "scores.csv").read_text(encoding="utf-8")
    for name, same in (
        ("settings.json", found.run == digest(identity)),
        ("direction.safetensors", direction_digest(direction) == direction_digest(found.selection.direction)),
        ("scores.csv", scores == found.selection.table.to_csv(index=False, lineterminator="\n")),
    ):
        if not same:
            raise CosmicError(f"it was written with another {name}")
    return found.selection, found.similarity, found.causal
