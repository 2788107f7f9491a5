"""Commands that edit with a run's direction: steer, sweep, orthogonalize."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cosmic_tl.cli.options import (
    BatchSize,
    GenerationOptions,
    MaxNewTokens,
    Overwrite,
    RunOptions,
    Seed,
    grouped,
    numbers,
)
from cosmic_tl.cli.output import print_frame, printable
from cosmic_tl.errors import CosmicError

if TYPE_CHECKING:
    from cosmic_tl.interventions.edits import Interventions


@grouped
def steer(
    run: RunOptions,
    prompt: Annotated[str, typer.Argument(help="An instruction.")],
    generation: GenerationOptions,
    alpha: Annotated[
        float | None, typer.Option(help="Strength; without it both removal and the run's own induction are shown.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Complete a prompt with and without the direction of a run."""
    from cosmic_tl.generation.completions import complete

    edits, chat, sampling = run.edits, run.chat(), generation.sampling()
    bridge, direction = run.load()
    strength = edits.alpha if alpha is None else alpha
    answers: dict[str, Any] = {"without": ()}
    if alpha is None:
        answers[f"removal ({edits.mode})"] = edits.removal(direction)
    answers[f"induction ({edits.mode}, alpha {strength:g})"] = edits.induction(direction, strength)
    for name, interventions in answers.items():
        text = complete(
            bridge,
            [prompt],
            interventions,
            chat=chat,
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            seed=seed,
            sampling=sampling,
        )[0]
        typer.echo(f"[{name}]\n{printable(text)}\n")


@grouped
def orthogonalize(
    run: RunOptions,
    out: Annotated[Path, typer.Option(help="Directory for the edited model.")],
    strength: Annotated[float, typer.Option(help="1 takes the direction out whole.")] = 1.0,
    layers: Annotated[str | None, typer.Option(help="Blocks to edit, as 3,4; default: all, and embeddings.")] = None,
    norm_preserving: Annotated[bool, typer.Option("--norm-preserving", help="Keep each vector's norm.")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Allow architectures where it cannot equal ablation.")
    ] = False,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    n_test: Annotated[
        int, typer.Option(help="The run's positive test prompts that the edited model is measured on; 0: none.")
    ] = 16,
    max_new_tokens: MaxNewTokens = 64,
    batch_size: BatchSize = None,
    overwrite: Overwrite = False,
) -> None:
    """Take the direction out of the weights, and save a Hugging Face checkpoint that needs no hooks.

    Weight orthogonalization is directional ablation. The edited model's refusals are counted beside those of the unedited
    model and of the run's own removal.
    """
    import pandas as pd

    from cosmic_tl.experiments.conditions import terms_of
    from cosmic_tl.export.checkpoint import save_checkpoint
    from cosmic_tl.generation.completions import complete
    from cosmic_tl.interventions.modes import removal
    from cosmic_tl.interventions.orthogonalize import orthogonalize_weights
    from cosmic_tl.metrics.rates import rate
    from cosmic_tl.model.batching import BATCH_SIZE

    try:
        blocks = None if layers is None else [int(part) for part in layers.split(",")]
    except ValueError as error:
        raise CosmicError(f"layers: expected numbers like 3,4, found {layers!r}") from error
    if run.directory.resolve().is_relative_to(out.resolve()):
        raise CosmicError(f"out: {str(out)!r} holds the run itself; choose another directory")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise CosmicError(f"out: {str(out)!r} is not empty; choose another directory or pass --overwrite")
    if n_test < 0:
        raise CosmicError(f"n_test: must be at least 0, found {n_test}")
    mode, chat, judge = run.mode, run.chat(), run.run.settings.judge
    prompts = run.test_prompts(n_test)[0] if n_test else []
    bridge, direction = run.load()

    def measured(name: str, edits: "Interventions") -> dict[str, Any]:
        texts = complete(
            bridge,
            prompts,
            edits,
            chat=chat,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size or BATCH_SIZE,
            label=name,
        )
        found = rate(sum(one.verdict == "refusal" for one in judge(prompts, texts)), len(texts))
        share = terms_of(judge.phrases).rate
        return {"condition": name, "n": found.n, share: found.value, "low": found.low, "high": found.high}

    rates: list[dict[str, Any]] = []
    if n_test:
        rates = [measured("baseline", ()), measured(f"removal ({mode})", removal(direction, mode))]
    edit = orthogonalize_weights(
        bridge, direction, strength=strength, layers=blocks, norm_preserving=norm_preserving, approximate=approximate
    )
    save_checkpoint(bridge, out, edit, max_shard_size=max_shard_size, overwrite=overwrite)
    typer.echo(f"{edit}\nSaved in {out}")
    if mode == "affine":
        typer.echo(
            "Note: the run evaluated removal by ACE (affine mode); weight orthogonalization is directional ablation, another "
            "edit of the same direction."
        )
    if n_test:
        print_frame(pd.DataFrame([*rates, measured("orthogonalized", ())]))
    else:
        typer.echo("The edited model was not measured (--n-test 0).")


