"""The command that follows conversations token by token."""

import shlex
import sys
from dataclasses import asdict
from itertools import chain
from typing import Annotated

from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only, derived
from cosmic_tl.cli.options import RunOptions, generation
from cosmic_tl.cli.output import say
from cosmic_tl.errors import CosmicError
from cosmic_tl.runs.settings import RunSettings

_FOLLOWED = RunSettings(n_test=1)


@derived(LOADING, "conversations")
def follow(
    source: RunOptions,
    settings: Annotated[RunSettings, Only(("n_test", "max_new_tokens", "temperature", "seed", "sampling"))] = _FOLLOWED,
    *,
    prompt: tuple[str, ...] = (),
) -> None:
    """Answers with and without the direction, token by token: how much of it each token carries at each layer.

    Writes conversation.csv and conversation.html into the run: the answers of the unedited model, with the direction removed,
    and with it induced. A call that was stopped goes on with the next prompt.

    Args:
        prompt: An instruction; may be given several times. By default the run's first test prompts of each side.
    """
    if not all(one.strip() for one in prompt):
        raise CosmicError("prompt: found a blank one; leave it out")
    run = source.run
    prompts = list(dict.fromkeys(prompt or chain(*run.test_prompts(settings.n_test))))
    bridge, direction = source.load()
    import pandas as pd

    from cosmic_tl.experiments.conversation import Conversation, follow_conversation
    from cosmic_tl.report.experiment_pages import write_conversations
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.runs.lock import locked

    chat, selection = run.settings.chat, run.selection
    made = derivation(
        run.out,
        "follow",
        direction,
        bridge,
        chat=chat,
        prompts=digest(prompts),
        edits=asdict(selection.edits),
        **generation(settings) | {"sampling": asdict(settings.sampling)},
    )
    with locked(run.out, run.identity):
        stage("conversations")
        found = []
        for text in prompts:
            kept = made.part(f"-{digest(text)}.safetensors", "prompts")
            if not kept.exists():
                follow_conversation(bridge, text, selection, chat=chat, **generation(settings)).save(kept)
            found.append(Conversation.load(kept))
        page = write_conversations(
            found, run.summary, run=str(run.out), command=shlex.join(["cosmic-tl", *sys.argv[1:]])
        )
        table = pd.concat({one.prompt: one.table for one in found}, names=["prompt"]).reset_index("prompt")
        made.write({"conversation.csv": table.to_csv(index=False), "conversation.html": page})
    for one in found:
        say(one)
    say(f"Open {run.out / 'conversation.html'}")


COMMANDS = (follow,)
