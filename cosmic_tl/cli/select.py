"""Commands that begin with a model: run, plan, compare, variants, sensitivity, two-rounds, check."""

import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cosmic_tl._util.displays import number
from cosmic_tl._util.progress import LOADING
from cosmic_tl.cli.derive import derived
from cosmic_tl.cli.options import TESTING, DataOptions, ModelOptions, WorkerOptions, check_paths, generation
from cosmic_tl.cli.output import print_frame, print_result, say, write_csv
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.options import ChatFormat
from cosmic_tl.runs.settings import STAGES, RunSettings
from cosmic_tl.selection.options import CosmicOptions, RefusalTokenOptions

if TYPE_CHECKING:
    from cosmic_tl.data.contrast_set import ContrastSet
    from cosmic_tl.model.load import TransformerBridge

_WEAK = CosmicOptions(exclude_first_half=True)


@derived(LOADING, *STAGES)
def run(
    model: ModelOptions,
    data: DataOptions,
    settings: RunSettings,
    sharing: WorkerOptions,
    *,
    out: Path = Path("cosmic-run"),
    overwrite: bool = False,
) -> None:
    """Find a direction, remove and induce it, and write a report.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        out: Directory for the results.
        overwrite: Replace an earlier run in the directory that had other settings.
    """
    contrast = data.load()  # before the imports that take seconds
    # A complete run is read, and nothing is shared.
    done = (out / "summary.json").exists() and not overwrite
    backend = sharing.backend(model.model, **model.how()) if sharing.workers and not done else None
    with backend or nullcontext():  # workers load their models while this process loads its own
        bridge = model.load()
        from cosmic_tl.runs.job import run as run_all

        if settings.null and isinstance(settings.selection, CosmicOptions) and not (out / "summary.json").exists():
            _say_cost_of_null(bridge, contrast, settings, settings.selection)

        command = shlex.join(["cosmic-tl", *sys.argv[1:]])
        found = run_all(bridge, contrast, out, settings, command=command, overwrite=overwrite, backend=backend)
    print_result(found)


def _say_cost_of_null(
    bridge: "TransformerBridge", contrast: "ContrastSet", settings: RunSettings, options: CosmicOptions
) -> None:
    from cosmic_tl.selection.cosmic import plan_selection

    found = plan_selection(bridge, contrast, options, chat=settings.chat)
    null, own = number(found.null_macs(settings.null) / 1e9), number(found.macs / 1e9)
    say(f"The null takes up to {null} GMACs, the selection {own}.", file=sys.stderr)


