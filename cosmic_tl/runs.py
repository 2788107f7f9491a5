"""The main job, into a directory that can be stopped and resumed at any point."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.activations import MeanActivations, class_means
from cosmic_tl.chat import BATCH_SIZE, ChatFormat, chat_notes, post_instruction_positions
from cosmic_tl.directions.artifact import Direction, versions
from cosmic_tl.errors import CosmicError
from cosmic_tl.evaluation.effects import Effects, Kind, Row, measure_effects, standard_conditions, terms_of
from cosmic_tl.evaluation.judges import SubstringJudge, strip_thinking, unfinished_thinking
from cosmic_tl.evaluation.placebos import (
    CALIBRATION,
    Calibration,
    calibrate_placebos,
    calibration_notes,
    placebo_conditions,
)
from cosmic_tl.evaluation.sampling import Sampling
from cosmic_tl.files import append_lines, read_lines, write_atomically
from cosmic_tl.models import model_fingerprint, model_label, short_label
from cosmic_tl.prompts import ContrastSet
from cosmic_tl.report.page import write_report
from cosmic_tl.run_directory import (
    CHOICE,
    RESULTS,
    RESUME,
    RESUME_FILES,
    prepare_directory,
    read_choice,
    read_settings,
    write_choice,
)
from cosmic_tl.selection.by_refusal_tokens import select_by_refusal_tokens
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.modes import PLACEBOS
from cosmic_tl.selection.options import CosmicOptions, RefusalTokenOptions
from cosmic_tl.selection.scores import ScoreKey, parts
from cosmic_tl.selection.table import Selection
from cosmic_tl.similarity import LayerSimilarity, layer_similarities

_SCORES = ("s_comply", "s_refuse", "bypass", "induce", *parts("kl"), "share_comply", "share_refuse")


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's results besides model and prompts."""

    selection: CosmicOptions | RefusalTokenOptions = field(default_factory=CosmicOptions)
    """How the direction is chosen: by COSMIC, or by refusal tokens."""
    chat: ChatFormat = field(default_factory=ChatFormat)
    n_test: int = 100
    """Test prompts per side."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of sampling and of the first placebo; the others count up from it."""
    batch_size: int | None = None
    """Rows a forward pass; changes no result. None: 32 prompts, and in the selection as many as memory allows."""
    phrases: tuple[str, ...] | None = None
    """What a completion has to contain to show the concept, in any case. None: the phrases of refusals."""
    sampling: Sampling = field(default_factory=Sampling)
    """Top-k, top-p and repetition penalty; by default none, whatever the checkpoint's `generation_config` says."""
    n_placebos: int = PLACEBOS
    """Seeds of each kind of placebo (of random removal, which does nothing by construction, one). Completions are made for
    each: with 5 there are 30 sets of them, with 1 there are 10."""

    def __post_init__(self) -> None:
        # Checked before anything is loaded.
        _ = self.judge
        self.sampling.check(self.temperature)
        if self.n_placebos < 1:
            raise CosmicError(f"n_placebos: must be at least 1, found {self.n_placebos}")

    @property
    def seeds(self) -> range:
        """Of the placebos.

        Example:
            >>> list(RunSettings(seed=3, n_placebos=2).seeds)
            [3, 4]
        """
        return range(self.seed, self.seed + self.n_placebos)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, but for the batch size, which changes no result.

        Example:
            >>> RunSettings.from_json(RunSettings(n_test=8).to_json()) == RunSettings(n_test=8)
            True
        """
        asked = asdict(self)
        del asked["batch_size"]
        plain: dict[str, Any] = json.loads(json.dumps(asked, default=dict))
        return plain

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "RunSettings":
        """Settings from what `to_json` gave.

        Raises:
            CosmicError: If there are others among them, some are missing, or a value is none that they can have.

        Example:
            >>> RunSettings.from_json({"n_test": 8})
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: settings: expected chat, max_new_tokens, ..., found n_test; use those of a run ...
        """
        names = {f.name for f in fields(cls)} - {"batch_size"}
        if set(found) != names:
            expected, given = (", ".join(sorted(some)) for some in (names, found))
            raise CosmicError(f"settings: expected {expected}, found {given}; use those of a run of this version")
        values = dict(found)
        chosen = {f.name for f in fields(RefusalTokenOptions)}
        kind = RefusalTokenOptions if set(found["selection"]) == chosen else CosmicOptions
        for name, group in (("selection", kind), ("chat", ChatFormat), ("sampling", Sampling)):
            values[name] = group(**{key: _hashable(value) for key, value in found[name].items()})
        return cls(**{key: _hashable(value) for key, value in values.items()})

    @property
    def judge(self) -> SubstringJudge:
        """Finds the phrases.

        Example:
            >>> [found.verdict for found in RunSettings(phrases=("ahoy",)).judge(["hi"], ["Ahoy!"])]
            ['refusal']
        """
        return SubstringJudge() if self.phrases is None else SubstringJudge(self.phrases)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: what it found, and its files."""

    selection: Selection
    """Without its plan, if it was loaded."""
    effects: Effects
    similarity: LayerSimilarity
    summary: dict[str, Any]
    """As in `summary.json`."""
    out: Path
    """The directory."""
    settings: RunSettings
    identity: dict[str, Any]
    """As in `settings.json`: all that the results depend on."""
    was_complete: bool = False
    """Whether `run` found it finished, and did nothing."""

    @classmethod
    def load(cls, out: str | Path) -> "Run":
        """Read a finished run; needs no model.

        Args:
            out: The directory that `run` (`cosmic-tl run`) wrote.

        Raises:
            CosmicError: If there is no finished run, or a file is damaged or belongs to another run.

        Example:
            >>> Run.load("nowhere")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: run: 'nowhere' holds no run; give a directory that `cosmic-tl run` wrote
        """
        out = Path(out)
        identity = read_settings(out)
        if missing := [name for name in RESULTS if not (out / name).is_file()]:
            raise CosmicError(f"run: {str(out)!r} is not finished (no {missing[0]}); finish it with `cosmic-tl run`")
        name = "settings.json"
        try:
            settings = RunSettings.from_json(identity["settings"])
            name = "summary.json"
            summary = json.loads((out / name).read_text(encoding="utf-8"))
            name = "completions.jsonl"
            rows = read_lines(out / name)
            frame = pd.DataFrame(rows).assign(
                seed=pd.Series([row["seed"] for row in rows], dtype=object)
            )  # None: no NaN
            effects = Effects(frame, terms_of(settings.phrases), summary["generation"])
            _ = effects.table()
            name = "direction.safetensors"
            direction = Direction.load(out / name)
            name = CHOICE
            selection, similarity = read_choice(out, direction, summary, identity)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CosmicError(f"run: {name} in {str(out)!r} is damaged ({said}); run again with --overwrite") from error
        return cls(selection, effects, similarity, summary, out, settings, identity)

    def test_prompts(self, n: int | None = None) -> tuple[list[str], list[str]]:
        """The test prompts of the positive and the negative side, the first `n` of each (default: all).

        Example:
            >>> import tempfile
            >>> from cosmic_tl import load_model, load_prompts
            >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     settings = RunSettings(options, n_test=2, max_new_tokens=4)
            ...     _ = run(load_model("demo", device="cpu"), load_prompts("demo"), folder, settings)
            ...     [len(side) for side in Run.load(folder).test_prompts(1)]
            [1, 1]
        """
        frame = self.effects.completions
        baseline = frame[frame.condition == "baseline"]
        positive, negative = (baseline.prompt[baseline.kind == kind].tolist()[:n] for kind in get_args(Kind))
        return positive, negative

    def __repr__(self) -> str:
        done = "it was complete already, and nothing was changed\n" if self.was_complete else ""
        return f"{self.selection!r}\n{self.effects!r}\n{done}report: {self.out / 'report.html'}"

    def _repr_html_(self) -> str:
        return self.selection._repr_html_() + self.effects._repr_html_()