@grouped
def sweep(
    run: RunOptions,
    generation: GenerationOptions,
    alphas: Annotated[str, typer.Option(help="Strengths, as -0.5,0,0.5,1.")] = "-0.5,0,0.25,0.5,0.75,1,1.5,2",
    n_test: Annotated[int, typer.Option(help="Test prompts per side, from the run.")] = 32,
    n_samples: Annotated[int, typer.Option(help="Completions a prompt, with a temperature above 0.")] = 1,
    seed: Seed = 0,
    batch_size: BatchSize = None,
) -> None:
    """Refusals against alpha for addition, ablation + addition and ACE; writes sweep.csv and sweep.html into the run.

    A sweep that was stopped goes on where it was; strengths that an earlier one measured under the same settings are not
    measured again.
    """
    from cosmic_tl._util.files import append_lines, read_lines
    from cosmic_tl.experiments.sweeps import BASELINE
    from cosmic_tl.experiments.sweeps import sweep as sweep_all
    from cosmic_tl.metrics.refusal_score import find_refusal_tokens
    from cosmic_tl.model.batching import BATCH_SIZE
    from cosmic_tl.report.experiment_pages import write_sweep
    from cosmic_tl.runs.derived import derivation, digest

    strengths, sampling = numbers("alphas", alphas), generation.sampling()
    positive, negative = run.test_prompts(n_test)
    chat, judge = run.chat(), run.run.settings.judge
    bridge, direction = run.load()
    made = derivation(
        run.directory,
        "sweep",
        direction,
        bridge,
        chat=asdict(chat),
        prompts=digest([positive, negative]),
        phrases=judge.phrases,
        n_samples=n_samples,
        generation=asdict(generation),
        seed=seed,
        alphas=strengths,
    )
    log = made.part(".jsonl", "alphas")
    known = [row for line in read_lines(log) for row in line["rows"]]
    try:
        tokens = find_refusal_tokens(bridge, (positive, negative), chat=chat, batch_size=batch_size or BATCH_SIZE)
    except CosmicError as error:
        typer.echo(f"Note: no refusal scores ({printable(str(error))})", err=True)
        tokens = None
    found = sweep_all(
        bridge,
        (positive, negative),
        direction,
        alphas=strengths,
        tokens=tokens,
        chat=chat,
        n_samples=n_samples,
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        seed=seed,
        batch_size=batch_size,
        known=[row for row in known if row["method"] == BASELINE[0] or row["alpha"] in strengths],
        on_rows=lambda rows: append_lines(log, [{"rows": rows}]),
        judge=judge,
        sampling=sampling,
    )
    table = found.table
    page = write_sweep(found, run.run.summary, run=str(run.directory), command=shlex.join(["cosmic-tl", *sys.argv[1:]]))
    made.write({"sweep.csv": table.to_csv(index=False), "sweep.html": page})
    print_frame(table[["method", "alpha", "side", "rate", "low", "high", "garbled", "cross_entropy"]])
    typer.echo("Non-monotonic in alpha:" if len(uneven := found.non_monotonic()) else "Monotonic in alpha.")
    if len(uneven):
        print_frame(uneven)
    typer.echo(f"Open {run.directory / 'sweep.html'}")


COMMANDS = (steer, sweep, orthogonalize)
