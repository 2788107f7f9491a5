"""What an edited model can still do: benchmarks of the Language Model Evaluation Harness on the hooked model."""

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import nan
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.cost import named_interventions
from cosmic_tl.experiments.text_cost import BASELINE
from cosmic_tl.generation.sampling import random_state_kept
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge

RESAMPLES = 1000
"""Bootstrap resamples of standard errors that have no formula."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Capability(Result):
    """Scores of the unedited model and of each edit."""

    table: pd.DataFrame
    """One row per condition, task and metric: value, stderr (NaN where lm-eval gives none), difference from the baseline,
    and n, the number of items."""

    def value(self, condition: str, task: str, metric: str = "acc") -> float:
        """One score.

        Raises:
            CosmicError: If it was not measured.

        Example:
            >>> row = {"condition": "baseline", "task": "arc", "metric": "acc", "value": 0.5}
            >>> Capability(pd.DataFrame([row])).value("baseline", "arc")
            0.5
        """
        t = self.table
        some = t[(t.condition == condition) & (t.task == task) & (t.metric == metric)]
        if some.empty:
            known = ", ".join(sorted({f"{row.condition} {row.task} {row.metric}" for row in t.itertuples()}))
            raise CosmicError(f"capability: no {condition} {task} {metric}; there is {known}")
        return float(some.value.iloc[0])


@checked
def measure_capability(
    model: TransformerBridge,
    tasks: Sequence[str],
    interventions: Interventions | Mapping[str, Interventions] | None = None,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int | None = None,
    chat: ChatFormat | bool = False,
    task_folder: str | Path | None = None,
    confirm_run_unsafe_code: bool = False,
    seed: int = 1234,
) -> Capability:
    """Benchmark the unedited model, then each edit, on the same items (Arditi et al. 2024, section 4.3).

    Needs the extra `cosmic_tl[capability]`. The edits act in the running model, so everything that can be steered can be
    measured. Tasks of lm-eval's own load their data from the Hugging Face hub; no code is loaded from there.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        tasks: Names of lm-eval tasks, groups or tags, such as "arc_easy" and "mmlu".
        interventions: An intervention (or several that act together), or a mapping from names to such; by default the
            unedited model alone is measured, as "baseline".
        limit: Items of each task, the first ones. Default all.
        num_fewshot: Examples before each item. Default the task's own.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        chat: True puts items in the model's chat template, few-shot examples as turns; a `ChatFormat` adds a system
            prompt and the like. Default false.
        task_folder: A folder with task files (YAML) of your own. They may name Python functions, which are run: use
            folders that you trust.
        confirm_run_unsafe_code: Allow tasks that run code which the model writes. Default false; use a sandbox.
        seed: Of few-shot examples, and of sampling where a task samples. Default 1234, as lm-eval's.

    Raises:
        CosmicError: If lm-eval is not installed, a task is unknown, cannot be loaded or would run code, a number is out
            of range, or an intervention does not fit the model.

    Example:
        >>> import json, tempfile
        >>> from cosmic_tl import load_model
        >>> folder = Path(tempfile.mkdtemp())
        >>> items = [{"question": "hello", "choices": ["Hello!", "Goodbye"], "answer": 0}]
        >>> _ = (folder / "items.json").write_text(json.dumps(items))
        >>> task = {
        ...     "task": "greeting",
        ...     "output_type": "multiple_choice",
        ...     "dataset_path": "json",
        ...     "dataset_kwargs": {"data_files": {"test": str(folder / "items.json")}, "cache_dir": str(folder / "cache")},
        ...     "test_split": "test",
        ...     "doc_to_text": "{{question}}",
        ...     "doc_to_choice": "{{choices}}",
        ...     "doc_to_target": "{{answer}}",
        ... }
        >>> _ = (folder / "greeting.yaml").write_text(json.dumps(task))  # JSON is YAML
        >>> model = load_model("demo", device="cpu")
        >>> measure_capability(model, ["greeting"], chat=True, task_folder=folder).value("baseline", "greeting")
        1.0
    """
    from cosmic_tl.experiments.harness import BridgeLM

    named = {} if interventions is None else named_interventions(interventions)
    for intervention in named.values():
        intervention_hooks(model, intervention)  # what does not fit fails before anything is measured
    names = list(tasks)
    if not names:
        raise CosmicError("tasks: none given; name at least one")
    for name, number, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0)):
        if number is not None and number < least:
            raise CosmicError(f"{name}: must be at least {least}, found {number}")
    chat_format = chat if isinstance(chat, ChatFormat) else ChatFormat()
    rows: list[dict[str, Any]] = []
    with _quiet(), random_state_kept():
        from lm_eval.evaluator import evaluate

        loaded = _load(names, task_folder, confirm_run_unsafe_code)
        for condition, intervention in {BASELINE: (), **named}.items():
            _prepare(loaded["tasks"], num_fewshot, seed)
            torch.manual_seed(seed)
            try:
                results = evaluate(
                    BridgeLM(model, intervention, batch_size, chat_format),
                    loaded,
                    limit=limit,
                    bootstrap_iters=RESAMPLES,
                    log_samples=False,
                    system_instruction=chat_format.system,
                    apply_chat_template=bool(chat),
                    fewshot_as_multiturn=bool(chat),
                    confirm_run_unsafe_code=confirm_run_unsafe_code,
                )
            except CosmicError:
                raise
            except (ValueError, AssertionError) as error:
                raise CosmicError(f"tasks: lm-eval could not run {', '.join(names)} ({_first_line(error)})") from error
            rows += [{"condition": condition, **row} for row in _rows(results)]
    table = pd.DataFrame(rows)
    if not table.empty:
        first = table.groupby(["task", "metric"]).value.transform("first")  # the baseline's
        table.insert(len(table.columns) - 1, "difference", table.value - first)
    return Capability(table)


def _load(names: Sequence[str], folder: str | Path | None, run_unsafe_code: bool) -> dict[str, Any]:
    """Tasks and groups, with their data."""
    from lm_eval.tasks import TaskManager

    if folder is not None and not Path(folder).is_dir():
        raise CosmicError(f"task_folder: no folder {str(folder)!r}; give one that holds task files")
    found = TaskManager(include_path=folder, include_defaults=False) if folder is not None else None
    if found is None or not set(names) <= set(found.all_tasks):
        found = TaskManager(include_path=folder)  # reads lm-eval's thousands of task files, which takes seconds
    if unknown := sorted(set(names) - set(found.all_tasks)):
        raise CosmicError(
            f"tasks: lm-eval knows no {unknown[0]!r}; `lm-eval ls tasks` lists them, or give task_folder=…"
        )
    try:
        loaded: dict[str, Any] = dict(found.load(list(names)))
    except Exception as error:
        raise CosmicError(
            f"tasks: could not load {', '.join(names)} ({_first_line(error)}); see the task's files"
        ) from error
    unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not run_unsafe_code:
        raise CosmicError(
            f"tasks: {unsafe[0]!r} runs code that the model writes; pass confirm_run_unsafe_code=True, in a sandbox"
        )
    return loaded


def _prepare(tasks: Mapping[str, Any], num_fewshot: int | None, seed: int) -> None:
    """The same few-shot examples each time; none where the task itself says so."""
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if own != 0:
            task.set_config("num_fewshot", (own or 0) if num_fewshot is None else num_fewshot)
        task.set_fewshot_seed(seed)


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """lm-eval keys a value as "metric,filter" and its standard error as "metric_stderr,filter"."""
    for task, scores in results["results"].items():
        for key, value in scores.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            stderr = scores.get(f"{metric}_stderr,{kind}")
            yield {
                "task": task,
                "metric": metric if kind == "none" else f"{metric},{kind}",
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, Real) else nan,
                "n": scores.get("sample_len", 0),
            }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what lm-eval logs, prints and draws; and with its bootstrap in this process, which has threads."""
    import datasets
    import lm_eval.api.task as building

    logger = logging.getLogger("lm_eval")
    level, bars, drawn = logger.level, datasets.are_progress_bars_disabled(), building.tqdm
    forks = os.environ.get("DISABLE_MULTIPROC")
    try:
        logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        building.tqdm = lambda some, **_: some
        os.environ["DISABLE_MULTIPROC"] = "1"
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        building.tqdm = drawn
        if not bars:
            datasets.enable_progress_bars()
        if forks is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = forks