class _ScoreLog(MutableMapping[ScoreKey, float]):
    """Scores that are on disk as soon as they are known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = {(row["layer"], row["position"], row["measure"]): float(row["value"]) for row in read_lines(path)}

    def __setitem__(self, key: ScoreKey, value: float) -> None:
        self.known[key] = value
        layer, position, measure = key
        append_lines(self.path, [{"layer": layer, "position": position, "measure": measure, "value": value}])

    def __getitem__(self, key: ScoreKey) -> float:
        return self.known[key]

    def __delitem__(self, key: ScoreKey) -> None:
        raise TypeError("scores are only added")

    def __iter__(self) -> Iterator[ScoreKey]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _identity(model: TransformerBridge, prompts: ContrastSet, settings: RunSettings) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    texts = json.dumps([dict(prompts.positive), dict(prompts.negative)], sort_keys=True)
    return {
        "model": model_label(model),
        "fingerprint": model_fingerprint(model),
        "dtype": str(model.cfg.dtype),
        "prompts": {"name": prompts.name, "sha256": hashlib.sha256(texts.encode()).hexdigest()[:16]},
        "settings": settings.to_json(),
        "versions": versions(),
    }


def _means(
    model: TransformerBridge, prompts: ContrastSet, settings: RunSettings, path: Path
) -> tuple[MeanActivations, MeanActivations]:
    options, sides = settings.selection, ("positive", "negative")
    tensors = load_file(path) if path.exists() else {}
    # Without the splits of these seeds they belong to an earlier run, whose scores hold all the same.
    if tensors and all(f"{side}.split.{seed}" in tensors for side in sides for seed in settings.seeds):
        origin = model_fingerprint(model), short_label(model)  # the settings were compared before
        return tuple(  # type: ignore[return-value]
            MeanActivations(
                tensors[f"{side}.pre"],
                tensors[f"{side}.post"],
                int(tensors[f"{side}.n"]),
                *origin,
                {seed: tensors[f"{side}.split.{seed}"] for seed in settings.seeds},
            )
            for side in sides
        )
    positions = post_instruction_positions(model, settings.chat, options.n_positions)
    positive, negative = class_means(
        model,
        prompts.side("positive", "train", options.n_train),
        prompts.side("negative", "train", options.n_train),
        positions,
        settings.chat,
        settings.seeds,
        settings.batch_size or BATCH_SIZE,
    )
    tensors = {}
    for side, means in zip(sides, (positive, negative), strict=True):
        tensors |= {
            f"{side}.pre": means.resid_pre,
            f"{side}.post": means.resid_post,
            f"{side}.n": torch.tensor(means.n),
            **{f"{side}.split.{seed}": split for seed, split in means.splits.items()},
        }
    part = path.with_suffix(".part")
    save_file(tensors, part)
    os.replace(part, path)
    return positive, negative


def _calibrations(
    model: TransformerBridge, prompts: ContrastSet, settings: RunSettings, selection: Selection, path: Path
) -> list[Calibration]:
    """Strengths of the placebos; kept, so that a resumed run goes on with the same ones."""
    if rows := read_lines(path):
        return [Calibration(**row) for row in rows]
    n = min(CALIBRATION, settings.selection.n_val)
    found = calibrate_placebos(
        model,
        prompts.side("positive", "val", n),
        prompts.side("negative", "val", n),
        selection,
        chat=settings.chat,
        seeds=settings.seeds,
        batch_size=settings.batch_size,
    )
    write_atomically(path, "".join(json.dumps(asdict(one)) + "\n" for one in found))
    return found


def _summary(
    identity: dict[str, Any],
    selection: Selection,
    effects: Effects,
    calibrations: list[Calibration],
    notes: list[str],
    seconds: float,
) -> dict[str, Any]:
    table = effects.table()
    rates: dict[str, dict[str, float]] = {"harmful": {}, "harmless": {}}
    intervals: dict[str, dict[str, list[float]]] = {"harmful": {}, "harmless": {}}
    fluency: dict[str, dict[str, dict[str, float]]] = {"harmful": {}, "harmless": {}}
    measures = [name for name in ("cross_entropy", "garbled", "well_formed", "names_topic") if name in table]
    for _, row in table.iterrows():
        name = row.condition.replace(" ", "_")
        rates[row.kind][name] = row.refusal_rate
        intervals[row.kind][name] = [row.low, row.high]
        fluency[row.kind][name] = {m: float(row[m]) for m in measures if row[m] == row[m]}
    winner = selection.winner
    return {
        "model": identity["model"],
        "fingerprint": identity["fingerprint"],
        "prompts": identity["prompts"]["name"],
        "mode": selection.mode,
        "alpha": selection.alpha,
        "induction_layer": selection.edits.layer,
        "induction_tokens": selection.edits.tokens,
        "direction": {"layer": selection.direction.layer, "position": selection.direction.position},
        "method": selection.method,
        "scores": {name: float(winner[name]) for name in _SCORES if name in selection.table}
        | ({"clean_similarity": selection.clean_similarity} if selection.evaluation_layers else {}),
        "evaluation_layers": list(selection.evaluation_layers),
        "filters": [
            {name: None if value != value else value for name, value in row.items()}
            for row in selection.filters.to_dict("records")
        ],
        "rates": rates,
        "intervals": intervals,
        "fluency": fluency,
        "n": {kind: int(table[table.kind == kind].n.max()) for kind in ("harmful", "harmless")},
        "paired": effects.paired_table().to_dict("records"),
        "placebos": [one.as_row() for one in calibrations],
        "shuffled_cosines": {
            str(seed): float(one.unit @ selection.direction.unit)
            for seed, one in selection.candidates.shuffled_directions(selection.direction).items()
        },
        "phrases": identity["settings"]["phrases"],
        "generation": dict(effects.generation),
        "warnings": list(selection.warnings),
        "notes": [*selection.notes, *notes],
        "seconds": round(seconds, 1),
    }


def run(
    model: TransformerBridge,
    prompts: ContrastSet,
    out: str | Path,
    settings: RunSettings | None = None,
    command: str = "",
    overwrite: bool = False,
) -> Run:
    """Find a direction, test it, and write everything into a directory.

    Writes `direction.safetensors`, `selection.safetensors`, `scores.csv`, `completions.jsonl`, `report.html`, `summary.json`
    and `settings.json`. What is done is kept under `resume/`, and the same call goes on from there. A run that is complete is
    read and left as it is (`Run.was_complete`).

    Args:
        model: Any bridge with a tokenizer.
        prompts: The concept's contrast set.
        out: The directory; made if needed.
        settings: Default those of the papers.
        command: How the run was started, for the report.
        overwrite: Replace an earlier run in the same directory, and all that other commands derived from it. If only settings
            differ on which no activation or score depends (thresholds, test prompts, phrases), those are kept.

    Raises:
        NoCandidateError: If the filters leave no candidate.
        CosmicError: If the directory holds something else, or model, prompts and settings do not fit together.

    Example:
        >>> import tempfile
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> settings = RunSettings(options, n_test=2, max_new_tokens=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(load_model("demo", device="cpu"), load_prompts("demo"), folder, settings)
        ...     sorted(path.name for path in result.out.iterdir() if path.is_file())[:3]
        ['completions.jsonl', 'direction.safetensors', 'report.html']
    """
    started = time.perf_counter()
    settings = settings or RunSettings()
    out = Path(out)
    options, chat, judge = settings.selection, settings.chat, settings.judge
    test_positive, test_negative = (prompts.side(side, "test", settings.n_test) for side in ("positive", "negative"))
    notes = [*chat_notes(model, chat), *prompts.notes]
    identity = _identity(model, prompts, settings)
    prepare_directory(out, identity, overwrite)
    if all((out / name).exists() for name in RESULTS):
        with suppress(CosmicError):  # damaged; its results are written again from what is under `resume/`
            return replace(Run.load(out), was_complete=True)
    resume = out / RESUME

    log = _ScoreLog(resume / RESUME_FILES[1])
    if isinstance(options, RefusalTokenOptions):
        selection = select_by_refusal_tokens(
            model, prompts, options, chat, settings.batch_size, log, seeds=settings.seeds
        )
    else:
        # Which prompts are left out is decided by the selection, which then takes the means itself.
        means = None if options.filter_prompts else _means(model, prompts, settings, resume / RESUME_FILES[0])
        selection = select_cosmic(model, prompts, options, chat, settings.batch_size, log, means, settings.seeds)
    calibrations = _calibrations(model, prompts, settings, selection, resume / RESUME_FILES[3])
    notes += calibration_notes(calibrations)
    conditions = [
        *standard_conditions(selection, seed=settings.seed, n_placebos=settings.n_placebos),
        *placebo_conditions(calibrations, selection),
    ]
    effects = measure_effects(
        model,
        test_positive,
        test_negative,
        sorted(conditions, key=lambda one: one.kind),
        chat,
        settings.max_new_tokens,
        settings.temperature,
        settings.seed,
        settings.batch_size or BATCH_SIZE,
        # A condition is one line, so that a stop in mid-write leaves none of it.
        [row for line in read_lines(resume / RESUME_FILES[2]) for row in line["rows"]],
        lambda rows: append_lines(resume / RESUME_FILES[2], [{"rows": rows}]),
        judge,
        settings.sampling,
    )
    if prompts.categories:
        named = effects.completions.prompt.map(prompts.categories)
        effects = replace(effects, completions=effects.completions.assign(category=named.where(named.notna(), None)))
    similarity = layer_similarities(
        model,
        prompts.side("positive", "val", options.n_val),
        prompts.side("negative", "val", options.n_val),
        selection,
        chat=chat,
        n_positions=options.n_positions,
        batch_size=settings.batch_size or BATCH_SIZE,
    )
    if unfinished := sum(map(unfinished_thinking, effects.completions.completion)):
        notes.append(
            f"{unfinished} completions end inside their thinking block and are judged as neither; raise max_new_tokens."
        )
    if thinking := [text for text in effects.completions.completion if strip_thinking(text) != text]:
        notes.append(f"{len(thinking)} completions hold a thinking block; they are judged by what comes after it.")
    summary = _summary(identity, selection, effects, calibrations, notes, time.perf_counter() - started)
    selection.direction.save(out / "direction.safetensors")
    write_choice(out, selection, similarity, identity)
    write_atomically(out / "scores.csv", selection.table.to_csv(index=False))
    frame = effects.completions
    rows: list[Row] = frame.astype(object).where(frame.notna(), None).to_dict("records")  # JSON has no NaN
    write_atomically(out / "completions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(out / "report.html", write_report(selection, effects, similarity, summary, identity, command))
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return Run(selection, effects, similarity, summary, out, settings, identity)
