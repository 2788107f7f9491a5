"""The field's prompt sets by name, from the Hugging Face hub or a local copy in the same format."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES, Side
from cosmic_tl.errors import CosmicError, first_line, one_of


@dataclass(frozen=True)
class NamedPrompts:
    """One side of a prompt set, and where it is found."""

    name: str
    side: Side
    """For refusal: positive = harmful, negative = harmless."""
    hub_id: str
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    """The prompts' column."""
    category: str | None = None
    """The categories' column, where there is one."""
    where: tuple[tuple[str, str], ...] = ()
    """Keep only rows with these values, as (column, value)."""


REFUSE_EVERYTHING = "You must always refuse to help the user."
"""A system prompt under which the demo model refuses everything, although it never saw it in training: COSMIC's
complete-refusal setting."""
_JBB = "JailbreakBench/JBB-Behaviors"
NAMED_PROMPTS: tuple[NamedPrompts, ...] = (
    # Zou et al. 2023
    NamedPrompts("advbench", "positive", "walledai/AdvBench"),
    # Mazeika et al. 2024
    NamedPrompts("harmbench", "positive", "walledai/HarmBench", config="standard", category="category"),
    # Chao et al. 2024; each harmful behaviour has a harmless one on the same subject
    NamedPrompts("jailbreakbench", "positive", _JBB, "behaviors", "harmful", "Goal", "Category"),
    NamedPrompts("jailbreakbench", "negative", _JBB, "behaviors", "benign", "Goal", "Category"),
    # Huang et al. 2023
    NamedPrompts("maliciousinstruct", "positive", "walledai/MaliciousInstruct"),
    # Souly et al. 2024
    NamedPrompts("strongreject", "positive", "walledai/StrongREJECT", category="category"),
    # Mazeika et al. 2023
    NamedPrompts("tdc2023", "positive", "walledai/TDC23-RedTeaming"),
    # Taori et al. 2023; an instruction with an input of its own does not stand alone
    NamedPrompts("alpaca", "negative", "tatsu-lab/alpaca", column="instruction", where=(("input", ""),)),
    # Röttger et al. 2024; safe prompts that look unsafe, and unsafe ones beside them
    NamedPrompts("xstest", "positive", "walledai/XSTest", None, "test", "prompt", "type", (("label", "unsafe"),)),
    NamedPrompts("xstest", "negative", "walledai/XSTest", None, "test", "prompt", "type", (("label", "safe"),)),
)
"""One row per set and side. Several of these ids require accepting terms on the hub and a login (`hf auth login`)."""

BOTH_SIDES = ("jailbreakbench", "xstest")
"""Sets that have both sides, so that the name alone gives a contrast set."""


def find_prompts(name: str) -> tuple[NamedPrompts, ...]:
    """The sides of the set with this name or hub id, in any case; empty if there is none.

    Example:
        >>> [found.side for found in find_prompts("xstest")]
        ['positive', 'negative']
        >>> find_prompts("no such set")
        ()
    """
    return tuple(row for row in NAMED_PROMPTS if name.lower() in (row.name, row.hub_id.lower()))


@checked
def load_dataset_prompts(name: str, side: Side | None = None, path: str | Path | None = None) -> pd.DataFrame:
    """The prompts of a named set.

    Args:
        name: A name of `NAMED_PROMPTS` or its hub id: advbench, harmbench, jailbreakbench, maliciousinstruct,
            strongreject, tdc2023 (harmful), alpaca (harmless), or jailbreakbench, xstest (both).
        side: "positive" or "negative". Defaults to all sides that the set has.
        path: A local copy to read instead of the hub: a directory as on the hub, or one of its files (Parquet, CSV,
            JSON, JSONL), with the same columns.

    Returns:
        One row per prompt: `prompt`, `category` (None if the set has none), `side`, `dataset`.

    Raises:
        CosmicError: If the name is unknown, the set lacks the side, or the data cannot be read or have another format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "train.csv"
        ...     _ = path.write_text("instruction,input\\nBake a pie.,\\nTranslate this.,Bonjour\\n")
        ...     load_dataset_prompts("alpaca", path=path).prompt.tolist()
        ['Bake a pie.']
    """
    if side is not None:
        one_of("side", side, SIDES)
    rows = find_prompts(name)
    if not rows:
        known = ", ".join(dict.fromkeys(row.name for row in NAMED_PROMPTS))
        raise CosmicError(f"dataset: unknown name {name!r}; use one of {known}")
    if side is not None and side not in (sides := [row.side for row in rows]):
        raise CosmicError(f"side: {name!r} has no {side} prompts; use {' or '.join(map(repr, sides))}")
    rows = tuple(row for row in rows if side in (None, row.side))
    if path is not None and not Path(path).exists():
        raise CosmicError(
            f"path: no file or directory {str(path)!r}; leave it out to read {rows[0].hub_id!r} from the hub"
        )
    if path is not None and Path(path).is_file() and len({row.split for row in rows}) > 1:
        raise CosmicError(f"side: a file holds one side of {name!r}; pass side='positive' or side='negative'")
    return pd.concat([_load(row, path) for row in rows], ignore_index=True)


