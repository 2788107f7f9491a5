"""Commands that judge a run's completions, say what its edits cost, and measure behaviours given by answers."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cosmic_tl._util.files import settings_file
from cosmic_tl._util.progress import LOADING, stage
from cosmic_tl.cli.derive import Only, derived
from cosmic_tl.cli.options import ModelOptions, RunOptions, WorkerOptions, check_paths, read_documents, read_pairs
from cosmic_tl.cli.output import print_frame, say, write_csv
from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions.options import Mode
from cosmic_tl.model.options import ChatFormat
from cosmic_tl.runs.settings import RunSettings

if TYPE_CHECKING:
    from cosmic_tl.interventions.edits import Intervention
    from cosmic_tl.judges.base import Judge
    from cosmic_tl.model.load import TransformerBridge

_BATCHES = Only(("batch_size",))


@derived("judging")
def judge(
    directory: Path,
    sharing: WorkerOptions,
    *,
    judge: Literal["substring", "model", "endpoint"] = "substring",
    judge_model: str = "",
    template: Literal["llama-guard-3", "strongreject"] = "llama-guard-3",
    base_url: str | None = None,
    api_key_env: str | None = None,
    concurrency: int = 8,
    requests_per_minute: float | None = None,
) -> None:
    """Judge a run's completions again; writes judgements.jsonl into it, and prints rates by condition.

    An endpoint's answers are kept in judge-cache.jsonl, so that a judging that was stopped goes on where it was.

    Args:
        directory: Directory that `cosmic-tl run` wrote.
        judge: Who judges: the run's phrases, a local model, or an OpenAI-compatible endpoint.
        judge_model: The judge: a model to load, or its name at the endpoint.
        template: What a model is asked.
        base_url: The endpoint, up to and including /v1.
        api_key_env: Environment variable that holds the key.
        concurrency: Requests under way at once.
        requests_per_minute: Maximum number of requests per minute.
    """
    settings_file(directory)
    if judge != "substring" and not judge_model:
        raise CosmicError("judge_model: none given; name the judge with --judge-model")
    if sharing.workers and judge != "model":
        raise CosmicError(f"workers: {judge} judges in this process; leave them out, or judge with --judge model")
    from cosmic_tl.backends.sharing import shared_by
    from cosmic_tl.judges.base import judged
    from cosmic_tl.judges.endpoint import EndpointJudge
    from cosmic_tl.judges.local_model import ModelJudge
    from cosmic_tl.judges.reliability import SAFETY_AS_REFUSAL, agreement, rates_by
    from cosmic_tl.judges.templates import LLAMA_GUARD_3, STRONGREJECT
    from cosmic_tl.model.load import load_model
    from cosmic_tl.runs.derived import derivation, digest
    from cosmic_tl.runs.lock import locked
    from cosmic_tl.runs.result import Run
    from cosmic_tl.runs.run_files import JUDGE_CACHE

    run = Run.load(directory)
    first = run.effects.completions
    with locked(directory, run.identity), ExitStack() as stack:
        chosen: Judge = run.settings.judge
        asked = LLAMA_GUARD_3 if template == "llama-guard-3" else STRONGREJECT
        stage("judging")
        if judge == "model":
            backend = stack.enter_context(sharing.backend(judge_model)) if sharing.workers else None
            model = load_model(judge_model)
            if backend is not None:
                stack.enter_context(shared_by(backend, model))
            chosen = ModelJudge(model, asked)
        elif judge == "endpoint":
            cache = directory / JUDGE_CACHE
            chosen = EndpointJudge(judge_model, asked, base_url, api_key_env, cache, concurrency, requests_per_minute)
        frame = judged(first, chosen)
        made = derivation(
            directory,
            "judge",
            run.selection.direction,
            completions=digest(first.to_dict("records")),
            judge=judge,
            phrases=getattr(chosen, "phrases", None),
            judge_model=judge_model,
            template=template,
            base_url=base_url and re.sub(r"//[^/@]*@", "//", base_url),  # without a password
        )
        text = "".join(json.dumps(row) + "\n" for row in frame.to_dict("records"))
        made.write({"judgements.jsonl": text})
    safety = frame.verdict.isin(["safe", "unsafe"]).any()
    by = ["side", "condition", *(["seed"] if "seed" in frame else [])]  # completions of several seeds are no sample
    print_frame(rates_by(frame, by, "unsafe" if safety else "refusal"))
    if safety:
        say("Rates are of unsafe completions. Agreement with the run's verdicts, on positive prompts, safe as refusal:")
        positive = frame.side == "positive"
        first, frame = first[positive], frame[positive]
    reading = SAFETY_AS_REFUSAL if safety else None
    say(agreement(first.verdict.tolist(), frame.verdict.tolist(), reading=reading))
    say(f"Every judgement is in {directory / 'judgements.jsonl'}")


def _edits(source: RunOptions, alpha: float | None) -> "tuple[TransformerBridge, dict[str, Intervention]]":
    edits = source.run.selection.edits
    bridge, direction = source.load()
    from cosmic_tl.directions.direction import random_direction

    alpha = edits.alpha if alpha is None else alpha
    return bridge, {
        "removal": edits.removal(direction),
        f"induction, alpha {alpha:g}": edits.induction(direction, alpha),
        "random removal": edits.removal(random_direction(direction, 0)),
    }


@derived(LOADING, "cost")
def cost(
    source: RunOptions,
    settings: Annotated[RunSettings, _BATCHES],
    *,
    texts: Path | None = None,
    instructions: Path | None = None,
    n_test: int = 32,
    alpha: float | None = None,
) -> None:
    """What removal and induction cost: cross-entropy on texts, instructions and the model's own answers, and KL.

    Args:
        texts: Plain text, one document per line.
        instructions: JSONL with an instruction and a response per line.
        n_test: The run's negative test prompts, for KL and the model's own answers.
        alpha: Strength of the induction. By default the run's.
    """
    check_paths(texts=texts, instructions=instructions)
    documents, pairs = read_documents(texts), read_pairs(instructions)
    run = source.run
    _, negative = run.test_prompts(n_test)
    bridge, edits = _edits(source, alpha)
    from cosmic_tl.experiments.cost import measure_cost

    stage("cost")
    found = measure_cost(
        bridge,
        edits,
        texts=documents,
        instructions=pairs,
        prompts=negative,
        chat=run.settings.chat,
        batch_size=settings.batch_size,
    )
    print_frame(found.table)


@derived(LOADING, "tasks")
def capability(
    source: RunOptions,
    settings: Annotated[RunSettings, _BATCHES],
    *,
    tasks: str,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    task_folder: Path | None = None,
    alpha: float | None = None,
) -> None:
    """Benchmark the model through lm-eval with nothing, removal and induction in place.

    Args:
        tasks: Tasks of lm-eval, such as arc_easy,mmlu.
        limit: Maximum number of items per task.
        num_fewshot: Examples before each item.
        chat: Ask through the chat template.
        task_folder: Folder with task files of your own.
        alpha: Strength of the induction. By default the run's.
    """
    bridge, edits = _edits(source, alpha)
    from cosmic_tl.experiments.capability import measure_capability

    stage("tasks")
    found = measure_capability(
        bridge,
        tasks.split(","),
        edits,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=settings.batch_size,
        chat=source.run.settings.chat if chat else False,
        task_folder=task_folder,
    )
    print_frame(found.table)


@derived(LOADING, "layers and strengths")
def behaviour(
    file: Path,
    model: ModelOptions,
    chat: ChatFormat,
    settings: Annotated[RunSettings, Only(("seed", "batch_size"))],
    *,
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0),
    layers: tuple[int, ...] | None = None,
    mode: Mode = "affine",
    n_test: int | None = None,
    csv: Path | None = None,
) -> None:
    """Steer a behaviour given by questions with two answers: log-odds of the matching one by layer and strength.

    Args:
        file: JSON of questions with two answers, as in the CAA data sets.
        alphas: Strengths, such as 0,0.5,1.
        layers: Layers to steer at, such as 3,4. By default all of them.
        mode: linear: add the direction. affine: affine concept editing (ACE); ace is accepted for it.
        n_test: Maximum number of test pairs. By default all of them.
        csv: Also write the table to this file.
    """
    check_paths(csv, file=file)
    from cosmic_tl.data.behaviours import load_behaviour

    found = load_behaviour(file, seed=settings.seed)
    for note in found.notes:
        say(f"Note: {note}")
    bridge = model.load()
    from cosmic_tl.experiments.behaviour_sweep import sweep_behaviour
    from cosmic_tl.interventions.edits import Addition, AffineEdit

    stage("layers and strengths")
    swept = sweep_behaviour(
        bridge,
        found,
        alphas=alphas,
        layers=sorted(set(layers)) if layers else None,
        method=Addition if mode == "linear" else AffineEdit,
        n=n_test,
        chat=chat,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    print_frame(swept.table)
    write_csv(swept.table, csv)


COMMANDS = (judge, cost, capability, behaviour)
