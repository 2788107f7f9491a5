"""The command for adversarial suffixes."""

import shlex
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from cosmic_tl.cli.options import RunOptions, Seed, grouped
from cosmic_tl.cli.output import print_frame, printable
from cosmic_tl.errors import CosmicError


@grouped
def suffix(
    run: RunOptions,
    n_prompts: Annotated[int, typer.Option(help="Test prompts that the suffix is made on.")] = 4,
    n_tokens: Annotated[int, typer.Option(help="Length of the suffix.")] = 20,
    steps: Annotated[int, typer.Option(help="Steps of the search, at most.")] = 250,
    n_candidates: Annotated[int, typer.Option(help="Substitutions tried a step.")] = 256,
    n_test: Annotated[int, typer.Option(help="Further test prompts that it is analysed on.")] = 64,
    seed: Seed = 0,
) -> None:
    """Find an adversarial suffix, and see what it does to the direction, by layer and head.

    Writes suffix.json, suffix-*.csv and suffix.html into the run. Ctrl-C ends the search with the best suffix so far. A
    search that came to its end is not made again for another --n-test.
    """
    from cosmic_tl.interventions.modes import removal
    from cosmic_tl.report.experiment_pages import write_suffix
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.suffixes.analysis import analyse_suffix
    from cosmic_tl.suffixes.search import compliant_targets, find_suffix
    from cosmic_tl.suffixes.suffix import Suffix, SuffixOptions

    options = SuffixOptions(n_tokens=n_tokens, steps=steps, n_candidates=n_candidates, seed=seed)
    harmful, harmless = run.test_prompts()
    if len(harmful) <= n_prompts:
        raise CosmicError(f"n_prompts: found {n_prompts}, and the run has {len(harmful)} test prompts; leave some over")
    chat = run.chat()
    bridge, direction = run.load()
    made_on, rest, harmless = harmful[:n_prompts], harmful[n_prompts:][:n_test], harmless[:n_test]
    made = derivation(
        run.directory,
        "suffix",
        direction,
        bridge,
        mode=run.mode,
        chat=asdict(chat),
        prompts=digest(made_on),
        options=asdict(options),
        analysed_on=digest([rest, harmless]),
    )
    part = made.part(".json", "analysed_on")
    if part.exists():
        found = Suffix.load(part)
    else:
        targets = compliant_targets(bridge, made_on, removal(direction, run.mode), chat=chat)
        found = find_suffix(bridge, made_on, targets, options=options, chat=chat)
        if found.stopped != "interrupted":  # the same command searches on to its end
            found.save(part)
    typer.echo(printable(f"{found.text!r} ({found.stopped}): {', '.join(found.verdicts)}"))
    made.write({"suffix.json": found.to_json()})  # also if it works on too few prompts to be analysed
    analysis = analyse_suffix(bridge, (rest, harmless), found.text, direction, chat=chat, seed=seed)
    command = shlex.join(["cosmic-tl", *sys.argv[1:]])
    page = write_suffix(found, analysis, run.run.summary, run=str(run.directory), command=command)
    tables = ("rates", "cosines", "contributions", "attention")
    made.write(
        {"suffix.json": found.to_json(), "suffix.html": page}
        | {f"suffix-{name}.csv": getattr(analysis, name).to_csv(index=False) for name in tables}
    )
    print_frame(analysis.rates)
    typer.echo(f"Open {run.directory / 'suffix.html'}")


COMMANDS = (suffix,)