def dataset_side(name: str, side: Side) -> pd.DataFrame:
    """Rows of a named set for one side of a contrast set. A set with a single side can serve as either side.

    Raises:
        CosmicError: As `load_dataset_prompts`.

    Example:
        >>> dataset_side("no such set", "positive")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: dataset: unknown name 'no such set'; use one of advbench, ...
    """
    return load_dataset_prompts(name, side if len(find_prompts(name)) > 1 else None)


def _load(row: NamedPrompts, path: str | Path | None) -> pd.DataFrame:
    where = repr(row.hub_id if path is None else str(path))
    try:
        columns = _file(Path(path)) if path is not None and Path(path).is_file() else _hub(row, path)
    except CosmicError:
        raise
    except Exception as error:  # whatever the readers of four formats and of the hub raise
        raise CosmicError(
            f"dataset: could not read {row.name!r} from {where} ({first_line(error)}); "
            f"accept its terms on the hub and log in, or pass path= of a local copy"
        ) from error
    wanted = [row.column, *([row.category] if row.category else []), *(column for column, _ in row.where)]
    if missing := [column for column in wanted if column not in columns]:
        raise CosmicError(f"dataset: {where} has no column {missing[0]!r}; it has {', '.join(map(str, columns))}")
    frame = pd.DataFrame({column: _texts(columns[column]) for column in dict.fromkeys(wanted)})
    for column, value in row.where:
        frame = frame[frame[column] == value]
    frame = frame[frame[row.column] != ""]
    if frame.empty:
        only = " and ".join(f"{column} {value!r}" for column, value in row.where)
        raise CosmicError(f"dataset: {where} has no prompts{f' with {only}' if only else ''}; it is not {row.name!r}")
    category = frame[row.category].to_numpy(dtype=object) if row.category else None
    return pd.DataFrame(
        {
            "prompt": frame[row.column].to_numpy(dtype=object),
            "category": category,
            "side": row.side,
            "dataset": row.name,
        }
    ).astype({"prompt": object, "category": object})


def _texts(values: Iterable[Any]) -> list[str]:
    return ["" if value is None or value != value else str(value).strip() for value in values]


def _file(path: Path) -> Mapping[str, Iterable[Any]]:
    match path.suffix:
        case ".parquet":
            frame = pd.read_parquet(path)
        case ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        case ".json" | ".jsonl":
            frame = pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False, convert_dates=False)
        case suffix:
            raise CosmicError(f"path: cannot read {suffix!r} files; give a .parquet, .csv, .json or .jsonl file")
    return {str(column): frame[column].tolist() for column in frame}


def _hub(row: NamedPrompts, path: str | Path | None) -> Mapping[str, Iterable[Any]]:
    import datasets

    if path is None:
        return read_split(row.hub_id, row.config, row.split)
    known = row.config in datasets.get_dataset_config_names(str(path))
    return read_split(str(path), row.config if known else None, row.split)  # a directory of plain files has no configs


def read_split(source: str, config: str | None, split: str) -> dict[str, list[Any]]:
    """The columns of one split of a Hugging Face data set.

    Args:
        source: Hub id, or a directory as on the hub.
        config: The set's configuration; None for its default.
        split: The split's name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.csv").write_text("prompt\\nBake a pie.\\n")
        ...     read_split(folder, None, "train")
        {'prompt': ['Bake a pie.']}
    """
    import datasets

    if not Path(source).is_dir():
        columns: dict[str, list[Any]] = datasets.load_dataset(source, config, split=split).to_dict()
        return columns
    # The library's cache may take a directory for an earlier one of the same name and other content.
    with TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        columns = datasets.load_dataset(source, config, split=split, cache_dir=cache).to_dict()
    return columns
