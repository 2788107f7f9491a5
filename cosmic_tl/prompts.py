"""Contrast sets: instructions that show a concept and instructions that do not, in splits."""

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.files import text_lines

Side = Literal["positive", "negative"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHARES: tuple[float, float, float] = (0.5, 0.25, 0.25)
"""Shares of train, val and test when a source has no splits of its own."""
COLUMNS = ("prompt", "instruction", "text", "question", "goal", "behavior", "Behavior", "forbidden_prompt")
"""Names under which prompts are looked for when no column is given."""


@dataclass(frozen=True)
class ContrastSet:
    """The two sides of a concept. For refusal: positive = harmful, negative = harmless."""

    name: str
    positive: Mapping[str, tuple[str, ...]]
    """Split name to instructions that show the concept."""
    negative: Mapping[str, tuple[str, ...]]
    """Split name to instructions that do not."""
    contrast: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """Split name to (positive, negative) pairs that differ as little as possible, where the set has them."""
    notes: tuple[str, ...] = ()
    """What was found and done while reading it."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """Prompt to category, of those that have one."""

    def side(self, side: Side, split: Split, n: int | None = None) -> list[str]:
        """The first `n` instructions of one side of a split (all by default, and never more than there are).

        Raises:
            CosmicError: If there is no such side or split, the split is empty, or `n` is not positive.

        Example:
            >>> len(load_prompts("demo").side("positive", "val", 10))
            10
        """
        one_of("side", side, get_args(Side))
        one_of("split", split, SPLITS)
        if n is not None and n < 1:
            raise CosmicError(f"n_{split}: must be at least 1, found {n}")
        found = (self.positive if side == "positive" else self.negative).get(split, ())
        if not found:
            raise CosmicError(f"prompts: {self.name!r} has no {side} {split} prompts; add some")
        return list(found[:n])

    def problems(self) -> list[str]:
        """Duplicates, leakage between splits, and prompts on both sides, each as a sentence.

        Example:
            >>> ContrastSet("x", {"train": ("a",), "test": ("a",)}, {"train": ("b",)}).problems()
            ["1 prompt stands in more than one split, as 'a'"]
        """
        found = []
        sides = {"positive": self.positive, "negative": self.negative}
        for side, splits in sides.items():
            for split, prompts in splits.items():
                if repeated := [p for p, n in Counter(prompts).items() if n > 1]:
                    found.append(_sentence(repeated, f"repeated in {side} {split}"))
        places: dict[str, set[str]] = {}
        for splits in sides.values():
            for split, prompts in splits.items():
                for prompt in prompts:
                    places.setdefault(prompt, set()).add(split)
        if leaked := [p for p, where in places.items() if len(where) > 1]:
            found.append(_sentence(leaked, "in more than one split"))
        positive, negative = ({p for prompts in s.values() for p in prompts} for s in sides.values())
        if both := sorted(positive & negative):
            found.append(_sentence(both, "on both sides"))
        return found

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{split} {len(self.positive.get(split, ()))} + {len(self.negative.get(split, ()))}" for split in SPLITS
        )
        return f"ContrastSet({self.name!r}: {sizes}, positive + negative)"

    def _repr_html_(self) -> str:
        import pandas as pd

        from cosmic_tl.display import as_html

        rows = []
        for split in SPLITS:
            sides = {"positive": self.positive.get(split, ()), "negative": self.negative.get(split, ())}
            sizes = {side: len(some) for side, some in sides.items()}
            rows.append(
                {"split": split, **sizes, **{f"for example, {side}": "".join(s[:1]) for side, s in sides.items()}}
            )
        return as_html([f"ContrastSet {self.name!r}", *self.notes], pd.DataFrame(rows))


def _sentence(prompts: Sequence[str], what: str) -> str:
    verb = "prompt stands" if len(prompts) == 1 else "prompts stand"
    return f"{len(prompts)} {verb} {what}, as {prompts[0][:60]!r}"


def load_prompts(
    source: str | Path | None = None,
    *,
    positive: str | Path | None = None,
    negative: str | Path | None = None,
    column: str | None = None,
    hf_split: str = "train",
    seed: int = 0,
) -> ContrastSet:
    """A contrast set from the built-in set, a file with both sides, or two sources.

    Args:
        source: "demo" (the default without `positive` and `negative`), or one file with both sides: JSON
            `{"positive": […], "negative": […]}` (each a list, or a mapping from split to list; "contrast" may map a
            split to pairs), or JSONL or CSV with columns `side` and a prompt, and possibly `split`.
        positive: Source of the positive side: a text file (a prompt a line), a JSON list, JSONL, CSV, a named set
            ("advbench", "alpaca", …; see `NAMED_PROMPTS`), or a Hugging Face data set (hub id or local path).
        negative: Source of the negative side, likewise.
        column: The prompts' column in CSV, JSONL and data sets. By default the first of `COLUMNS` that exists. A column
            `category` is kept too.
        hf_split: Which split of a Hugging Face data set is read. Default "train".
        seed: Of the shuffle when a source has no splits of its own.

    Raises:
        CosmicError: If a source is missing, malformed or empty, or the arguments do not go together.

    Example:
        >>> load_prompts("demo")
        ContrastSet('demo': train 400 + 400, val 150 + 150, test 200 + 200, positive + negative)
    """
    if (positive is None) != (negative is None) or (source is not None and positive is not None):
        raise CosmicError("prompts: give one source with both sides, or positive= and negative= together")
    if positive is not None and negative is not None:
        sources: dict[Side, str | Path] = {"positive": positive, "negative": negative}
        read = {which: _read_side(place, which, column, hf_split) for which, place in sources.items()}
        name = f"{Path(positive).stem} / {Path(negative).stem}"
        categories = read["positive"][1] | read["negative"][1]
        return _assemble(name, {which: prompts for which, (prompts, _) in read.items()}, {}, seed, categories)
    if source is None or str(source) == "demo":
        text = files("cosmic_tl").joinpath("demo", "prompts.json").read_text(encoding="utf-8")
        data = json.loads(text)
        return _assemble("demo", {s: data[s] for s in ("positive", "negative")}, data["contrast"], seed)
    path = _existing(source)
    if path.suffix == ".json":
        data = _json(path)
        if not isinstance(data, dict) or not {"positive", "negative"} <= data.keys():
            raise CosmicError(f"prompts: {str(path)!r} needs the keys 'positive' and 'negative'")
        return _assemble(path.stem, {s: data[s] for s in ("positive", "negative")}, data.get("contrast", {}), seed)
    if path.suffix not in (".jsonl", ".csv"):
        raise CosmicError(
            f"prompts: {str(path)!r} cannot hold both sides; use .json, .jsonl or .csv, or give positive= and negative="
        )
    rows = _rows(path)
    column = _column(rows, column, str(path))
    found: dict[str, Any] = {"positive": {}, "negative": {}}
    for number, row in enumerate(rows, 1):
        side, split = row.get("side"), row.get("split") or "all"
        if side not in found:
            raise CosmicError(f"prompts: row {number} of {str(path)!r} has side {side!r}; use 'positive' or 'negative'")
        found[side].setdefault(split, []).append(row[column])
    sides = {side: splits.get("all", splits) for side, splits in found.items()}
    return _assemble(path.stem, sides, {}, seed, _texts(rows, column, str(path))[1])


def _assemble(
    name: str,
    sides: Mapping[str, Any],
    contrast: Mapping[str, Any],
    seed: int,
    categories: Mapping[str, str] | None = None,
) -> ContrastSet:
    notes: list[str] = []
    done: dict[str, dict[str, tuple[str, ...]]] = {}
    for side, content in sides.items():
        if isinstance(content, Mapping):
            if unknown := set(content) - set(SPLITS):
                raise CosmicError(f"prompts: unknown split {min(unknown)!r} in {name!r}; use {', '.join(SPLITS)}")
            done[side] = {split: _clean(prompts, f"{side} {split}", name) for split, prompts in content.items()}
            continue
        prompts = _clean(content, side, name)
        unique = list(dict.fromkeys(prompts))
        if repeats := len(prompts) - len(unique):
            notes.append(f"{repeats} repeated {side} {'prompt was' if repeats == 1 else 'prompts were'} dropped")
        done[side] = split_prompts(unique, seed)
    pairs = {split: tuple((str(p), str(n)) for p, n in some) for split, some in contrast.items()}
    found = ContrastSet(name, done["positive"], done["negative"], pairs, tuple(notes))
    return replace(found, notes=(*notes, *found.problems()), categories=dict(categories or {}))


def split_prompts(
    prompts: Sequence[str], seed: int = 0, shares: tuple[float, float, float] = SHARES
) -> dict[str, tuple[str, ...]]:
    """Shuffle and split into train, val and test.

    Args:
        prompts: At least three distinct instructions.
        seed: Of the shuffle.
        shares: Of the three splits; default 0.5, 0.25, 0.25.

    Raises:
        CosmicError: If there are fewer than three prompts.

    Example:
        >>> {split: len(some) for split, some in split_prompts([str(i) for i in range(8)]).items()}
        {'train': 4, 'val': 2, 'test': 2}
    """
    if len(prompts) < 3:
        raise CosmicError(f"prompts: {len(prompts)} cannot be split into train, val and test; give at least 3 a side")
    order = random.Random(seed).sample(list(prompts), len(prompts))
    val, test = (max(1, round(share * len(order) / sum(shares))) for share in shares[1:])
    train = len(order) - val - test
    return {
        "train": tuple(order[:train]),
        "val": tuple(order[train : train + val]),
        "test": tuple(order[train + val :]),
    }


def _clean(prompts: Any, where: str, name: str) -> tuple[str, ...]:
    if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
        raise CosmicError(f"prompts: {where} of {name!r} must be a list of texts")
    found = tuple(p.strip() for p in prompts if p.strip())
    if not found:
        raise CosmicError(f"prompts: {where} of {name!r} is empty; add prompts")
    return found


def _existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        raise CosmicError(f"prompts: no file {str(source)!r}; give 'demo' or the path of a prompt file")
    return path


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CosmicError(f"prompts: {str(path)!r} is not JSON ({error}); fix the file") from error


def _text(path: Path) -> list[str]:
    try:
        return text_lines(path)
    except UnicodeDecodeError as error:
        raise CosmicError(f"prompts: {str(path)!r} is not UTF-8 text ({error}); save it as UTF-8") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        rows = [json.loads(line) for line in text_lines(path)]
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise CosmicError(f"prompts: {str(path)!r} cannot be read ({error}); fix the file") from error
    if not all(isinstance(row, dict) for row in rows):
        raise CosmicError(f"prompts: every line of {str(path)!r} must be a JSON object")
    return rows


def _column(rows: Sequence[Mapping[str, Any]], column: str | None, where: str) -> str:
    if not rows:
        raise CosmicError(f"prompts: {where!r} is empty; add prompts")
    names = list(rows[0])
    if column is None:
        column = next((name for name in COLUMNS if name in names), None)
    if column is None or any(not isinstance(row.get(column), str) for row in rows):
        raise CosmicError(f"column: {column!r} is not a text column of {where!r}; it has {', '.join(map(str, names))}")
    return column


def _texts(rows: Sequence[Mapping[str, Any]], column: str | None, where: str) -> tuple[list[str], dict[str, str]]:
    """The prompts of a table, and the categories of those that have one."""
    column = _column(rows, column, where)
    named = {row[column].strip(): str(row["category"]) for row in rows if row.get("category")}
    return [row[column] for row in rows], named


def _read_side(source: str | Path, side: Side, column: str | None, hf_split: str) -> tuple[Any, dict[str, str]]:
    from cosmic_tl.datasets import dataset_side, find_prompts, read_split

    path = Path(source)
    if column is None and hf_split == "train" and find_prompts(str(source)) and not path.exists():
        return _texts(dataset_side(str(source), side).to_dict("records"), "prompt", str(source))
    if path.is_file():
        if path.suffix == ".json":
            data = _json(path)
            return _texts(data, column, str(path)) if data and _is_table(data) else (data, {})
        if path.suffix in (".jsonl", ".csv"):
            return _texts(_rows(path), column, str(path))
        return _text(path), {}
    if path.suffix in (".txt", ".json", ".jsonl", ".csv"):
        raise CosmicError(f"prompts: no file {str(source)!r}; give the path of a prompt file")
    try:
        data = read_split(str(source), None, hf_split)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CosmicError(
            f"prompts: could not load data set {str(source)!r}, split {hf_split!r} ({first}); "
            "give a file, a data set's hub id, or a directory that holds one"
        ) from error
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    return _texts(rows, column, str(source))


def _is_table(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, dict) for row in data)
