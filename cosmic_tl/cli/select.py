"""Commands that choose a direction: run, plan, compare."""

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cosmic_tl.cli.options import (
    BatchSize,
    ChatOptions,
    Csv,
    DataOptions,
    GenerationOptions,
    ModelOptions,
    Overwrite,
    Phrases,
    SelectionOptions,
    grouped,
    numbers,
)
from cosmic_tl.cli.output import print_frame, print_result, printable, write_csv


class Select(str, Enum):
    """What the choice of a direction rests on."""

    cosmic = "cosmic"
    refusal_tokens = "refusal-tokens"


NTest = Annotated[int, typer.Option(help="Test prompts per side.")]


@grouped
def run(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatOptions,
    selection: SelectionOptions,
    generation: GenerationOptions,
    out: Annotated[Path, typer.Option(help="Directory for the results.")] = Path("cosmic-run"),
    select: Annotated[Select, typer.Option(help="By activations (COSMIC), or by refusal's first tokens.")] = (
        Select.cosmic
    ),
    n_test: NTest = 100,
    phrase: Phrases = None,
    placebos: Annotated[int, typer.Option(help="Seeds of each kind of placebo; each costs completions.")] = 5,
    batch_size: BatchSize = None,
    overwrite: Overwrite = False,
) -> None:
    """Find a direction, remove and induce it, and write a report.

    A run that was stopped goes on where it was when the same command is given again.
    """
    contrast = data.load()  # before the imports that take seconds
    from cosmic_tl.runs.job import run as run_all
    from cosmic_tl.runs.settings import RunSettings

    options = selection.cosmic() if select is Select.cosmic else selection.refusal_tokens()
    phrases = tuple(phrase) if phrase else None
    settings = RunSettings(
        options,
        chat.format(),
        n_test,
        generation.max_new_tokens,
        generation.temperature,
        data.seed,
        batch_size,
        phrases,
        generation.sampling(),
        placebos,
    )
    command = shlex.join(["cosmic-tl", *sys.argv[1:]])
    bridge = model.load()
    try:
        result = run_all(bridge, contrast, out, settings, command=command, overwrite=overwrite)
    except KeyboardInterrupt as stop:
        typer.echo("Stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from stop
    print_result(result)


@grouped
def plan(model: ModelOptions, data: DataOptions, chat: ChatOptions, selection: SelectionOptions) -> None:
    """Print the passes that a COSMIC selection would make and spare, and their cost, without making them.

    Takes the options of `run`. Without --evaluation-layers the last layer is assumed, which is the most expensive.
    """
    contrast = data.load()
    from cosmic_tl.selection.cosmic import plan_selection

    options, format_ = selection.cosmic(), chat.format()
    typer.echo(repr(plan_selection(model.load(), contrast, options, chat=format_)))


@grouped
def compare(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatOptions,
    selection: SelectionOptions,
    generation: GenerationOptions,
    n_test: NTest = 100,
    batch_size: BatchSize = None,
    csv: Csv = None,
) -> None:
    """Choose by COSMIC and by refusal tokens, and tabulate where the two agree and what their directions do."""
    contrast = data.load()
    from cosmic_tl.experiments.comparison import compare_selections

    cosmic, refusal_tokens = selection.cosmic(), selection.refusal_tokens()
    format_, sampling = chat.format(), generation.sampling()
    found = compare_selections(
        model.load(),
        contrast,
        cosmic=cosmic,
        refusal_tokens=refusal_tokens,
        chat=format_,
        n_test=n_test,
        max_new_tokens=generation.max_new_tokens,
        seed=data.seed,
        batch_size=batch_size,
        temperature=generation.temperature,
        sampling=sampling,
    )
    print_frame(found.table)
    for remark in found.remarks:
        typer.echo(printable(remark))
    write_csv(found.table, csv)


@grouped
def variants(model: ModelOptions, data: DataOptions, chat: ChatOptions, selection: SelectionOptions) -> None:
    """Select under each of COSMIC's variants of layer ranking and target, and tabulate what each chooses."""
    contrast = data.load()
    from cosmic_tl.experiments.variants import compare_variants, standard_variants

    settings, format_ = standard_variants(selection.cosmic()), chat.format()
    print_frame(compare_variants(model.load(), contrast, settings, chat=format_))


class Steering(str, Enum):
    """How a weakly aligned model is steered."""

    amplification = "amplification"
    ace = "ace"


@grouped
def two_rounds(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatOptions,
    selection: SelectionOptions,
    generation: GenerationOptions,
    steer: Annotated[Steering, typer.Option(help="In proportion to what is there (ours), or ACE (the paper's).")] = (
        Steering.amplification
    ),
    alphas: Annotated[str, typer.Option(help="Strengths, as 1,2,3.")] = "1,2,3",
    n_test: NTest = 100,
    batch_size: BatchSize = None,
    csv: Csv = None,
) -> None:
    """Restore refusal in a weakly aligned model: find a direction, find another under it, and sweep the strength.

    Evaluation layers come from the second half, unless --no-exclude-first-half is given.
    """
    contrast = data.load()
    from cosmic_tl.experiments.weak_alignment import two_rounds as both_rounds

    strengths, format_, sampling = numbers("alphas", alphas), chat.format(), generation.sampling()
    found = both_rounds(
        model.load(),
        contrast,
        selection.cosmic(exclude_first_half=True),
        chat=format_,
        alphas=strengths,
        steer=steer.value,
        n=n_test,
        max_new_tokens=generation.max_new_tokens,
        batch_size=batch_size,
        temperature=generation.temperature,
        seed=data.seed,
        sampling=sampling,
    )
    typer.echo(repr(found))
    write_csv(found.table, csv)


COMMANDS = (run, plan, compare, variants, two_rounds)
