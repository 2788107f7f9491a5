"""The main job, into a directory that can be stopped and resumed at any point."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import RESUME, append_lines, read_lines, write_atomically
from cosmic_tl._util.progress import stage, stages
from cosmic_tl._util.spreading import spread_over
from cosmic_tl._util.versions import versions
from cosmic_tl.backends.ray_backend import RayBackend
from cosmic_tl.data.contrast_set import SIDES, ContrastSet
from cosmic_tl.errors import CosmicError, NoCandidateError
from cosmic_tl.experiments.conditions import Row, standard_conditions
from cosmic_tl.experiments.effects import measure_effects
from cosmic_tl.experiments.known_rows import read_conditions, sort_conditions
from cosmic_tl.experiments.layer_similarity import layer_similarities
from cosmic_tl.experiments.placebos import (
    CALIBRATION,
    Calibration,
    calibrate_placebos,
    calibration_notes,
    placebo_conditions,
)
from cosmic_tl.judges.base import Judge, strip_thinking, unfinished_thinking
from cosmic_tl.model.batching import sizes_kept
from cosmic_tl.model.chat import chat_notes
from cosmic_tl.model.copies import as_loaded
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.report.page import write_report
from cosmic_tl.runs.causes import map_causes
from cosmic_tl.runs.checks import check_run
from cosmic_tl.runs.derived import model_identity, prompts_digest
from cosmic_tl.runs.directory import check_directory, prepare_directory, write_choice
from cosmic_tl.runs.kept_means import kept_means
from cosmic_tl.runs.lock import locked
from cosmic_tl.runs.logs import ProductLog, ScoreLog, SizeLog
from cosmic_tl.runs.piece_table import remove_pieces
from cosmic_tl.runs.pieces import RunPieces
from cosmic_tl.runs.result import Run
from cosmic_tl.runs.run_files import RESULTS, RESUME_FILES
from cosmic_tl.runs.settings import STAGES, RunSettings
from cosmic_tl.runs.summary import summarize
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.null import measure_null
from cosmic_tl.selection.options import RefusalTokenOptions
from cosmic_tl.selection.refusal_tokens import select_by_refusal_tokens
from cosmic_tl.selection.result import Selection


def _identity(
    model: TransformerBridge, prompts: ContrastSet, settings: RunSettings, judge: Judge | None
) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    return {
        **model_identity(model, settings.chat),
        "prompts": {
            "name": prompts.name,
            "sha256": prompts_digest(prompts),
            "labels": None if prompts.labels is None else list(prompts.labels),
        },
        "settings": settings.to_json(),
        **({} if judge is None else {"judge": _name_of(judge)}),
        "versions": versions(),
    }


def _name_of(judge: Judge) -> str:
    """A judge's name, which tells its verdicts from another's."""
    name = getattr(judge, "name", None)
    if not isinstance(name, str) or not name:
        raise CosmicError(
            'judge: it has no name, by which a run tells its verdicts from another judge\'s; set `judge.name = "…"`'
        )
    return name


def _calibrations(
    model: TransformerBridge, prompts: ContrastSet, settings: RunSettings, selection: Selection, path: Path
) -> list[Calibration]:
    """Strengths of the placebos; kept, so that a resumed run goes on with the same ones."""
    if known := read_lines(path, lambda row: Calibration(**row)):
        return known
    n = min(CALIBRATION, settings.selection.n_val)
    found = calibrate_placebos(
        model,
        prompts.sides("val", n),
        selection,
        chat=settings.chat,
        seeds=settings.seeds,
        batch_size=settings.batch_size,
    )
    write_atomically(path, "".join(json.dumps(asdict(one)) + "\n" for one in found))
    return found


@checked
@stages(*STAGES)
def run(
    model: TransformerBridge,
    prompts: ContrastSet,
    out: str | Path,
    settings: RunSettings | None = None,
    *,
    judge: Judge | None = None,
    command: str = "",
    overwrite: bool = False,
    backend: RayBackend | None = None,
) -> Run:
    """Find a direction, test it, and write everything into a directory.

    Writes `direction.safetensors`, `selection.safetensors`, `scores.csv`, `completions.jsonl`, `report.html`, `summary.json`
    and `settings.json`. What is done is kept under `resume/`, and the same call goes on from there. A run that is complete is
    read and left as it is (`Run.was_complete`).

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: The concept's contrast set.
        out: The directory; made if needed.
        settings: Default those of the papers.
        judge: Judges completions in place of the settings' phrases. It needs a `name`, which belongs to what the results
            depend on.
        command: How the run was started, for the report.
        overwrite: Replace an earlier run in the same directory, and all that other commands derived from it. If only settings
            differ on which no activation or score depends (thresholds, test prompts, phrases), those are kept.
        backend: Workers with copies of the model, which share extraction, score passes and completions. Results are the same.
            Default: this process alone.

    Raises:
        NoCandidateError: If the filters leave no candidate.
        CosmicError: If the directory holds something else, or model, prompts and settings do not fit together.

    Example:
        >>> import tempfile
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> settings = RunSettings(options, n_test=2, max_new_tokens=4, n_placebos=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(load_model("demo", device="cpu"), load_prompts("demo"), folder, settings)
        ...     sorted(path.name for path in result.out.iterdir() if path.is_file())[:3]
        ['completions.jsonl', 'direction.safetensors', 'report.html']
    """
    settings = settings or RunSettings()
    out = Path(out)
    if judge is not None and settings.phrases is not None:
        raise CosmicError("judge: found one beside phrases in the settings; give one of them")
    notes = [*chat_notes(model, settings.chat), *prompts.notes]
    identity = _identity(model, prompts, settings, judge)
    check_directory(out, identity, overwrite)
    if not overwrite and (done := _finished(out)) is not None:
        return done
    check_run(model, prompts, settings)
    with locked(out):
        prepare_directory(out, identity, overwrite)
        # Another process may have finished it since.
        if (done := _finished(out)) is not None:
            return done
        if backend is not None:
            backend.model = as_loaded(model)
        pieces = None if backend is None else RunPieces(backend, out)
        with sizes_kept(SizeLog(out / RESUME / RESUME_FILES[5])), spread_over(pieces):
            done = _run(model, prompts, out, settings, judge, command, identity, notes)
        remove_pieces(out)
        return done


def _finished(out: Path) -> Run | None:
    """The run in a directory, if it is complete."""
    if all((out / name).exists() for name in RESULTS):
        with suppress(CosmicError):  # damaged; its results are written again from what is under `resume/`
            return replace(Run.load(out), was_complete=True)
    return None


def _run(
    model: TransformerBridge,
    prompts: ContrastSet,
    out: Path,
    settings: RunSettings,
    judge: Judge | None,
    command: str,
    identity: dict[str, Any],
    notes: list[str],
) -> Run:
    """The stages of a run, each of which takes what is done from `resume/`."""
    started = time.perf_counter()
    options, chat = settings.selection, settings.chat
    resume = out / RESUME

    log, products = ScoreLog(resume / RESUME_FILES[1]), ProductLog(resume / RESUME_FILES[2])
    if isinstance(options, RefusalTokenOptions):
        selection = select_by_refusal_tokens(
            model,
            prompts,
            options,
            chat=chat,
            batch_size=settings.batch_size,
            scores=log,
            products=products,
            seeds=settings.seeds,
        )
    else:
        # Which prompts are left out is decided by the selection, which then takes the means itself.
        means = None if options.filter_prompts else kept_means(model, prompts, settings, resume / RESUME_FILES[0])
        selection = select_cosmic(
            model,
            prompts,
            options,
            chat=chat,
            batch_size=settings.batch_size,
            scores=log,
            products=products,
            means=means,
            seeds=settings.seeds,
        )
    log.sort()  # workers finish in any order
    products.sort()
    if settings.null:
        null_logs = [ScoreLog(resume / RESUME_FILES[number]) for number in (6, 7)]
        try:
            null = measure_null(
                model,
                prompts,
                options,
                n=settings.null,
                chat=chat,
                batch_size=settings.batch_size,
                scores=null_logs[0],
                null_scores=null_logs[1],
            )
            selection = replace(selection, null=null)
        except NoCandidateError:
            notes.append("The null was not measured: on half of the prompts no candidate passes the filters.")
        for some in null_logs:
            some.sort()
    causal = (
        map_causes(model, prompts, settings, selection, resume / RESUME_FILES[8], notes) if settings.causal else None
    )
    stage(STAGES[2])
    calibrations = _calibrations(model, prompts, settings, selection, resume / RESUME_FILES[4])
    notes += calibration_notes(calibrations)
    conditions = [
        *standard_conditions(selection, seed=settings.seed, n_placebos=settings.n_placebos),
        *placebo_conditions(calibrations, selection),
    ]
    stage(STAGES[3])
    conditions.sort(key=lambda one: SIDES.index(one.side))
    own = [(one.side, one.name, one.seed) for one in conditions]
    known = read_conditions(
        resume / RESUME_FILES[3],
        dict(zip(SIDES, prompts.sides("test", settings.n_test), strict=True)),
        ("condition", "seed"),
        belongs=lambda *condition: condition in own,
    )
    effects = measure_effects(
        model,
        prompts,
        n=settings.n_test,
        conditions=conditions,
        chat=chat,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        batch_size=settings.batch_size,
        known=known,
        on_rows=lambda rows: append_lines(resume / RESUME_FILES[3], [{"rows": rows}]),
        judge=judge or settings.judge,
        sampling=settings.sampling,
    )
    sort_conditions(resume / RESUME_FILES[3], own)
    if prompts.categories:
        named = effects.completions.prompt.map(prompts.categories)
        effects = replace(effects, completions=effects.completions.assign(category=named.where(named.notna(), None)))
    stage(STAGES[4])
    similarity = layer_similarities(
        model,
        prompts.sides("val", options.n_val),
        selection,
        chat=chat,
        n_positions=options.n_positions,
        batch_size=settings.batch_size,
    )
    if unfinished := sum(map(unfinished_thinking, effects.completions.completion)):
        notes.append(
            f"{unfinished} completions end inside their thinking block and are judged as neither; raise max_new_tokens."
        )
    if thinking := [text for text in effects.completions.completion if strip_thinking(text) != text]:
        notes.append(f"{len(thinking)} completions hold a thinking block; they are judged by what comes after it.")
    summary = summarize(identity, selection, effects, calibrations, causal, notes, time.perf_counter() - started)
    selection.direction.save(out / "direction.safetensors")
    causal = causal and replace(causal, terms=effects.terms)
    write_choice(out, selection, similarity, causal, identity)
    write_atomically(out / "scores.csv", selection.table.to_csv(index=False, lineterminator="\n"))
    frame = effects.completions
    rows: list[Row] = frame.astype(object).where(frame.notna(), None).to_dict("records")  # JSON has no NaN
    write_atomically(out / "completions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(
        out / "report.html", write_report(selection, effects, similarity, summary, identity, command, causal)
    )
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return Run(selection, effects, similarity, summary, out, settings, identity, causal)
