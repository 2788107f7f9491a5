"""The directory of a comparison of two models: what may be written into it, and how a stopped one goes on."""

import json
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosmic_tl._util.files import RESUME, remove_file, write_atomically
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.model_comparison import ModelComparison
from cosmic_tl.model.batching import sizes_kept
from cosmic_tl.report.evaluation_page import write_evaluation
from cosmic_tl.runs.derived import digest, write_json
from cosmic_tl.runs.evaluation_folder import FILES, SETTINGS, check_evaluation_folder, read_evaluation
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.logs import PartLog, SizeLog

Row = dict[str, Any]


class _Parts(MutableMapping[str, list[Row]]):
    """Finished parts by name, in a file for each kind (what stands before the first comma), named by what it depends on."""

    def __init__(self, logs: dict[str, PartLog]) -> None:
        self.logs = logs

    def _log(self, part: str) -> PartLog:
        return self.logs[part.partition(",")[0]]

    def __getitem__(self, part: str) -> list[Row]:
        return self._log(part)[part]

    def __setitem__(self, part: str, rows: list[Row]) -> None:
        self._log(part)[part] = rows

    def __delitem__(self, part: str) -> None:
        raise TypeError("parts are only added")

    def __iter__(self) -> Iterator[str]:
        for log in self.logs.values():
            yield from log

    def __len__(self) -> int:
        return sum(map(len, self.logs.values()))


ALWAYS = ("format", "base", "edited", "versions", "batch_size")
"""Entries of the identity that every part depends on."""
PARTS = {
    "completions": ("prompts", "chat", "generation", "phrases"),
    "divergences": ("prompts", "chat", "generation", "phrases"),
    "texts": ("chat", "texts", "instructions"),
    "tasks": ("chat", "tasks"),
}
"""Kinds of parts that `compare_models` keeps, and what each depends on besides."""


@contextmanager
def evaluating(
    out: Path, identity: dict[str, Any], overwrite: bool = False
) -> Iterator[MutableMapping[str, list[Row]]]:
    """Write a comparison into a directory, alone, or go on with one that was stopped.

    Args:
        out: The directory; made if needed.
        identity: What the results depend on, as JSON holds it: the entries of `ALWAYS` and `PARTS`, and any others.
        overwrite: Whether a comparison with other settings may be replaced. Parts of it that do not depend on what has changed
            are kept.

    Yields:
        The parts that are done.

    Raises:
        CosmicError: If the directory holds something else, or another process works in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, evaluating(Path(folder) / "a", {"prompts": "x"}) as parts:
        ...     parts["completions, positive, base"] = []
        ...     list(parts)
        ['completions, positive, base']
    """
    check_evaluation_folder(out)
    with locked(out):
        check_evaluation_folder(out)
        found = read_evaluation(out)
        if found is not None and found != identity:
            if not overwrite:
                differing = [key for key in (identity | found) if found.get(key) != identity.get(key)]
                raise CosmicError(
                    f"out: {str(out)!r} holds a comparison with other settings ({', '.join(differing)}); choose another "
                    "directory or pass --overwrite"
                )
            for name in FILES:
                remove_file(out / name)
        write_json(out / SETTINGS, identity)
        always = {name: identity.get(name) for name in ALWAYS}
        where = {
            kind: out / RESUME / f"{kind}-{digest({**always, **{name: identity.get(name) for name in names}})}.jsonl"
            for kind, names in PARTS.items()
        }
        sizes = out / RESUME / f"sizes-{digest(always)}.jsonl"
        for old in (out / RESUME).glob("*.jsonl"):
            if old not in (*where.values(), sizes):
                remove_file(old)
        with sizes_kept(SizeLog(sizes)):
            yield _Parts({kind: PartLog(path) for kind, path in where.items()})


def write_evaluation_files(out: Path, found: ModelComparison, identity: dict[str, Any], command: str = "") -> None:
    """Write everything that a comparison found into its directory; `summary.json` last.

    Args:
        out: The directory, within `evaluating`.
        found: From `compare_models`.
        identity: What the results depend on.
        command: The command that repeats it. Defaults to none.
    """
    for name in FILES:
        remove_file(out / name)
    removed = found.removed
    completions = found.effects.completions
    lines = [json.dumps(_plain(row)) + "\n" for row in completions.to_dict("records")]
    write_atomically(out / "completions.jsonl", "".join(lines))
    write_atomically(out / "evaluation.csv", found.table.to_csv(index=False))
    if len(found.categories):
        write_atomically(out / "categories.csv", found.categories.to_csv(index=False))
    if removed is not None:
        write_atomically(out / "weights.csv", removed.table.to_csv(index=False))
        if removed.is_one:
            removed.as_direction().save(out / "removed.safetensors")
    if found.capability is not None:
        write_atomically(out / "tasks.csv", found.capability.table.to_csv(index=False))
    found.save(out / "comparison.safetensors")
    write_atomically(out / "evaluation.html", write_evaluation(found, identity, command=command))
    write_json(out / "summary.json", summarized_comparison(found))


def summarized_comparison(found: ModelComparison) -> dict[str, Any]:
    """What `summary.json` of a comparison holds.

    Example:
        >>> import pandas as pd
        >>> from cosmic_tl import Effects
        >>> row = {"side": "positive", "prompt": "a", "completion": "No.", "garbled": False, "cross_entropy": 0.5}
        >>> rows = [{**row, "condition": name, "verdict": "refusal"} for name in ("base", "edited")]
        >>> kl = pd.DataFrame({"prompt": ["b"], "first": [0.5], "first_reverse": 0.5, "tokens": 2, "total": 3.0})
        >>> list(summarized_comparison(ModelComparison(Effects(pd.DataFrame(rows)), kl, "demo", "demo-weak")))
        ['base', 'edited', 'said', 'measures', 'categories', 'tasks', 'weights', 'notes']
    """
    removed = found.removed
    weights = None
    if removed is not None:
        numbers = removed.matrices[["change", "share", "share_4", "left", "common", "cosine"]]
        weights = {
            "said": removed.said(),
            "differs": removed.differs,
            "is_one": removed.is_one,
            "parameters": int(removed.changed.n.sum()),
            "differing": int(removed.changed.differing.sum()),
            "matrices": int(removed.table.matrix.sum()),
            "matrices_differing": len(removed.matrices),
            "median": _plain(numbers.median().to_dict()),
        }
    return {
        "base": found.base,
        "edited": found.edited,
        "said": found.said(),
        "measures": [_plain(row) for row in found.table.to_dict("records")],
        "categories": [_plain(row) for row in found.categories.to_dict("records")],
        "tasks": [] if found.capability is None else [_plain(row) for row in found.capability.table.to_dict("records")],
        "weights": weights,
        "notes": list(found.notes),
    }


def _plain(row: dict[Any, Any]) -> Row:
    """A row as JSON holds it: None for what is missing."""
    return {str(key): None if value != value else value for key, value in row.items()}
