"""The tables of a study from the directories of its runs; needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.conditions import CONCEPT, REFUSAL, Terms
from cosmic_tl.experiments.study_result import EDITS, RUN, StudyResult
from cosmic_tl.runs.result import Run
from cosmic_tl.runs.run_files import RESULTS
from cosmic_tl.studies.record import RUNS, Entry, Record, read_record

Row = dict[str, Any]
_RATES = ("n", "rate", "low", "high", "seeds", "placebo_low", "placebo_high", "garbled", "cross_entropy", "kl")
_SCORES = ("score", "s_comply", "s_refuse", "bypass", "induce", "kl")
_CHOICE = (
    "method",
    "mode",
    "layer",
    "position",
    "token",
    "depth",
    *_SCORES,
    "stability",
    "null_p",
    "n_layers",
    "d_model",
)
_TOOK = ("dtype", "seconds", "memory_gb", "gpu_gb", "folder", "problem")
_CELLS = ("run", "layer", "position", "token", "score", "kl", "kept", "chosen")
_PUBLISHED = ("model", "settings", "measure", "published", "source", "run", "ours")
NOT_YET = "not finished yet"


@checked
def load_study(out: str | Path) -> StudyResult:
    """What the study in a directory has found so far; needs no model.

    Args:
        out: The directory that `run_study` (`cosmic-tl study`) wrote.

    Raises:
        CosmicError: If there is no study.

    Example:
        >>> load_study("nowhere")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: study: 'nowhere' holds no study; give a directory that `cosmic-tl study` wrote
    """
    return collect(Path(out), read_record(Path(out)))


def collect(out: Path, record: Record) -> StudyResult:
    """The tables of the runs that a record asks for.

    Args:
        out: The study's directory.
        record: From `read_record`.

    Example:
        >>> collect(Path("nowhere"), Record("none", ())).selections.empty
        True
    """
    labels = _labels(record.asked)
    rates: list[Row] = []
    selections: list[Row] = []
    scores: list[pd.DataFrame] = []
    terms: list[Terms] = []
    for entry, label in zip(record.asked, labels, strict=True):
        place = {"run": label, **{name: getattr(entry, name) for name in RUN[1:]}}
        took = {"memory_gb": entry.memory_gb, "gpu_gb": entry.gpu_gb, "folder": entry.folder}
        found, problem = (None, entry.problem) if entry.problem else _load(out / RUNS / entry.folder)
        if found is None:
            rates.append({**place, "side": "", "condition": "", "problem": problem})
            selections.append({**place, **took, "problem": problem})
            continue
        terms.append(found.effects.terms)
        rates += [{**place, **row, "problem": ""} for row in _rates(found)]
        selections.append({**place, **_choice(found), **took, "problem": ""})
        scores.append(_scores(found).assign(run=label)[list(_CELLS)])
    table = _frame(rates, (*RUN, "side", "condition", *_RATES, "problem"))
    result = StudyResult(
        record.name,
        table,
        _frame(selections, (*RUN, *_CHOICE, *_TOOK)),
        pd.concat(scores, ignore_index=True) if scores else pd.DataFrame(columns=list(_CELLS)),
        pd.DataFrame(columns=list(_PUBLISHED)),
        _common(terms),
        _others(out, record),
    )
    return replace(result, published=_published(result, record))


def _common(terms: Sequence[Terms]) -> Terms:
    """What all runs call their sides and what is counted, as far as they agree."""
    if not terms or all(one == terms[0] for one in terms):
        return terms[0] if terms else REFUSAL
    same = all((one.outcome, one.rate) == (terms[0].outcome, terms[0].rate) for one in terms)
    return replace(terms[0], sides=CONCEPT.sides) if same else CONCEPT


def _labels(entries: Sequence[Entry]) -> list[str]:
    """Names of the runs: the model, and what else tells them apart."""
    differing = [name for name in RUN[2:] if len({getattr(one, name) for one in entries}) > 1]
    shown = {"seed": "seed {}", "alpha": "α {:g}"}
    return [
        ", ".join(
            [one.model]
            + [shown.get(name, "{}").format(value) for name in differing if (value := getattr(one, name)) is not None]
        )
        for one in entries
    ]


def _load(folder: Path) -> tuple[Run | None, str]:
    if not all((folder / name).is_file() for name in RESULTS):
        return None, NOT_YET
    try:
        return Run.load(folder), ""
    except CosmicError as error:
        return None, str(error)


def _rates(found: Run) -> list[Row]:
    """The rows of a run's effects, and beside removal and induction the range of their placebos."""
    by_seed = found.effects.by_seed()
    rows = []
    for row in found.effects.table.to_dict("records"):
        edit = EDITS[row["side"]]
        if row["condition"] == edit:
            others = by_seed[(by_seed.side == row["side"]) & ~by_seed.condition.isin(["baseline", edit])].rate
            row |= {"placebo_low": others.min(), "placebo_high": others.max()} if len(others) else {}
        if row["condition"] == "removal":
            row["kl"] = float(found.selection.winner.kl)
        rows.append({name: row[name] for name in ("side", "condition", *_RATES) if name in row})
    return rows


