"""Read contrast sets from names, files, directories and memory."""

import json
import random
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import is_missing_path
from cosmic_tl.data.contrast_set import SIDES, SPLITS, ContrastSet, Side, check_labels
from cosmic_tl.data.named import BOTH_SIDES, dataset_side, find_prompts, load_dataset_prompts, read_split
from cosmic_tl.data.readers import Rows, numbered_lines, read_json, read_rows
from cosmic_tl.errors import CosmicError, check_texts, first_line, one_of

Source = str | Path | Sequence[Any] | Mapping[str, Any]
"""A path, a name, or prompts in memory."""
Content = tuple[Any, dict[str, str]]
SHARES: tuple[float, float, float] = (0.5, 0.25, 0.25)
"""Shares of train, val and test for a source without splits."""
COLUMNS = ("prompt", "instruction", "text", "question", "goal", "behavior", "Behavior", "forbidden_prompt")
"""Columns that are tried, in order, when none is given."""
_RELEASED: dict[Side, str] = {"positive": "harmful", "negative": "harmless"}
"""Names of the sides in the files of the single-direction and COSMIC programs."""
_HARM = tuple(_RELEASED.values())
T = TypeVar("T")


@checked
def load_prompts(
    source: Source | None = None,
    *,
    positive: Source | None = None,
    negative: Source | None = None,
    column: str | None = None,
    hf_split: str = "train",
    seed: int = 0,
    shuffle: bool = True,
    name: str | None = None,
    labels: Sequence[str] | None = None,
) -> ContrastSet:
    """Read a contrast set from the demo's prompts, one source with both sides, or one source per side.

    Args:
        source: Both sides: "demo" (the default without `positive` and `negative`); a named set that has both sides
            ("jailbreakbench" or "xstest"); a JSON file or a mapping `{"positive": …, "negative": …}` (each a list, or a
            mapping from split to list; "contrast" may map a split to pairs); a JSONL or CSV file with columns `side` and a
            prompt, and possibly `split`; or a directory with `harmful_train.json`, `harmless_train.json` and the same for
            val and test, as in the releases of the single-direction and COSMIC programs.
        positive: The positive side: a list of texts, a mapping from split to such lists, a text file (one prompt per line),
            a JSON, JSONL or CSV file, a named set ("advbench", "alpaca", …; see `NAMED_PROMPTS`), or a Hugging Face data
            set (hub id or local path).
        negative: The negative side, likewise.
        column: The prompts' column in tables and data sets. Defaults to the first of `COLUMNS` that exists. A column
            `category` is also kept.
        hf_split: Which split of a Hugging Face data set is read. Default "train".
        seed: Seed of the shuffle. Default 0.
        shuffle: Whether to shuffle a source before it is split, or each split of a source that has splits: the first
            `n` prompts of a file sorted by category are not a sample of it. The demo's prompts are in random order
            already and are not shuffled. Default True.
        labels: What the positive and the negative side's prompts are called on pages and in figures, such as ("harmful",
            "harmless"). Defaults to the source's own: the entry "labels" of a JSON file or mapping, or "harmful" and
            "harmless" for the demo's prompts, named sets and released splits.
        name: Name of the set in results. Defaults to the names of the files or data sets, or "in memory" for lists.

    Raises:
        CosmicError: If a source is missing, malformed or empty, or the arguments do not go together.

    Example:
        >>> load_prompts("demo")
        ContrastSet('demo': train 400 + 400, val 150 + 150, test 200 + 200, harmful + harmless)
        >>> load_prompts(positive=["Rob a bank.", "Mug a jogger.", "Forge a will."], negative={"train": ["Bake a pie."]})
        ContrastSet('in memory': train 1 + 1, val 1 + 0, test 1 + 0, positive + negative)
    """
    if (positive is None) != (negative is None) or (source is not None and positive is not None):
        raise CosmicError("prompts: give one source with both sides, or positive= and negative= together")
    contrast: Mapping[str, Any] = {}
    known: Any = None
    if positive is not None and negative is not None:
        given: dict[Side, Source] = {"positive": positive, "negative": negative}
        read = {side: _read_side(place, side, column, hf_split) for side, place in given.items()}
        default = " / ".join(dict.fromkeys(map(_label, given.values())))
        known = _HARM if all(_is_named(place, side) for side, place in given.items()) else None
    elif source is None or str(source) == "demo":
        data = json.loads(files("cosmic_tl").joinpath("demo", "prompts.json").read_text(encoding="utf-8"))
        read, contrast, default, shuffle = {side: (data[side], {}) for side in SIDES}, data["contrast"], "demo", False
        known = _HARM
    else:
        sides, contrast, known = _read_both(source)
        read, default = {side: _content(sides[side], column, _label(source)) for side in SIDES}, _label(source)
    labels = known if labels is None else labels
    if labels is not None:
        check_labels(labels)
    found = _assemble(name or default, read, contrast, seed if shuffle else None)
    return found if labels is None else replace(found, labels=(labels[0], labels[1]))


