"""The command for adversarial suffixes."""

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

    Writes suffix.json, suffix-*.csv and suffix.html into the run. Ctrl-C ends the search with the best suffix so far.
    """
    from cosmic_tl.figures.export import offline_page
    from cosmic_tl.figures.suffixes import plot_head_attention, plot_head_contributions, plot_suffix_cosines
    from cosmic_tl.files import write_atomically
    from cosmic_tl.selection.modes import removal
    from cosmic_tl.suffixes.analysis import analyse_suffix
    from cosmic_tl.suffixes.artifact import SuffixOptions
    from cosmic_tl.suffixes.search import compliant_targets, find_suffix

    options = SuffixOptions(n_tokens=n_tokens, steps=steps, n_candidates=n_candidates, seed=seed)
    harmful, harmless = run.test_prompts()
    if len(harmful) <= n_prompts:
        raise CosmicError(f"n_prompts: found {n_prompts}, and the run has {len(harmful)} test prompts; leave some over")
    chat = run.chat()
    bridge, direction = run.load()
    made_on, rest = harmful[:n_prompts], harmful[n_prompts:][:n_test]
    targets = compliant_targets(bridge, made_on, removal(direction, run.mode), chat)
    found = find_suffix(bridge, made_on, targets, options, chat)
    found.save(run.directory / "suffix.json")
    typer.echo(printable(f"{found.text!r} ({found.stopped}): {', '.join(found.verdicts)}"))
    analysis = analyse_suffix(bridge, found.text, direction, rest, harmless[:n_test], chat, seed=seed)
    for name in ("rates", "cosines", "contributions", "attention"):
        write_atomically(run.directory / f"suffix-{name}.csv", getattr(analysis, name).to_csv(index=False))
    figures = [
        plot_suffix_cosines(analysis.cosines),
        plot_head_contributions(analysis.contributions),
        plot_head_attention(analysis.attention),
    ]
    write_atomically(run.directory / "suffix.html", offline_page(figures, "Adversarial suffix"))
    print_frame(analysis.rates)
    typer.echo(f"Open {run.directory / 'suffix.html'}")


COMMANDS = (suffix,)
