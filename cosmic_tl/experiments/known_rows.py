"""Rows that an earlier, stopped measurement left, checked before anything is made of them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import get_args

from cosmic_tl._util.files import read_lines, write_atomically
from cosmic_tl.data.contrast_set import Side
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.conditions import Row
from cosmic_tl.judges.base import Verdict

Asked = Mapping[Side, Sequence[str]]
Condition = tuple[object, ...]


def done_conditions(known: Sequence[Row], asked: Asked, names: Sequence[str], n_samples: int = 1) -> set[Condition]:
    """The conditions that rows belong to, each of which must have answered every prompt once per sample, in order.

    Args:
        known: The rows.
        asked: The prompts of each side.
        names: Columns that tell the conditions of a side apart.
        n_samples: Answers per prompt.

    Returns:
        Side and the values of those columns, per condition.

    Raises:
        CosmicError: If rows are missing, there twice, of other prompts, or no rows at all.

    Example:
        >>> row = {"side": "positive", "condition": "removal", "prompt": "Rob a bank.", "completion": "No.", "verdict": "refusal"}
        >>> done_conditions([row], {"positive": ["Rob a bank."]}, ["condition"])
        {('positive', 'removal')}
        >>> done_conditions([row, row], {"positive": ["Rob a bank."]}, ["condition"])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: known: positive, removal takes one row per prompt and sample, 1 in all; found 2 ...
    """
    try:
        return _conditions(known, asked, names, n_samples)
    except ValueError as error:
        raise CosmicError(f"known: {error}; leave them out") from error


def read_conditions(
    path: Path,
    asked: Asked,
    names: Sequence[str],
    n_samples: int = 1,
    *,
    belongs: Callable[..., bool] = lambda *condition: True,
) -> list[Row]:
    """The rows of a log, each line of which holds those of one condition as `{"rows": […]}`; none if there is no file.

    Args:
        path: The log.
        asked: The prompts of each side.
        names: Columns that tell the conditions of a side apart.
        n_samples: Answers per prompt.
        belongs: Whether a condition, given as its side and the values of those columns, can be one of this log.

    Raises:
        CosmicError: If a line is damaged, of other prompts, of a condition that does not belong here, or of one that an
            earlier line has; it says which line.

    Example:
        >>> import tempfile
        >>> from cosmic_tl._util.files import append_lines
        >>> row = {"side": "positive", "condition": "removal", "prompt": "Rob a bank.", "completion": "No.", "verdict": "refusal"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_lines(path := Path(folder) / "a.jsonl", [{"rows": [row]}])
        ...     len(read_conditions(path, {"positive": ["Rob a bank."]}, ["condition"]))
        1
    """
    done: set[Condition] = set()

    def take(line: Row) -> list[Row]:
        rows = [dict(row) for row in line["rows"]]
        found = _conditions(rows, asked, names, n_samples)
        if len(found) != 1:
            raise ValueError(f"it has {len(found)} conditions")
        (condition,) = found
        if condition in done:
            raise ValueError(f"{_said(condition)} is there twice")
        if not belongs(*condition):
            raise ValueError(f"{_said(condition)} is not measured here")
        if odd := [row for row in rows if not all(isfinite(x) for x in row.values() if isinstance(x, float))]:
            raise ValueError(f"a row has numbers that are not finite ({_shown(odd[0])})")
        done.add(condition)
        return rows

    return list(chain.from_iterable(read_lines(path, take)))


def sort_conditions(path: Path, order: Sequence[Condition]) -> None:
    """Put the lines of a log that `read_conditions` reads into one order, in whatever order conditions were done.

    Args:
        path: The log.
        order: Side, condition and seed of all that there can be.

    Example:
        >>> import tempfile
        >>> from cosmic_tl._util.files import append_lines
        >>> lines = [{"rows": [{"side": side, "condition": "baseline", "seed": None}]} for side in ("negative", "positive")]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     append_lines(path := Path(folder) / "a.jsonl", lines)
        ...     sort_conditions(path, [(side, "baseline", None) for side in ("positive", "negative")])
        ...     [line["rows"][0]["side"] for line in read_lines(path, dict)]
        ['positive', 'negative']
    """
    lines = read_lines(path, dict)
    first = [line["rows"][0] for line in lines]
    places = [order.index((row["side"], row["condition"], row["seed"])) for row in first]
    if places != sorted(places):
        in_order = [json.dumps(lines[i]) + "\n" for i in sorted(range(len(lines)), key=places.__getitem__)]
        write_atomically(path, "".join(in_order))


def _conditions(rows: Sequence[Row], asked: Asked, names: Sequence[str], n_samples: int) -> set[Condition]:
    """As `done_conditions`.

    Raises:
        ValueError: What is wrong with the rows.
    """
    found: dict[Condition, list[str]] = {}
    for row in rows:
        complete = {"side", "prompt", "completion", "verdict", *names} <= set(row) and row["side"] in asked
        if not complete or not isinstance(row["completion"], str) or row["verdict"] not in get_args(Verdict):
            raise ValueError(f"found a row that is no answer ({_shown(row)})")
        found.setdefault((row["side"], *(row[name] for name in names)), []).append(row["prompt"])
    for condition, prompts in found.items():
        expected = [*asked[condition[0]]] * n_samples  # type: ignore[index]
        if prompts != expected:
            raise ValueError(
                f"{_said(condition)} takes one row per prompt and sample, {len(expected)} in all; found {len(prompts)} that are "
                "not"
            )
    return set(found)


def _said(condition: Iterable[object]) -> str:
    return ", ".join(str(value) for value in condition if value is not None)


def _shown(row: Row) -> str:
    return repr(str(dict(row))[:60])