@derived(LOADING)
def plan(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatFormat,
    options: CosmicOptions,
    *,
    probe: bool = True,
    weights: bool = True,
    workers: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Print the passes that a COSMIC selection would make and skip, what they cost, and the time and memory that it takes.

    Takes the options that `run` has for COSMIC. Without --evaluation-layers the last layer is assumed, which is the most
    expensive. A directory with config.json and a tokenizer, and no weights, is planned on paper: memory, and no time.

    Args:
        probe: Time some of the model's own passes, about ten seconds, and predict seconds from them.
        weights: Load the model's weights. Without them a model is planned on paper, and a hub id downloads none.
        workers: Also say how long as many such processes would take together.
        batch_size: Rows (prompts times candidates) per forward pass. By default it follows the available memory.
    """
    check_count("workers", workers)
    check_count("batch_size", batch_size)
    contrast = data.load()
    started = time.perf_counter()
    bridge, on_paper = model.load_for_plan(weights)
    start = time.perf_counter() - started
    if on_paper:
        say("Planned on paper: no weights are loaded, and all shortcuts are taken to hold.")
    from cosmic_tl.selection.cosmic import plan_selection

    found = plan_selection(bridge, contrast, options, chat=chat, batch_size=batch_size, probe=probe and not on_paper)
    say(found)
    if workers is None or found.forecast is None:
        return
    alone, together = found.forecast.seconds, found.forecast.with_workers(workers, start)
    if alone is None or together is None:
        raise CosmicError(
            "workers: nothing is known of time without a probe; give a model with weights, and no --no-probe"
        )
    say(
        f"With {workers} workers about {number(together)} s, with one process {number(alone + start)} s, both with the "
        f"{number(start)} s that loading the model took. Assumed: each worker computes as fast as this process does now, alone "
        "on its cores or device; each makes the clean passes that it needs, and divergences are made one after another. All "
        "copies of the model, that of the process that shares among them, take about "
        f"{number((workers + 1) * found.forecast.memory.total / 1e9)} GB."
    )


@derived(LOADING, "selection by COSMIC", "selection by refusal tokens", "completions")
def compare(
    model: ModelOptions,
    data: DataOptions,
    cosmic: CosmicOptions,
    refusal_tokens: RefusalTokenOptions,
    chat: ChatFormat,
    settings: Annotated[RunSettings, TESTING],
    *,
    csv: Path | None = None,
) -> None:
    """Choose by COSMIC and by refusal tokens, and tabulate where the two agree and what their directions do.

    Args:
        csv: Also write the table to this file.
    """
    check_paths(csv)
    contrast = data.load()
    bridge = model.load()
    from cosmic_tl.experiments.comparison import compare_selections

    found = compare_selections(
        bridge,
        contrast,
        cosmic=cosmic,
        refusal_tokens=refusal_tokens,
        chat=chat,
        n_test=settings.n_test,
        batch_size=settings.batch_size,
        **generation(settings),
    )
    print_frame(found.table)
    for remark in found.remarks:
        say(remark)
    write_csv(found.table, csv)


@derived(LOADING)
def variants(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatFormat,
    options: CosmicOptions,
    *,
    folds: int = 0,
    resume: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Select under each of COSMIC's variants of layer ranking and target, and tabulate what each chooses.

    Args:
        folds: Instead, select under the same settings on all training prompts, on either half, and without each of this many
            folds; 0 for the variants.
        resume: Directory that keeps what is done, from which the same command goes on when it was stopped.
        csv: Also write the table to this file.
    """
    check_paths(csv, resume=resume)
    contrast = data.load()
    bridge = model.load()
    from cosmic_tl.experiments.variants import compare_training_folds, compare_variants, standard_variants
    from cosmic_tl.runs.kept import kept_scores
    from cosmic_tl.selection.cosmic import plan_selection

    if folds:
        cost = plan_selection(bridge, contrast, options, chat=chat).macs / 1e9
        say(f"{3 + folds} selections of up to {number(cost)} GMACs, and their KL passes")
    with kept_scores(resume, "variants", bridge, chat) as keep:
        if folds:
            found = compare_training_folds(bridge, contrast, options, n_folds=folds, chat=chat, keep=keep)
        else:
            found = compare_variants(bridge, contrast, standard_variants(options), chat=chat, keep=keep)
    print_frame(found.table)
    write_csv(found.table, csv)


@derived(LOADING)
def sensitivity(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatFormat,
    options: CosmicOptions,
    *,
    resume: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Tabulate what COSMIC chooses under other shares of evaluation layers, targets, positions and numbers of validation prompts.

    All from one set of passes, up to the highest layer that any of these settings reads.

    Args:
        resume: Directory that keeps what is done, from which the same command goes on when it was stopped.
        csv: Also write the table to this file.
    """
    check_paths(csv, resume=resume)
    contrast = data.load()
    bridge = model.load()
    from cosmic_tl.experiments.sensitivity import measure_sensitivity
    from cosmic_tl.runs.kept import kept_scores

    with kept_scores(resume, "sensitivity", bridge, chat) as keep:
        found = measure_sensitivity(bridge, contrast, options, chat=chat, keep=keep)
    print_frame(found.table)
    write_csv(found.table, csv)


@derived(LOADING, "first round", "second round", "completions")
def two_rounds(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatFormat,
    settings: Annotated[RunSettings, TESTING],
    options: CosmicOptions = _WEAK,
    *,
    edit: Literal["amplification", "affine", "ace"] = "amplification",
    alphas: tuple[float, ...] = (1.0, 2.0, 3.0),
    csv: Path | None = None,
) -> None:
    """Restore refusal in a weakly aligned model: find a direction, find another under it, and sweep the strength.

    Args:
        edit: What strengthens the concept. amplification: add the direction in proportion to how much of it is there.
            affine: ACE, as in the paper's released code; ace is accepted for it.
        alphas: Strengths, such as 0,0.5,1.
        csv: Also write the table to this file.
    """
    check_paths(csv)
    contrast = data.load()
    bridge = model.load()
    from cosmic_tl.experiments.weak_alignment import two_rounds as both_rounds

    found = both_rounds(
        bridge,
        contrast,
        options,
        chat=chat,
        alphas=alphas,
        edit=edit,
        n=settings.n_test,
        batch_size=settings.batch_size,
        **generation(settings),
    )
    say(found)
    write_csv(found.table, csv)


@derived(LOADING)
def check(model: ModelOptions, data: DataOptions, chat: ChatFormat, *, n: int = 4) -> int:
    """Check positions, activations, scores, edits, completions, memory and speed on a model; exit code 1 if one fails.

    Args:
        n: Prompts per side.
    """
    contrast = data.load()
    bridge = model.load()
    from cosmic_tl.check.model_check import check_model

    found = check_model(bridge, contrast, chat=chat, n=n, on_check=lambda one: say(one))
    say("All checks hold." if found.ok else "Some checks FAILED: do not rely on results of this model.")
    return 0 if found.ok else 1


COMMANDS = (run, plan, compare, variants, sensitivity, two_rounds, check)
