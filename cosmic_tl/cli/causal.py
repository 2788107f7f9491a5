"""The command for causal maps."""

import shlex
import sys
from dataclasses import asdict, replace
from typing import Annotated

from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only, derived
from cosmic_tl.cli.options import RunOptions
from cosmic_tl.cli.output import print_frame, say
from cosmic_tl.errors import CosmicError, NoCandidateError
from cosmic_tl.experiments.options import CausalOptions
from cosmic_tl.runs.settings import RunSettings

_MAP = RunSettings(n_test=32)


@derived(LOADING, "refusal tokens", "places")
def causal(
    source: RunOptions,
    options: CausalOptions,
    settings: Annotated[RunSettings, Only(("n_test", "batch_size"))] = _MAP,
    *,
    plan: bool = False,
) -> None:
    """Where the direction acts: exchange what each layer writes at each token, and see what the model then does.

    Writes causal.csv and causal.html into the run. Means and effects are both of its test prompts, which played no part in the
    choice. A map that was stopped goes on where it was.

    Args:
        plan: Only say what the map would take.
    """
    if options.treatment == "paired":
        raise CosmicError("treatment: found 'paired', and a run keeps no pairs of prompts; use causal_map in Python")
    run = source.run
    prompts = run.test_prompts(settings.n_test)
    bridge, direction = source.load()
    if plan:
        from cosmic_tl.experiments.causal_plan import plan_causal_map

        say(plan_causal_map(bridge, prompts, options, chat=run.settings.chat))
        return
    from cosmic_tl.experiments.causal import causal_map
    from cosmic_tl.metrics.refusal_score import find_refusal_tokens
    from cosmic_tl.report.experiment_pages import write_causal
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.runs.lock import locked
    from cosmic_tl.runs.logs import ProductLog

    chat = run.settings.chat
    made = derivation(
        run.out,
        "causal",
        direction,
        bridge,
        chat=chat,
        prompts=digest(prompts),
        n_test=settings.n_test,
        evaluation_layers=list(run.selection.evaluation_layers),
        batch_size=settings.batch_size,
        **asdict(options),
    )
    with locked(run.out, run.identity):
        stage("refusal tokens")
        tokens = run.selection.tokens
        try:
            tokens = tokens or find_refusal_tokens(bridge, prompts, chat=chat, batch_size=settings.batch_size)
        except NoCandidateError as error:
            if not run.selection.evaluation_layers:
                raise
            say(f"Note: no refusal scores ({error})", file=sys.stderr)
        stage("places")
        found = causal_map(
            bridge,
            prompts,
            run.selection,
            tokens=tokens,
            chat=chat,
            batch_size=settings.batch_size,
            effects=ProductLog(made.part(".jsonl", "n_test")),  # which prompts tell already
            **asdict(options),
        )
        found = replace(found, terms=run.effects.terms)
        page = write_causal(found, run.summary, run=str(run.out), command=shlex.join(["cosmic-tl", *sys.argv[1:]]))
        tokens_at = dict(zip(found.positions.indices, found.positions.labels, strict=True))
        table = found.table.assign(token=found.table.position.map(tokens_at))
        made.write({"causal.csv": table.to_csv(index=False), "causal.html": page})
    for side in found.table.side.unique():
        say(f"Strongest places, {found.terms.sides[side]} prompts ({found.measures[0]}):")
        print_frame(found.strongest(side))
    for sentence in found.scopes():
        say(sentence)
    say(f"Open {run.out / 'causal.html'}")


COMMANDS = (causal,)