def _choice(found: Run) -> Row:
    selection = found.selection
    n_layers, _, d_model = selection.candidates.vectors.shape
    winner, place = selection.winner, selection.direction
    null = selection.null
    return {
        "method": selection.method,
        "mode": selection.mode,
        "layer": place.layer,
        "position": place.position,
        "token": selection.positions.labels[place.position],
        "depth": place.layer / n_layers,
        **{name: float(winner[name]) for name in _SCORES if name in winner.index},
        "stability": None if selection.stability is None else selection.stability.wins,
        "null_p": None if null is None else float(null.table.p_value.max()),
        "n_layers": n_layers,
        "d_model": d_model,
        "dtype": found.identity["dtype"].removeprefix("torch."),
        "seconds": found.summary["seconds"],
    }


def _scores(found: Run) -> pd.DataFrame:
    selection = found.selection
    table = selection.table[["layer", "position", "score", "kl", "kept"]].copy()
    table["token"] = [selection.positions.labels[one] for one in table.position]
    chosen = (table.layer == selection.direction.layer) & (table.position == selection.direction.position)
    return table.assign(chosen=chosen)


def _others(out: Path, record: Record) -> tuple[str, ...]:
    runs, asked = out / RUNS, {one.folder for one in record.asked}
    if not runs.is_dir():
        return ()
    return tuple(sorted(one.name for one in runs.iterdir() if one.is_dir() and one.name not in asked))


def _published(result: StudyResult, record: Record) -> pd.DataFrame:
    """Published figures, each beside what every run of its model found."""
    done = result.selections[result.selections.problem == ""]
    rates = result.rates
    if len(rates):
        done = done.merge(rates.drop(columns=list(RUN[1:])), on="run", how="left")
    rows: list[Row] = []
    for one in record.published:
        row = {"model": one["model"], "settings": one["settings"], "measure": one["measure"]}
        row |= {"published": float(one["value"]), "source": one["source"]}
        mine = done[done.model == one["model"]]
        if one["settings"] is not None:
            mine = mine[mine.settings == one["settings"]]
        known = one["measure"] in mine
        rows += [
            {**row, "run": run["run"], "ours": run[one["measure"]] if known else None}
            for run in mine.to_dict("records")
        ] or [row]
    return _frame(rows, _PUBLISHED)


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows with all columns in order, numbers as numbers also where some are missing."""
    frame = pd.DataFrame(list(rows), columns=list(columns))
    whole = [name for name in ("seed", "n", "seeds", "layer", "position", "n_layers", "d_model") if name in frame]
    parts = {
        *_RATES,
        *_SCORES,
        "depth",
        "stability",
        "null_p",
        "alpha",
        "seconds",
        "memory_gb",
        "gpu_gb",
        "published",
        "ours",
    }
    frame = frame.astype({name: float for name in columns if name in parts and name not in whole})
    return frame.astype(dict.fromkeys(whole, "Int64"))
