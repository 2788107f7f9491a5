"""A run's directory: what may be written into it, and what the files that are derived from a run were made from."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open
from safetensors.torch import save_file
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.chat import Positions
from cosmic_tl.directions.artifact import Direction, versions
from cosmic_tl.directions.difference_in_means import Candidates
from cosmic_tl.errors import CosmicError
from cosmic_tl.files import settings_file, write_atomically
from cosmic_tl.models import model_fingerprint, model_label
from cosmic_tl.selection.refusal_tokens import RefusalTokens
from cosmic_tl.selection.table import Selection
from cosmic_tl.similarity import LayerSimilarity

CHOICE = "selection.safetensors"
RESULTS = ("summary.json", "direction.safetensors", CHOICE, "scores.csv", "completions.jsonl", "report.html")
"""What `run` writes at its end, beside `settings.json`; `summary.json` is written last and removed first."""
DERIVED = {
    "sweep": ("sweep.csv", "sweep.html"),
    "suffix": (
        "suffix.json",
        *(f"suffix-{name}.csv" for name in ("rates", "cosines", "contributions", "attention")),
        "suffix.html",
    ),
    "judge": ("judgements.jsonl",),
}
"""What other commands write into a finished run, by command."""
RECORD = "derived.json"
"""What each of them was made from, by command."""
JUDGE_CACHE = "judge-cache.jsonl"
RESUME = "resume"
"""Subdirectory with what stopped commands had finished."""
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
_APART = frozenset(["direction", "table", "filters", "layer_similarity", "positions", "candidates", "plan", "tokens"])
"""What JSON does not hold of a selection, or another file does."""
_COSINES = ("before", "removal", "induction")


def digest(content: Any) -> str:
    """Sixteen hex digits that identify anything that JSON can hold.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def direction_digest(direction: Direction) -> str:
    """Sixteen hex digits that identify a direction: its numbers, layer, position and model.

    Example:
        >>> import torch
        >>> one, other = (Direction(torch.ones(2), torch.zeros(2), layer, -1) for layer in (3, 4))
        >>> direction_digest(one) == direction_digest(other)
        False
    """
    numbers = [direction.vector.tolist(), direction.reference.tolist()]
    return digest([*numbers, direction.layer, direction.position, direction.fingerprint])


@dataclass(frozen=True)
class Derivation:
    """What one command makes of a finished run, and everything that its results depend on."""

    out: Path
    """The run's directory."""
    name: str
    """The command: a key of `DERIVED`."""
    made_from: Mapping[str, Any]
    """Direction, model, dtype, versions and the command's own settings."""

    def part(self, suffix: str, *but: str) -> Path:
        """Where to keep what is done so far: another file for anything else that it is made from.

        Args:
            suffix: Of the file's name, with its dot.
            *but: Settings that change which rows there are, and none of the rows.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     made = [Derivation(Path(folder), "sweep", {"seed": 0, "alphas": alphas}) for alphas in ([0.0], [1.0])]
            ...     made[0].part(".jsonl", "alphas") == made[1].part(".jsonl", "alphas")
            True
        """
        (self.out / RESUME).mkdir(exist_ok=True)  # which may be deleted once the run is finished
        key = digest({name: value for name, value in self.made_from.items() if name not in but})
        return self.out / RESUME / f"{self.name}-{key}{suffix}"

    def write(self, files: Mapping[str, str]) -> None:
        """Write results, and note what they were made from; the command's earlier results are gone before.

        Args:
            files: Content by name, of those that `DERIVED` lists for the command.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     made = Derivation(Path(folder), "judge", {"judge": "phrases"})
            ...     made.write({"judgements.jsonl": ""})
            ...     read_derived(made.out)
            {'judge': {'judge': 'phrases'}}
        """
        if unknown := set(files).difference(DERIVED[self.name]):
            raise ValueError(f"files: {self.name} writes {', '.join(DERIVED[self.name])}; found {min(unknown)}")
        others = {name: made for name, made in read_derived(self.out).items() if name != self.name}
        _write_json(self.out / RECORD, others)
        for name in DERIVED[self.name]:
            (self.out / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_atomically(self.out / name, content)
        _write_json(self.out / RECORD, {**others, self.name: dict(self.made_from)})


def derivation(
    out: Path, name: str, direction: Direction, model: TransformerBridge | None = None, **settings: Any
) -> Derivation:
    """What a command is about to make of a run.

    Args:
        out: The run's directory.
        name: The command: a key of `DERIVED`.
        direction: The run's.
        model: The model that is used, as it was loaded; None if there is none.
        **settings: All else that the results depend on, as JSON holds it.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), 3, -1)
        >>> made = derivation(Path("my-run"), "sweep", direction, load_model("demo", device="cpu"), seed=0)
        >>> list(made.made_from)
        ['direction', 'model', 'fingerprint', 'dtype', 'versions', 'seed']
    """
    used: dict[str, Any] = {"direction": direction_digest(direction)}
    if model is not None:
        used |= {
            "model": model_label(model),
            "fingerprint": model_fingerprint(model),
            "dtype": str(model.cfg.dtype),
        }
    plain = json.loads(json.dumps({**used, "versions": versions(), **settings}, default=dict))
    return Derivation(out, name, plain)


def read_derived(out: Path) -> dict[str, dict[str, Any]]:
    """What the files that other commands wrote into a run were made from, by command; none if nothing tells.

    Example:
        >>> read_derived(Path("nowhere"))
        {}
    """
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


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
        if differing := [key for key in identity if found.get(key) != identity[key]]:
            raise CosmicError(
                f"out: {str(out)!r} holds a run with other settings ({', '.join(differing)}); "
                "choose another directory or pass --overwrite"
            )
    try:
        if not settings.exists() or overwrite:
            _clear(out, identity)
            out.mkdir(parents=True, exist_ok=True)
            _write_json(settings, identity)
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
    plain = {f.name: getattr(selection, f.name) for f in fields(selection) if f.name not in _APART}
    origin = {name: getattr(selection.candidates, name) for name in ("method", "fingerprint", "model")}
    settings = {
        "run": digest(identity),
        "direction": direction_digest(selection.direction),
        "selection": plain,
        "positions": selection.positions.labels,
        "candidates": origin,
        "tokens": None if selection.tokens is None else asdict(selection.tokens),
    }
    tensors = {name: getattr(selection.candidates, name).contiguous() for name in ("vectors", "references")}
    tensors |= {f"similarity.{name}": getattr(similarity, name).contiguous() for name in _COSINES}
    tensors |= {f"shuffled.{seed}": vectors.contiguous() for seed, vectors in selection.candidates.shuffled.items()}
    tensors["layer_similarity"] = selection.layer_similarity.contiguous()
    part = out / f"{CHOICE}.part"
    save_file(tensors, part, metadata={"settings": json.dumps(settings, default=dict)})
    os.replace(part, out / CHOICE)


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
        plan=None,
        tokens=None if tokens is None else RefusalTokens(**_with_tuples(tokens)),
        **plain,
    )
    return selection, LayerSimilarity(**{name: tensors[f"similarity.{name}"] for name in _COSINES}, positions=positions)


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
