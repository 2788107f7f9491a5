"""A run's directory: what may be written into it, and what the files that are derived from a run were made from."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open
from safetensors.torch import save

from cosmic_tl._util.files import settings_file, write_atomically
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.metrics.refusal_score import RefusalTokens
from cosmic_tl.model.positions import Positions
from cosmic_tl.runs.derived import (
    DERIVED,
    DERIVED_ELSEWHERE,
    JUDGE_CACHE,
    RECORD,
    RESUME,
    digest,
    direction_digest,
    write_json,
)
from cosmic_tl.selection.result import Selection

FORMAT = 2
"""Of a run's files; 1 was that of cosmic_tl 0.1."""
CHOICE = "selection.safetensors"
RESULTS = ("summary.json", "direction.safetensors", CHOICE, "scores.csv", "completions.jsonl", "report.html")
"""What `run` writes at its end, beside `settings.json`; `summary.json` is written last and removed first."""
RESUME_FILES = ("activations.safetensors", "scores.jsonl", "completions.jsonl", "placebos.jsonl")
"""Those of `run`; the other commands' begin with their name."""
_CHOICE_ONLY = frozenset(
    [
        "max_kl",
        "max_layer_share",
        "last_position_rule",
        "min_induce",
        "full_table",
        "successive_halving",
        "cell",
        "induction_tokens",
    ]
)
"""Settings of a selection that change which candidate is chosen, but no activation and no score."""
_COSINES = ("before", "removal", "induction")