def _is_named(source: Source, side: Side) -> bool:
    """Whether it is a named set, on the side that it has prompts for."""
    named = isinstance(source, str) and not Path(source).exists()
    return named and any(found.side == side for found in find_prompts(str(source)))


def _label(source: Source) -> str:
    return Path(source).stem if isinstance(source, str | Path) else "in memory"


def _read_both(source: Source) -> tuple[Mapping[str, Any], Mapping[str, Any], Any]:
    """The sides, each in a form for `_content`, the pairs of a source that has both, and the names of the sides."""
    if not isinstance(source, str | Path):
        return _two_sides(source, "the source")
    path = Path(source)
    if path.is_dir():
        return _released_splits(path), {}, _HARM
    if not path.is_file():
        return _named_sides(str(source)), {}, _HARM
    if path.suffix == ".json":
        return _two_sides(read_json(path), repr(str(path)))
    if path.suffix not in (".jsonl", ".csv"):
        raise CosmicError(
            f"prompts: {str(path)!r} cannot hold both sides; use .json, .jsonl or .csv, or give positive= and negative="
        )
    found: dict[str, Rows] = {side: {} for side in SIDES}
    for number, row in read_rows(path).items():
        side = row.get("side")
        if side not in SIDES:
            raise CosmicError(
                f"prompts: line {number} of {str(path)!r} has side {side!r}; use 'positive' or 'negative'"
            )
        found[side][number] = row
    for side, rows in found.items():
        if not rows:
            raise CosmicError(f"prompts: {side} of {str(path)!r} is empty; add prompts")
    return {side: _by_split(rows, str(path)) for side, rows in found.items()}, {}, None


def _by_split(rows: Rows, where: str) -> Rows | dict[str, Rows]:
    """The rows of each split, if they have a column for it."""
    if not rows:
        raise CosmicError(f"prompts: {where!r} is empty; add prompts")
    found: dict[str, Rows] = {}
    for number, row in rows.items():
        split = row.get("split") or "none"
        one_of(f"prompts: split in line {number} of {where!r}", split, (*SPLITS, "none"))
        found.setdefault(split, {})[number] = row
    if "none" in found and len(found) > 1:
        number = next(iter(found["none"]))
        raise CosmicError(
            f"prompts: line {number} of {where!r} has no split, and others have one; give all one, or none"
        )
    return found.get("none", found)


def _two_sides(data: Any, where: str) -> tuple[Mapping[str, Any], Mapping[str, Any], Any]:
    if not isinstance(data, Mapping) or not set(SIDES) <= data.keys():
        raise CosmicError(f"prompts: {where} needs the keys 'positive' and 'negative'")
    if not isinstance(contrast := data.get("contrast", {}), Mapping):
        raise CosmicError(f"prompts: 'contrast' of {where} must map splits to pairs, found {type(contrast).__name__}")
    labels = data.get("labels")
    if isinstance(labels, Mapping):
        labels = [labels.get(side) for side in SIDES]
    return data, contrast, labels


