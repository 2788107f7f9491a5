"""The command for adversarial suffixes."""

import shlex
import sys
from dataclasses import asdict

from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import derived
from cosmic_tl.cli.options import RunOptions
from cosmic_tl.cli.output import print_frame, say
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.suffixes.options import SuffixOptions


@derived(LOADING, "search", "analysis")
def suffix(source: RunOptions, options: SuffixOptions, *, n_prompts: int = 4, n_test: int = 64) -> None:
    """Find an adversarial suffix, and see what it does to the direction, by layer and head.

    Writes suffix.json, suffix-*.csv and suffix.html into the run. Ctrl-C ends the search with the best suffix so far. A
    search that came to its end is not made again for another --n-test.

    Args:
        n_prompts: Test prompts that the suffix is made on.
        n_test: Further test prompts that it is analysed on.
    """
    run = source.run
    positive, negative = run.test_prompts()
    if len(positive) <= n_prompts:
        raise CosmicError(
            f"n_prompts: found {n_prompts}, and the run has {len(positive)} test prompts; leave some over"
        )
    bridge, direction = source.load()
    from cosmic_tl.interventions.modes import removal
    from cosmic_tl.report.experiment_pages import write_suffix
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.runs.lock import locked
    from cosmic_tl.suffixes.analysis import analyse_suffix
    from cosmic_tl.suffixes.search import find_suffix
    from cosmic_tl.suffixes.suffix import Suffix
    from cosmic_tl.suffixes.targets import attackable_prompts, compliant_targets

    check_count("n_prompts", n_prompts)
    mode, chat = run.selection.mode, run.settings.chat
    made = derivation(
        run.out,
        "suffix",
        direction,
        bridge,
        mode=mode,
        chat=chat,
        prompts=digest(positive),
        n_prompts=n_prompts,
        options=asdict(options),
        analysed_on=digest([n_test, negative]),
    )
    with locked(run.out, run.identity):
        part = made.part(".json", "analysed_on")
        stage("search")
        if part.exists():
            found = Suffix.load(part)
        else:
            edit = removal(direction, mode)
            made_on = attackable_prompts(bridge, positive, edit, n=n_prompts, chat=chat)
            targets = compliant_targets(bridge, made_on, edit, chat=chat)
            found = find_suffix(bridge, made_on, targets, options=options, chat=chat)
            if found.stopped != "interrupted":  # the same command searches on to its end
                found.save(part)
        say(f"{found.text!r} ({found.stopped}): {', '.join(found.verdicts)}")
        made.write({"suffix.json": found.to_json()})  # also if it works on too few prompts to be analysed
        stage("analysis")
        rest = [prompt for prompt in positive if prompt not in found.prompts]
        asked = rest[:n_test], negative[:n_test]
        analysis = analyse_suffix(bridge, asked, found.text, direction, chat=chat, seed=options.seed)
        command = shlex.join(["cosmic-tl", *sys.argv[1:]])
        page = write_suffix(found, analysis, run.summary, run=str(run.out), command=command)
        tables = ("rates", "cosines", "contributions", "attention")
        made.write(
            {"suffix.json": found.to_json(), "suffix.html": page}
            | {f"suffix-{name}.csv": getattr(analysis, name).to_csv(index=False) for name in tables}
        )
    print_frame(analysis.rates)
    say(f"Open {run.out / 'suffix.html'}")


COMMANDS = (suffix,)
