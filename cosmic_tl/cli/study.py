"""The command that runs many models: study."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cosmic_tl._util.progress import LOADING
from cosmic_tl.cli.derive import derived
from cosmic_tl.cli.options import WorkerOptions
from cosmic_tl.cli.output import say
from cosmic_tl.runs.settings import STAGES

if TYPE_CHECKING:
    from cosmic_tl.studies.running import Outcome


@derived(LOADING, *STAGES)
def study(study: Path, sharing: WorkerOptions, *, out: Path = Path("cosmic-study"), list: bool = False) -> int:
    """Run many models in one study: models × prompt sets × settings, each a run that resumes by itself.

    A study that was stopped goes on where it was when the same command is given again, and runs that failed are tried again.
    One model that fails does not stop the others; the exit code is then 1.

    Args:
        study: YAML file with the study's models, prompts and settings.
        out: Directory for the results.
        list: Only list the runs that the study asks for.
    """
    from cosmic_tl.studies.reading import read_study

    asked = read_study(study)
    if list:
        say(asked)
        for case in asked.cases:
            say(case.name)
        return 0
    from cosmic_tl.studies.running import run_study

    command = shlex.join(["cosmic-tl", *sys.argv[1:]])
    backend = (lambda model: sharing.backend(model.model, **model.how())) if sharing.workers else None
    found = run_study(asked, out, command=command, on_run=_said, backend=backend)
    say(found)
    say(f"Tables are in {out / 'study.csv'} and {out / 'selections.csv'}; open {out / 'study.html'}")
    return 1 if len(found.problems) else 0


def _said(outcome: "Outcome") -> None:
    what = f"[{outcome.number}/{outcome.total}] {outcome.name}"
    if outcome.problem:
        say(f"{what}: FAILED: {outcome.problem}")
    elif outcome.was_complete:
        say(f"{what}: finished before")
    elif outcome.run is not None:
        place = outcome.run.direction
        say(f"{what}: layer {place.layer}, position {place.position}; {outcome.run.summary['seconds']} s")


COMMANDS = (study,)