def _released_splits(folder: Path) -> dict[str, dict[str, Any]]:
    """The sides of a directory in the form that the single-direction and COSMIC programs come with."""
    names = {side: {split: f"{stem}_{split}.json" for split in SPLITS} for side, stem in _RELEASED.items()}
    places = {side: {split: folder / name for split, name in some.items()} for side, some in names.items()}
    if missing := [path.name for some in places.values() for path in some.values() if not path.is_file()]:
        raise CosmicError(
            f"prompts: {str(folder)!r} has no {', '.join(missing)}; "
            "give a directory with {harmful,harmless}_{train,val,test}.json, or positive= and negative="
        )
    return {side: {split: read_json(path) for split, path in some.items()} for side, some in places.items()}


def _named_sides(name: str) -> dict[str, list[dict[str, Any]]]:
    known = find_prompts(name)
    if len(known) == 1:
        raise CosmicError(f"prompts: {name!r} has {known[0].side} prompts alone; give positive= and negative=")
    if not known:
        raise CosmicError(
            f"prompts: no file or directory {name!r}; give 'demo', {' or '.join(map(repr, BOTH_SIDES))}, or the path of a "
            "prompt file"
        )
    frame = load_dataset_prompts(name)
    return {side: frame[frame.side == side].to_dict("records") for side in SIDES}


def _content(data: Any, column: str | None, where: str) -> Content:
    """The prompts of a side, as a list or as a mapping from split to list, and the categories of those that have one."""
    if isinstance(data, Mapping) and data and all(isinstance(key, int) for key in data):
        return _texts(data, column, where, "line")
    if isinstance(data, Mapping):
        parts = {split: _content(some, column, f"{where}, {split}") for split, some in data.items()}
        return {split: texts for split, (texts, _) in parts.items()}, dict(
            ChainMap(*(named for _, named in parts.values()))
        )
    if isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
        return _texts(dict(enumerate(data)), column, where, "entry")
    return data, {}


def _assemble(name: str, sides: Mapping[Side, Content], contrast: Mapping[str, Any], seed: int | None) -> ContrastSet:
    notes: list[str] = []
    done: dict[str, dict[str, tuple[str, ...]]] = {}
    categories: dict[str, str] = {}
    for side, (content, named) in sides.items():
        categories |= named
        if isinstance(content, Mapping):
            for split in content:
                one_of(f"prompts: {side} split", split, SPLITS)
            done[side] = {
                split: _ordered(_clean(prompts, f"{side} {split}", name, notes), seed)
                for split, prompts in content.items()
            }
            continue
        prompts = _clean(content, side, name, notes)
        unique = list(dict.fromkeys(prompts))
        if repeats := len(prompts) - len(unique):
            notes.append(f"{repeats} repeated {side} {'prompt was' if repeats == 1 else 'prompts were'} dropped")
        done[side] = split_prompts(unique, seed)
    pairs = {split: _ordered(_pairs(some, split, name), seed) for split, some in contrast.items()}
    found = ContrastSet(name, done["positive"], done["negative"], pairs, tuple(notes))
    return replace(found, notes=(*notes, *found.problems()), categories=categories)


def _ordered(items: Sequence[T], seed: int | None) -> tuple[T, ...]:
    """Shuffled, unless there is no seed."""
    return tuple(items) if seed is None else tuple(random.Random(seed).sample(items, len(items)))


def split_prompts(
    prompts: Sequence[str], seed: int | None = 0, shares: tuple[float, float, float] = SHARES
) -> dict[str, tuple[str, ...]]:
    """Shuffle and split into train, val and test.

    Args:
        prompts: At least three distinct instructions.
        seed: Of the shuffle; None keeps the order.
        shares: Of the three splits; default 0.5, 0.25, 0.25.

    Raises:
        CosmicError: If there are fewer than three prompts.

    Example:
        >>> {split: len(some) for split, some in split_prompts([str(i) for i in range(8)]).items()}
        {'train': 4, 'val': 2, 'test': 2}
    """
    check_texts("prompts", prompts)
    if len(prompts) < 3:
        raise CosmicError(f"prompts: {len(prompts)} cannot be split into train, val and test; give at least 3 per side")
    order = _ordered(prompts, seed)
    val, test = (max(1, round(share * len(order) / sum(shares))) for share in shares[1:])
    train = len(order) - val - test
    return {
        "train": order[:train],
        "val": order[train : train + val],
        "test": order[train + val :],
    }


