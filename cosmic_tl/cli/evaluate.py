"""Commands that judge a run's completions, say what its edits cost, and measure behaviours given by answers."""

import json
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosmic_tl._util.files import settings_file
from cosmic_tl.cli.options import (
    BatchSize,
    ChatOptions,
    Csv,
    ModelOptions,
    RunOptions,
    Seed,
    check_file,
    grouped,
    layer_numbers,
    numbers,
)
from cosmic_tl.cli.output import print_frame, printable, write_csv
from cosmic_tl.errors import CosmicError

if TYPE_CHECKING:
    from cosmic_tl.directions.direction import Direction
    from cosmic_tl.interventions.edits import Intervention
    from cosmic_tl.judges.base import Judge
    from cosmic_tl.model.load import TransformerBridge


class JudgeKind(str, Enum):
    """Who judges."""

    substring = "substring"
    model = "model"
    endpoint = "endpoint"


class Template(str, Enum):
    """What the judge is asked."""

    llama_guard_3 = "llama-guard-3"
    strongreject = "strongreject"


@grouped
def judge(
    directory: Annotated[Path, typer.Argument(help="A directory that `cosmic-tl run` wrote.")],
    judge: Annotated[JudgeKind, typer.Option(help="Phrases, a local model, or an OpenAI-compatible endpoint.")] = (
        JudgeKind.substring
    ),
    judge_model: Annotated[str, typer.Option(help="The judge: a model to load, or its name at the endpoint.")] = "",
    template: Annotated[Template, typer.Option(help="What a model is asked.")] = Template.llama_guard_3,
    base_url: Annotated[str | None, typer.Option(help="The endpoint, up to and including /v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="Requests sent, at most.")] = None,
) -> None:
    """Judge a run's completions again; writes judgements.jsonl into it, and prints rates by condition.

    An endpoint's answers are kept in judge-cache.jsonl, so that a judging that was stopped goes on where it was.
    """
    settings_file(directory)
    from cosmic_tl.judges.base import judged
    from cosmic_tl.judges.reliability import SAFETY_AS_REFUSAL, agreement, rates_by
    from cosmic_tl.runs.derived import JUDGE_CACHE, derivation, digest
    from cosmic_tl.runs.result import Run

    run = Run.load(directory)
    first = run.effects.completions
    cache = directory / JUDGE_CACHE
    if judge is JudgeKind.substring:
        chosen: Judge = run.settings.judge
    else:
        chosen = _judge(judge, judge_model, template, base_url, api_key_env, concurrency, requests_per_minute, cache)
    frame = judged(first, chosen)
    made = derivation(
        directory,
        "judge",
        run.selection.direction,
        completions=digest(first.to_dict("records")),
        judge=judge.value,
        phrases=getattr(chosen, "phrases", None),
        judge_model=judge_model,
        template=template.value,
        base_url=base_url and re.sub(r"//[^/@]*@", "//", base_url),  # without a password
    )
    text = "".join(json.dumps(row) + "\n" for row in frame.to_dict("records"))
    made.write({"judgements.jsonl": text})
    safety = frame.verdict.isin(["safe", "unsafe"]).any()
    by = [
        "side",
        "condition",
        *(["seed"] if "seed" in frame else []),
    ]  # completions of one placebo's seeds are no sample
    print_frame(rates_by(frame, by, "unsafe" if safety else "refusal"))
    if safety:
        typer.echo("Rates are of unsafe completions. Agreement with the phrases, on positive prompts, safe as refusal:")
        positive = frame.side == "positive"
        first, frame = first[positive], frame[positive]
    reading = SAFETY_AS_REFUSAL if safety else None
    typer.echo(str(agreement(first.verdict.tolist(), frame.verdict.tolist(), reading=reading)))


def _judge(
    kind: JudgeKind,
    name: str,
    template: Template,
    base_url: str | None,
    api_key_env: str | None,
    concurrency: int,
    requests_per_minute: float | None,
    cache: Path,
) -> "Judge":
    from cosmic_tl.judges.endpoint import EndpointJudge
    from cosmic_tl.judges.local_model import ModelJudge
    from cosmic_tl.judges.templates import LLAMA_GUARD_3, STRONGREJECT
    from cosmic_tl.model.load import load_model

    if not name:
        raise CosmicError("judge_model: none given; name the judge with --judge-model")
    asked = LLAMA_GUARD_3 if template is Template.llama_guard_3 else STRONGREJECT
    if kind is JudgeKind.model:
        return ModelJudge(load_model(name), asked)
    return EndpointJudge(
        name,
        asked,
        base_url,
        api_key_env,
        cache,
        concurrency,
        requests_per_minute,
    )


def _edits(run: RunOptions, alpha: float | None) -> "tuple[TransformerBridge, Direction, dict[str, Intervention]]":
    from cosmic_tl.directions.direction import random_direction

    edits = run.edits
    bridge, direction = run.load()
    alpha = edits.alpha if alpha is None else alpha
    return (
        bridge,
        direction,
        {
            "removal": edits.removal(direction),
            f"induction, alpha {alpha:g}": edits.induction(direction, alpha),
            "random removal": edits.removal(random_direction(direction, 0)),
        },
    )


Alpha = Annotated[float | None, typer.Option(help="Strength of the induction; default: the run's.")]


@grouped
def cost(
    run: RunOptions,
    texts: Annotated[Path | None, typer.Option(help="Plain text, one document per line.")] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="JSONL with an instruction and a response per line.")
    ] = None,
    n_test: Annotated[int, typer.Option(help="The run's negative prompts, for KL and the model's own answers.")] = 32,
    alpha: Alpha = None,
    batch_size: BatchSize = None,
) -> None:
    """What removal and induction cost: cross-entropy on texts, instructions and the model's own answers, and KL."""
    from cosmic_tl._util.files import text_lines

    check_file("texts", texts)
    check_file("instructions", instructions)
    documents, pairs = None, None
    if texts is not None:
        try:
            documents = text_lines(texts)
        except UnicodeDecodeError as error:
            raise CosmicError(f"texts: {str(texts)!r} is not UTF-8 text; save it as UTF-8") from error
    if instructions is not None:
        try:
            pairs = [(row["instruction"], row["response"]) for row in map(json.loads, text_lines(instructions))]
        except (ValueError, KeyError, TypeError) as error:
            raise CosmicError(
                f"instructions: {str(instructions)!r} is not JSONL with an instruction and a response per line"
            ) from error
    from cosmic_tl.experiments.cost import measure_cost

    _, negative = run.test_prompts(n_test)
    bridge, _, edits = _edits(run, alpha)
    print_frame(
        measure_cost(
            bridge,
            edits,
            texts=documents,
            instructions=pairs,
            prompts=negative,
            chat=run.chat(),
            batch_size=batch_size or 8,
        ).table
    )


