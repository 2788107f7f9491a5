"""Commands that edit with a run's direction: steer, sweep, calibrate, orthogonalize."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only, derived
from cosmic_tl.cli.options import GENERATION, TESTING, RunOptions, generation
from cosmic_tl.cli.output import print_frame, say
from cosmic_tl.errors import CosmicError, check_alphas
from cosmic_tl.export.folder import check_folder
from cosmic_tl.runs.settings import RunSettings

if TYPE_CHECKING:
    from cosmic_tl.interventions.edits import Interventions

_SWEEP = RunSettings(n_test=32)


@derived(LOADING, "completions")
def steer(
    source: RunOptions, prompt: str, settings: Annotated[RunSettings, GENERATION], *, alpha: float | None = None
) -> None:
    """Complete a prompt with and without the direction of a run.

    Args:
        prompt: An instruction.
        alpha: Strength of the induction. By default both removal and the run's own induction are shown.
    """
    run = source.run
    bridge, direction = source.load()
    from cosmic_tl.generation.completions import complete

    stage("completions")
    edits = run.selection.edits
    strength = edits.alpha if alpha is None else alpha
    answers: dict[str, Any] = {"without": ()}
    if alpha is None:
        answers[f"removal ({edits.mode})"] = edits.removal(direction)
    answers[f"induction ({edits.mode}, alpha {strength:g})"] = edits.induction(direction, strength)
    for name, interventions in answers.items():
        text = complete(bridge, [prompt], interventions, chat=run.settings.chat, **generation(settings))[0]
        say(f"[{name}]\n{text}\n")


@derived(LOADING, "completions before the edit", "weights", "completions after the edit")
def orthogonalize(
    source: RunOptions,
    settings: Annotated[RunSettings, Only(("max_new_tokens", "batch_size"))],
    *,
    out: Path,
    strength: float = 1.0,
    layers: tuple[int, ...] | None = None,
    norm_preserving: bool = False,
    approximate: bool = False,
    max_shard_size: str = "5GB",
    n_test: int = 16,
    overwrite: bool = False,
) -> None:
    """Take the direction out of the weights, and save a Hugging Face checkpoint that needs no hooks.

    Weight orthogonalization is directional ablation. The edited model's refusals are counted beside those of the unedited
    model and of the run's own removal.

    Args:
        out: Directory for the edited model.
        strength: Share of the direction to take out; 1 is all of it.
        layers: Blocks to edit, such as 3,4. By default all of them, and the embeddings.
        norm_preserving: Keep the norm of each weight vector.
        approximate: Allow architectures for which it cannot equal ablation.
        max_shard_size: Size of the largest file of weights.
        n_test: The run's positive test prompts on which the edited model is measured; 0 for none.
        overwrite: Replace the checkpoint in the directory; other files in it are never touched.
    """
    if source.directory.resolve().is_relative_to(out.resolve()):
        raise CosmicError(f"out: {str(out)!r} holds the run itself; choose another directory")
    check_folder("out", out, overwrite)
    if n_test < 0:
        raise CosmicError(f"n_test: must be at least 0, found {n_test}")
    run = source.run
    prompts = run.test_prompts(n_test)[0] if n_test else []
    bridge, direction = source.load()
    import pandas as pd

    from cosmic_tl.experiments.conditions import terms_of
    from cosmic_tl.export.checkpoint import save_checkpoint
    from cosmic_tl.generation.completions import complete
    from cosmic_tl.interventions.modes import removal
    from cosmic_tl.interventions.orthogonalize import orthogonalize_weights
    from cosmic_tl.metrics.rates import rate

    mode, judge = run.selection.mode, run.judge

    def measured(name: str, edits: "Interventions") -> dict[str, Any]:
        texts = complete(
            bridge,
            prompts,
            edits,
            chat=run.settings.chat,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            label=name,
        )
        found = rate(sum(one.verdict == "refusal" for one in judge(prompts, texts)), len(texts))
        share = terms_of(judge.phrases).rate
        return {"condition": name, "n": found.n, share: found.value, "low": found.low, "high": found.high}

    rates: list[dict[str, Any]] = []
    if n_test:
        stage("completions before the edit")
        rates = [measured("baseline", ()), measured(f"removal ({mode})", removal(direction, mode))]
    stage("weights")
    edit = orthogonalize_weights(
        bridge, direction, strength=strength, layers=layers, norm_preserving=norm_preserving, approximate=approximate
    )
    save_checkpoint(bridge, out, edit, max_shard_size=max_shard_size, overwrite=overwrite)
    if n_test:
        stage("completions after the edit")
        rates.append(measured("orthogonalized", ()))
    say(edit)
    if mode == "affine":
        say(
            "Note: the run evaluated removal by ACE (affine mode); weight orthogonalization is directional ablation, another "
            "edit of the same direction."
        )
    if n_test:
        print_frame(pd.DataFrame(rates))
    else:
        say("The edited model was not measured (--n-test 0).")
    say(f"Saved in {out}")


@derived(LOADING, "refusal tokens", "completions")
def sweep(
    source: RunOptions,
    settings: Annotated[RunSettings, TESTING] = _SWEEP,
    *,
    alphas: tuple[float, ...] = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    n_samples: int = 1,
) -> None:
    """Refusals against alpha for addition, ablation + addition and ACE; writes sweep.csv and sweep.html into the run.

    A sweep that was stopped goes on where it was; strengths that an earlier one measured under the same settings are not
    measured again.

    Args:
        alphas: Strengths, such as 0,0.5,1.
        n_samples: Completions per prompt, with a temperature above 0.
    """
    run = source.run
    prompts = run.test_prompts(settings.n_test)
    bridge, direction = source.load()
    from cosmic_tl._util.files import append_lines
    from cosmic_tl.data.contrast_set import SIDES
    from cosmic_tl.experiments.known_rows import read_conditions
    from cosmic_tl.experiments.sweep_methods import METHODS
    from cosmic_tl.experiments.sweeps import BASELINE, sweep as sweep_all
    from cosmic_tl.metrics.refusal_score import find_refusal_tokens
    from cosmic_tl.report.experiment_pages import write_sweep
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.runs.lock import locked

    chat, judge = run.settings.chat, run.judge
    made = derivation(
        run.out,
        "sweep",
        direction,
        bridge,
        chat=chat,
        prompts=digest(prompts),
        phrases=judge.phrases,
        n_samples=n_samples,
        **generation(settings) | {"sampling": asdict(settings.sampling)},
        alphas=list(alphas),
    )
    with locked(run.out, run.identity):
        log = made.part(".jsonl", "alphas")
        known = read_conditions(
            log,
            dict(zip(SIDES, prompts, strict=True)),
            ("method", "alpha"),
            n_samples,
            belongs=lambda side, method, alpha: method in (BASELINE[0], *METHODS),
        )
        stage("refusal tokens")
        try:
            tokens = find_refusal_tokens(bridge, prompts, chat=chat, batch_size=settings.batch_size)
        except CosmicError as error:
            say(f"Note: no refusal scores ({error})", file=sys.stderr)
            tokens = None
        stage("completions")
        found = sweep_all(
            bridge,
            run.prompts,
            direction,
            n=settings.n_test,
            alphas=alphas,
            tokens=tokens,
            chat=chat,
            n_samples=n_samples,
            batch_size=settings.batch_size,
            known=[row for row in known if row.get("method") == BASELINE[0] or row.get("alpha") in alphas],
            on_rows=lambda rows: append_lines(log, [{"rows": rows}]),
            judge=judge,
            **generation(settings),
        )
        table = found.table
        page = write_sweep(found, run.summary, run=str(run.out), command=shlex.join(["cosmic-tl", *sys.argv[1:]]))
        made.write({"sweep.csv": table.to_csv(index=False), "sweep.html": page})
    print_frame(table[["method", "alpha", "side", "rate", "low", "high", "garbled", "cross_entropy"]])
    say("Non-monotonic in alpha:" if len(uneven := found.non_monotonic()) else "Monotonic in alpha.")
    if len(uneven):
        print_frame(uneven)
    say(f"Open {run.out / 'sweep.html'}")


@derived(LOADING, "refusal tokens", "strengths")
def calibrate(
    source: RunOptions,
    settings: Annotated[RunSettings, Only(("n_test", "max_new_tokens", "batch_size"))] = _SWEEP,
    *,
    nats: float | None = None,
    score: float | None = None,
    statistic: Literal["p95", "mean"] = "p95",
    alphas: tuple[float, ...] = (0.0, 0.025, 0.05, 0.25, 0.5, 1.0, 2.0),
) -> None:
    """The strength of addition, ablation + addition and ACE at equal cost; writes calibration.csv and calibration.html.

    The cost is the KL divergence from the unedited model, per token of its own completions of the run's negative test prompts.
    A search that was stopped goes on where it was.

    Args:
        nats: Cost to reach, in nats per token. By default 1, unless a score is given.
        score: Effect to reach instead: a mean refusal score (log-odds).
        statistic: Which cost: the 95th percentile over tokens, or their mean.
        alphas: Strengths that are measured in any case, such as 0,0.5,1.
    """
    run = source.run
    prompts = run.test_prompts(settings.n_test)
    from cosmic_tl._util.files import append_lines, read_lines
    from cosmic_tl.experiments.equal_cost import calibrate as calibrate_all, read_point, target_of
    from cosmic_tl.metrics.refusal_score import find_refusal_tokens
    from cosmic_tl.report.experiment_pages import write_calibration
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.runs.lock import locked

    target_of(nats, score, statistic)
    check_alphas(alphas)
    bridge, direction = source.load()
    chat = run.settings.chat
    made = derivation(
        run.out,
        "calibrate",
        direction,
        bridge,
        chat=chat,
        prompts=digest(prompts),
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        nats=nats,
        score=score,
        statistic=statistic,
        alphas=list(alphas),
    )
    with locked(run.out, run.identity):
        log = made.part(".jsonl", "nats", "score", "statistic", "alphas")
        stage("refusal tokens")
        try:
            tokens = find_refusal_tokens(bridge, prompts, chat=chat, batch_size=settings.batch_size)
        except CosmicError as error:
            if score is not None:
                raise
            say(f"Note: no refusal scores ({error})", file=sys.stderr)
            tokens = None
        stage("strengths")
        found = calibrate_all(
            bridge,
            prompts[1],
            direction,
            nats=nats,
            score=score,
            statistic=statistic,
            tokens=tokens,
            alphas=alphas,
            chat=chat,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            known=read_lines(log, read_point),
            on_row=lambda row: append_lines(log, [row]),
        )
        page = write_calibration(found, run.summary, run=str(run.out), command=shlex.join(["cosmic-tl", *sys.argv[1:]]))
        made.write({"calibration.csv": found.points.to_csv(index=False), "calibration.html": page})
    print_frame(found.table)
    say(found.said())
    say(f"Open {run.out / 'calibration.html'}")


COMMANDS = (steer, sweep, calibrate, orthogonalize)