def _pairs(data: Any, split: str, name: str) -> list[tuple[str, str]]:
    one_of("prompts: contrast split", split, SPLITS)
    found = []
    for number, pair in enumerate(data if isinstance(data, list | tuple) else [data]):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
            raise CosmicError(f"prompts: contrast {split} of {name!r} has no pair of texts at {number}; give pairs")
        found.append((pair[0], pair[1]))
    return found


def _clean(prompts: Any, where: str, name: str, notes: list[str]) -> tuple[str, ...]:
    """Prompts without space around them and without blank ones, with a note of what that changed."""
    check_texts(f"prompts: {where} of {name!r}", prompts)
    for number, prompt in enumerate(prompts):
        if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
            raise CosmicError(
                f"prompts: {where} of {name!r} has half of a surrogate pair at {number}, which is no character; fix it"
            )
    found = tuple(p.strip() for p in prompts if p.strip())
    if not found:
        raise CosmicError(f"prompts: {where} of {name!r} is empty; add prompts")
    if blank := len(prompts) - len(found):
        notes.append(f"{blank} blank {where} {'prompt was' if blank == 1 else 'prompts were'} left out")
    if cut := sum(bool(p.strip()) and p.strip() != p for p in prompts):
        notes.append(f"{cut} {where} {'prompt' if cut == 1 else 'prompts'} had space at an end, which was cut off")
    return found


def _column(rows: Mapping[int, Mapping[str, Any]], column: str | None, where: str, unit: str) -> str:
    if not rows:
        raise CosmicError(f"prompts: {where!r} is empty; add prompts")
    names = list(next(iter(rows.values())))
    if column is None:
        column = next((name for name in COLUMNS if name in names), None)
    if column is None or not any(column in row for row in rows.values()):
        raise CosmicError(f"column: {column!r} is not a text column of {where!r}; it has {', '.join(map(str, names))}")
    for number, row in rows.items():
        if not isinstance(row.get(column), str):
            found = type(row[column]).__name__ if column in row else "nothing"
            raise CosmicError(
                f"column: {column!r} is not a text column of {where!r}: {unit} {number} has {found}; fix it, or name another"
            )
    return column


def _texts(
    rows: Mapping[int, Mapping[str, Any]], column: str | None, where: str, unit: str
) -> tuple[list[str], dict[str, str]]:
    """The prompts of a table, and the categories of those that have one."""
    column = _column(rows, column, where, unit)
    named = {row[column].strip(): str(row["category"]) for row in rows.values() if row.get("category")}
    return [row[column] for row in rows.values()], named


def _read_side(source: Source, side: Side, column: str | None, hf_split: str) -> Content:
    if not isinstance(source, str | Path):
        return _content(source, column, side)
    path = Path(source)
    if path.is_file():
        if path.suffix in (".jsonl", ".csv"):
            return _content(_by_split(read_rows(path), str(path)), column, str(path))
        data = read_json(path) if path.suffix == ".json" else [*numbered_lines(path).values()]
        return _content(data, column, str(path))
    if is_missing_path(str(source), (".txt", ".json", ".jsonl", ".csv")):
        raise CosmicError(f"prompts: no file or directory {str(source)!r}; give the path of a prompt file")
    if column is None and hf_split == "train" and find_prompts(str(source)) and not path.exists():
        return _content(dataset_side(str(source), side).to_dict("records"), "prompt", str(source))
    try:
        data = read_split(str(source), None, hf_split)
    except Exception as error:
        raise CosmicError(
            f"prompts: could not load data set {str(source)!r}, split {hf_split!r} ({first_line(error)}); "
            "give a file, a data set's hub id, or a directory that holds one"
        ) from error
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    return _content(rows, column, str(source))