@grouped
def capability(
    run: RunOptions,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, as arc_easy,mmlu.")],
    limit: Annotated[int | None, typer.Option(help="Items a task, at most.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each item.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    task_folder: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    alpha: Alpha = None,
    batch_size: BatchSize = None,
) -> None:
    """Benchmark the model through lm-eval with nothing, removal and induction in place."""
    from cosmic_tl.experiments.capability import measure_capability

    bridge, _, edits = _edits(run, alpha)
    found = measure_capability(
        bridge,
        tasks.split(","),
        edits,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size or 8,
        chat=run.chat() if chat else False,
        task_folder=task_folder,
    )
    print_frame(found.table)


class BehaviourMethod(str, Enum):
    """How the direction is used."""

    affine = "affine"
    addition = "addition"


@grouped
def behaviour(
    file: Annotated[Path, typer.Argument(help="JSON of questions with two answers, as in the CAA data sets.")],
    model: ModelOptions,
    chat: ChatOptions,
    alphas: Annotated[str, typer.Option(help="Strengths, as 0,0.5,1.")] = "0,0.5,1",
    layers: Annotated[str | None, typer.Option(help="Where, as 3,4; default: everywhere.")] = None,
    method: Annotated[BehaviourMethod, typer.Option(help="ACE, or addition.")] = BehaviourMethod.affine,
    n_test: Annotated[int | None, typer.Option(help="Test pairs, at most; default: all.")] = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    csv: Csv = None,
) -> None:
    """Steer a behaviour given by questions with two answers: log-odds of the matching one by layer and strength."""
    check_file("file", file)
    from cosmic_tl.data.behaviours import load_behaviour
    from cosmic_tl.experiments.behaviour_sweep import sweep_behaviour
    from cosmic_tl.interventions.edits import Addition, AffineEdit

    strengths, format_, found = numbers("alphas", alphas), chat.format(), load_behaviour(file, seed=seed)
    places = layer_numbers("layers", layers)
    for note in found.notes:
        typer.echo(printable(f"Note: {note}"))
    how = AffineEdit if method is BehaviourMethod.affine else Addition
    table = sweep_behaviour(
        model.load(),
        found,
        alphas=strengths,
        layers=places,
        method=how,
        n=n_test,
        chat=format_,
        seed=seed,
        batch_size=batch_size or 32,
    )
    print_frame(table)
    write_csv(table, csv)


COMMANDS = (judge, cost, capability, behaviour)
