"""The command that compares an edited model with its base."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cosmic_tl._util.files import settings_file
from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only, derived
from cosmic_tl.cli.options import (
    TESTING,
    DataOptions,
    PairOptions,
    check_paths,
    generation,
    read_documents,
    read_pairs,
)
from cosmic_tl.cli.output import say
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.model.options import ChatFormat
from cosmic_tl.runs.evaluation_folder import check_evaluation_folder
from cosmic_tl.runs.settings import RunSettings

FORMAT = "cosmic_tl/evaluation/1"
_JUDGED = Only((*TESTING, "phrases"))


@derived(LOADING, "completions", "divergences", "texts", "tasks", "weights", "report")
def evaluate(
    models: PairOptions,
    data: DataOptions,
    form: ChatFormat,
    settings: Annotated[RunSettings, _JUDGED],
    *,
    texts: Path | None = None,
    instructions: Path | None = None,
    tasks: str = "",
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    task_folder: Path | None = None,
    direction: Path | None = None,
    run: Path | None = None,
    out: Path = Path("cosmic-evaluation"),
    overwrite: bool = False,
) -> None:
    """Compare an edited model with its base: refusals, garbled answers, KL, and which direction its weights lost.

    A checkpoint, a GGUF file or an adapter that somebody edited is measured beside the model that it was made from, on the same
    test prompts, with intervals. Writes evaluation.html, evaluation.csv, completions.jsonl, weights.csv, summary.json and more. A
    command that was stopped goes on where it was when it is given again.

    Args:
        texts: Plain text, one document per line, for its cross-entropy under both models.
        instructions: JSONL with an instruction and a response per line, for the responses' cross-entropy.
        tasks: Tasks of lm-eval, such as arc_easy,mmlu. By default none.
        limit: Maximum number of items per task.
        num_fewshot: Examples before each item.
        chat: Ask tasks through the chat template.
        task_folder: Folder with task files of your own.
        direction: File with a direction of the base, to compare the difference of the weights with.
        run: The same, from a run's directory.
        out: Directory for the results.
        overwrite: Replace an earlier comparison in the directory that had other settings.
    """
    check_paths(texts=texts, instructions=instructions, direction=direction)
    check_count("limit", limit)
    check_evaluation_folder(out)
    if direction is not None and run is not None:
        raise CosmicError("direction, run: found both; give one of them")
    if run is not None:
        settings_file(run)
        direction = run / "direction.safetensors"
    documents, pairs, contrast = read_documents(texts), read_pairs(instructions), data.load()
    names = [one.strip() for one in tasks.split(",") if one.strip()]
    base, edited = models.load()
    from cosmic_tl._util.versions import versions
    from cosmic_tl.directions.direction import Direction
    from cosmic_tl.experiments.two_models import compare_models
    from cosmic_tl.runs.derived import digest, direction_digest, model_identity
    from cosmic_tl.runs.evaluation import evaluating, write_evaluation_files

    given = None if direction is None else Direction.load(direction, base)
    sides = contrast.sides("test", settings.n_test)
    task_options: dict[str, Any] = {
        "limit": limit,
        "num_fewshot": num_fewshot,
        "chat": form if chat else False,
        "task_folder": task_folder,
    }
    identity: dict[str, Any] = {
        "format": FORMAT,
        "base": model_identity(base, form),
        "edited": {**model_identity(edited, form), "model": models.edited},
        "prompts": {"name": contrast.name, "n_test": list(map(len, sides)), "digest": digest(sides)},
        "categories": digest(dict(contrast.categories)),
        "labels": contrast.labels,
        "chat": asdict(form),
        "generation": generation(settings) | {"sampling": asdict(settings.sampling)},
        "phrases": settings.phrases,
        "batch_size": settings.batch_size,
        "texts": None if documents is None else digest(documents),
        "instructions": None if pairs is None else digest(pairs),
        "tasks": {"names": names, **task_options, "chat": chat, "task_folder": task_folder and str(task_folder)},
        "direction": None if given is None else direction_digest(given),
        "versions": versions(),
    }
    identity = json.loads(json.dumps(identity, default=dict))
    with evaluating(out, identity, overwrite) as kept:
        found = compare_models(
            base,
            edited,
            contrast,
            n=settings.n_test,
            texts=documents,
            instructions=pairs,
            tasks=names,
            task_options=task_options,
            direction=given,
            names=(models.base, models.edited),
            judge=settings.judge,
            chat=form,
            batch_size=settings.batch_size,
            kept=kept,
            **generation(settings),
        )
        stage("report")
        write_evaluation_files(out, found, identity, shlex.join(["cosmic-tl", *sys.argv[1:]]))
    say(found)
    say(f"Everything is in {out}; open {out / 'evaluation.html'}")


COMMANDS = (evaluate,)