def _scores_rest_on(identity: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for activations and scores to be the same."""
    settings = identity["settings"]
    selection = {name: value for name, value in settings["selection"].items() if name not in _CHOICE_ONLY}
    return {**identity, "settings": {"selection": selection, "chat": settings["chat"]}}


def _outdated(out: Path, identity: dict[str, Any]) -> tuple[str, ...]:
    """The resume files that a run with other settings cannot use; all of them, if the settings are the same."""
    try:
        found = read_settings(out)
        usable = found != identity and _scores_rest_on(found) == _scores_rest_on(identity)
    except (CosmicError, KeyError, TypeError, AttributeError):  # damaged
        return RESUME_FILES
    return RESUME_FILES[2:] if usable else RESUME_FILES


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
    if out.exists() and not out.is_dir():
        raise CosmicError(f"out: {str(out)!r} is a file; give a directory")
    settings = out / "settings.json"
    if out.is_dir() and any(out.iterdir()) and not settings.exists():
        raise CosmicError(f"out: {str(out)!r} is not empty and holds no run; choose another directory")
    if settings.exists() and not overwrite:
        found = read_settings(out)
        if differing := [key for key in (identity | found) if found.get(key) != identity.get(key)]:
            raise CosmicError(
                f"out: {str(out)!r} holds a run with other settings ({', '.join(differing)}); "
                "choose another directory or pass --overwrite"
            )
    try:
        if not settings.exists() or overwrite:
            _clear(out, identity)
            out.mkdir(parents=True, exist_ok=True)
            write_json(settings, {"format": FORMAT, **identity})
        (out / RESUME).mkdir(exist_ok=True)
    except OSError as error:
        raise CosmicError(f"out: cannot write to {str(out)!r} ({error.strerror}); choose another directory") from error


def _clear(out: Path, identity: dict[str, Any]) -> None:
    """Remove an earlier run's results, all that was derived from them, and what the new run cannot use."""
    ours = [*RESULTS, RECORD, JUDGE_CACHE, *(name for names in DERIVED.values() for name in names)]
    for name in ours:
        (out / name).unlink(missing_ok=True)
    for name in _outdated(out, identity):
        (out / RESUME / name).unlink(missing_ok=True)
    for command in DERIVED:
        for path in (out / RESUME).glob(f"{command}-*"):
            path.unlink()


def read_settings(out: Path) -> dict[str, Any]:
    """The settings of the run in a directory.

    Raises:
        CosmicError: If there is no run, or its settings cannot be read.

    Example:
        >>> read_settings(Path("nowhere"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: run: 'nowhere' holds no run; give a directory that `cosmic-tl run` wrote
    """
    path = settings_file(out)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise CosmicError(f"run: settings.json in {str(out)!r} is damaged; run again with --overwrite")
    if (form := found.pop("format", 1)) != FORMAT:
        raise CosmicError(
            f"run: {str(out)!r} has format {form!r}, and this version reads format {FORMAT}; run again with --overwrite"
        )
    return found


def write_choice(out: Path, selection: Selection, similarity: LayerSimilarity, identity: dict[str, Any]) -> None:
    """Write what a selection rests on beside its table: candidates, similarities and positions.

    Args:
        out: The run's directory.
        selection: The choice; its direction, table and filters have files of their own.
        similarity: Cosines before and after the intervention.
        identity: As in `settings.json`, to tell a file of another run.

    Example:
        >>> callable(write_choice)
        True
    """
    plain = {f.name: getattr(selection, f.name) for f in fields(selection) if f.name not in DERIVED_ELSEWHERE}
    origin = {name: getattr(selection.candidates, name) for name in ("method", "fingerprint", "model")}
    settings = {
        "run": digest(identity),
        "direction": direction_digest(selection.direction),
        "selection": plain,
        "positions": selection.positions.labels,
        "candidates": origin,
        "edits": asdict(selection.edits),
        "tokens": None if selection.tokens is None else asdict(selection.tokens),
    }
    tensors = {name: getattr(selection.candidates, name).contiguous() for name in ("vectors", "references")}
    tensors |= {f"similarity.{name}": getattr(similarity, name).contiguous() for name in _COSINES}
    tensors |= {f"shuffled.{seed}": vectors.contiguous() for seed, vectors in selection.candidates.shuffled.items()}
    tensors["layer_similarity"] = selection.layer_similarity.contiguous()
    write_atomically(out / CHOICE, save(tensors, metadata={"settings": json.dumps(settings, default=dict)}))


def read_choice(
    out: Path, direction: Direction, summary: dict[str, Any], identity: dict[str, Any]
) -> tuple[Selection, LayerSimilarity]:
    """Read what `write_choice` wrote, with the table of `scores.csv` and the filters of `summary.json`.

    Args:
        out: The run's directory.
        direction: From `direction.safetensors`.
        summary: From `summary.json`.
        identity: From `settings.json`.

    Raises:
        CosmicError: If direction or settings are those of another run.

    Example:
        >>> callable(read_choice)
        True
    """
    with safe_open(out / CHOICE, framework="pt") as file:
        settings = json.loads((file.metadata() or {})["settings"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, found in (("run", digest(identity)), ("direction", direction_digest(direction))):
        if settings[name] != found:
            where = {"run": "settings.json", "direction": "direction.safetensors"}[name]
            raise CosmicError(f"it was written with another {where}")
    texts = ["not_needed", "reason"]  # empty where nothing is missing; the other parser may lose the last bit
    table = pd.read_csv(out / "scores.csv", engine="python", dtype=dict.fromkeys(texts, str))
    table = table.fillna(dict.fromkeys(texts, "")).astype({"kl_max_prompt": "Int64"})
    filters = pd.DataFrame(summary["filters"])
    positions = Positions(tuple(settings["positions"]))
    plain, tokens = _with_tuples(settings["selection"]), settings["tokens"]
    shuffled = {int(name.partition(".")[2]): tensors[name] for name in sorted(tensors) if name.startswith("shuffled.")}
    selection = Selection(
        direction=direction,
        table=table,
        filters=filters.astype(dict.fromkeys(["best_score", "nearest", "farthest"], float)),
        layer_similarity=tensors["layer_similarity"],
        positions=positions,
        candidates=Candidates(tensors["vectors"], tensors["references"], **settings["candidates"], shuffled=shuffled),
        edits=Edits(**settings["edits"]),
        tokens=None if tokens is None else RefusalTokens(**_with_tuples(tokens)),
        **plain,
    )
    return selection, LayerSimilarity(**{name: tensors[f"similarity.{name}"] for name in _COSINES}, positions=positions)


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
