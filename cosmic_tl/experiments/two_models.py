"""Somebody else's edit: an edited model against its base, on the same prompts, with intervals."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import nan
from typing import Any

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import stage
from cosmic_tl.data.contrast_set import SIDES, ContrastSet, Prompts, Side, labels_of, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.answer_rows import answer_rows
from cosmic_tl.experiments.capability import Capability, measure_capability
from cosmic_tl.experiments.conditions import Condition, Row, terms_of
from cosmic_tl.experiments.cost import Cost
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.known_rows import done_conditions
from cosmic_tl.experiments.model_comparison import BASE, EDITED, ModelComparison
from cosmic_tl.experiments.removed_direction import find_removed_direction
from cosmic_tl.experiments.text_cost import BASELINE, by_document, text_frames
from cosmic_tl.generation.completions import complete
from cosmic_tl.generation.sampling import Sampling, describe_generation
from cosmic_tl.interventions.edits import Interventions, as_sequence
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.judges.base import Judge
from cosmic_tl.judges.substring import SubstringJudge
from cosmic_tl.metrics.fluency import mark_garbled
from cosmic_tl.metrics.likelihood import tokenize_pairs
from cosmic_tl.metrics.token_divergence import model_divergences
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge, model_label
from cosmic_tl.model.same_shape import check_same_shape, check_same_tokens

Kept = MutableMapping[str, list[Row]]


@checked
def compare_models(
    base: TransformerBridge,
    edited: TransformerBridge,
    prompts: Prompts,
    interventions: Interventions = (),
    *,
    n: int | None = None,
    texts: Sequence[str] | None = None,
    instructions: Sequence[tuple[str, str]] | None = None,
    tasks: Sequence[str] = (),
    task_options: Mapping[str, Any] | None = None,
    direction: Direction | None = None,
    names: tuple[str, str] | None = None,
    judge: Judge | None = None,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    sampling: Sampling | None = None,
    kept: Kept | None = None,
) -> ModelComparison:
    """Measure what an edited model does differently from its base, and which direction its weights lost.

    * Refusals and garbled completions on both sides, with Wilson intervals and McNemar's test against the base.
    * KL divergence on the negative prompts: of the first token, and per token of the base's own completions.
    * Cross-entropy of both models' completions under the base; that of given texts and responses under each model.
    * Tasks of lm-eval, where they are asked for.
    * The difference of the weights that write to the stream (`find_removed_direction`).

    Completions are judged, and called garbled, by the measures of the base: an edited model that fell apart finds its own text
    likely. Both models are in memory at once.

    Args:
        base: The `TransformerBridge` before the edit, with a tokenizer.
        edited: The one after it: another checkpoint, a GGUF file, or the base with an adapter (`load_model(…, adapter=…)`). The
            base itself is fine where interventions make the edit.
        prompts: A contrast set, whose test prompts are taken, or a pair of lists: positive and negative prompts.
        interventions: Edits that act in the edited model as it runs. Defaults to none.
        n: The first prompts of each side, at most. Default all.
        texts: Documents of plain text, whose cross-entropy is measured.
        instructions: (instruction, response) pairs; the loss is on the response alone.
        tasks: Of lm-eval, measured on both. Defaults to none.
        task_options: Further arguments of `measure_capability`, such as limit.
        direction: A direction of the base to compare the difference of the weights with. Defaults to none.
        names: What the two models are called. Defaults to the names that they were loaded from.
        judge: Its "refusal" is what is counted. Defaults to the phrases of refusals.
        chat: Formatting. Defaults to the plain chat template.
        max_new_tokens: Maximum number of new tokens. Default 64.
        temperature: 0 (default) is greedy.
        seed: For sampling, and for the bootstrap.
        batch_size: Rows per forward pass. Default: by memory, at most 128 for completions, else 32.
        sampling: Top-k, top-p and repetition penalty. Default none of them, whatever the checkpoints' defaults are.
        kept: Parts that an earlier, stopped comparison of the same models, prompts and settings had finished, by name; new ones
            are put into it. Defaults to none.

    Raises:
        CosmicError: If the models differ in shape or tokens, a kept part is of other prompts, the judge's verdicts are about
            safety, or as `complete`, `measure_cost` and `measure_capability`.

    Example:
        >>> from cosmic_tl import load_model
        >>> demo, weak = (load_model(name, device="cpu") for name in ("demo", "demo-weak"))
        >>> asked = ["Rob a bank clerk.", "Drown a goat."], ["Bake a pizza.", "Paint a door."]
        >>> found = compare_models(demo, weak, asked, max_new_tokens=24)
        >>> found.table[["measure", "side", "base", "edited"]].head(1).values.tolist()
        [['refusal', 'positive', 1.0, 0.0]]
    """
    check_same_shape(base, edited)
    intervention_hooks(edited, interventions)
    asked: dict[Side, list[str]] = dict(zip(SIDES, sides_of(prompts, "test", n), strict=True))
    check_same_tokens(base, edited, [*asked["positive"], *asked["negative"]], chat)
    if direction is not None:
        direction.check(base)
    parts = _Parts({} if kept is None else kept)
    judge = judge or SubstringJudge()
    generation = describe_generation(base, max_new_tokens, temperature, sampling)
    notes: list[str] = []
    subjects = {BASE: (base, ()), EDITED: (edited, interventions)}

    stage("completions")
    rows: list[Row] = []
    for side, (name, (model, edit)) in product(asked, subjects.items()):
        condition = Condition(name, side, as_sequence(edit))

        def answers(condition: Condition = condition, model: TransformerBridge = model) -> list[Row]:
            some = asked[condition.side]
            written = complete(
                model,
                some,
                condition.interventions,
                chat=chat,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                batch_size=batch_size,
                label=f"{condition.side}, {condition.name}",
                sampling=sampling,
            )
            return answer_rows(base, condition, some, written, judge, chat=chat, batch_size=batch_size)

        found = parts.get(f"completions, {side}, {name}", answers)
        if done_conditions(found, asked, ("condition",)) != {(side, name)}:
            raise CosmicError(f"kept: its completions of {name} on {side} prompts are others; leave them out")
        rows += found

    stage("divergences")
    own = [row["completion"] for row in rows if (row["side"], row["condition"]) == ("negative", BASE)]
    divergences = pd.DataFrame(
        parts.get(
            "divergences", lambda: _divergences(base, edited, interventions, asked["negative"], own, chat, batch_size)
        )
    )
    if divergences.prompt.tolist() != asked["negative"]:
        raise CosmicError("kept: its divergences are of other prompts; leave them out")

    cost = None
    if texts is not None or instructions is not None:
        stage("texts")
        both = {BASELINE: (base, ()), EDITED: (edited, interventions)}

        def costs() -> list[Row]:
            frames = text_frames(both, texts, instructions, chat=chat, batch_size=batch_size)
            return [{str(key): value for key, value in row.items()} for row in by_document(frames).to_dict("records")]

        cost = Cost(pd.DataFrame(parts.get("texts", costs)), seed)

    capability = None
    if tasks:
        stage("tasks")
        capability = _capability(
            parts, base, edited, interventions, tasks, {"batch_size": batch_size, **(task_options or {})}
        )

    stage("weights")
    labels = names or _labels(base, edited)
    try:
        removed = find_removed_direction(base, edited, direction, names=labels)
    except CosmicError as error:
        removed = None
        notes.append(f"Weights were not compared ({error})")

    frame = pd.DataFrame(rows)
    frame["seed"] = pd.Series([None] * len(rows), dtype=object)
    if isinstance(prompts, ContrastSet) and prompts.categories:
        frame["category"] = frame.prompt.map(dict(prompts.categories)).astype(object)
    frame["garbled"] = mark_garbled(base, frame, frame.condition == BASE, chat=chat, batch_size=batch_size)
    terms = terms_of(judge.phrases if isinstance(judge, SubstringJudge) else None, labels_of(prompts))
    effects = Effects(frame, terms, {**generation, "seed": seed})
    return ModelComparison(effects, divergences, *labels, removed, cost, capability, tuple(notes), seed)


@dataclass(frozen=True)
class _Parts:
    """What is done so far, by name."""

    kept: Kept

    def get(self, name: str, make: Callable[[], list[Row]]) -> list[Row]:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


def _labels(base: TransformerBridge, edited: TransformerBridge) -> tuple[str, str]:
    one, other = model_label(base), model_label(edited)
    return one, other if other != one else f"{other} (edited)"


def _divergences(
    base: TransformerBridge,
    edited: TransformerBridge,
    interventions: Interventions,
    asked: Sequence[str],
    own: Sequence[str],
    chat: ChatFormat | None,
    batch_size: int | None,
) -> list[Row]:
    """One row per prompt: KL of the first token either way, number of tokens of the base's completion, and their sum."""
    heads, tails = tokenize_pairs(base, asked, own, chat)
    # Of an empty completion the first token's distribution is read all the same; which token follows plays no part in it.
    read = [tail or [0] for tail in tails]
    found = model_divergences(base, edited, heads, read, interventions, batch_size=batch_size)
    return [
        {
            "prompt": prompt,
            "first": max(0.0, float(there[0])),  # rounding can leave −1e-17
            "first_reverse": max(0.0, float(back[0])),
            "tokens": len(tail),
            "total": max(0.0, float(there.sum())) if tail else 0.0,
        }
        for prompt, tail, (there, back) in zip(asked, tails, found, strict=True)
    ]


def _capability(
    parts: _Parts,
    base: TransformerBridge,
    edited: TransformerBridge,
    interventions: Interventions,
    tasks: Sequence[str],
    options: Mapping[str, Any],
) -> Capability:
    """Scores of both models, with the difference from the base."""
    subjects = {BASE: (base, None), EDITED: (edited, interventions or None)}
    rows: list[Row] = []
    for name, (model, edit) in subjects.items():

        def scores(model: TransformerBridge = model, edit: Interventions | None = edit) -> list[Row]:
            table = measure_capability(model, tasks, edit, **options).table
            some = table[table.condition == ("baseline" if edit is None else "edited")]
            return [
                {str(key): None if value != value else value for key, value in row.items()}  # JSON has no NaN
                for row in some.drop(columns=["condition", "difference"]).to_dict("records")
            ]

        rows += [{"condition": name, **row} for row in parts.get(f"tasks, {name}", scores)]
    table = pd.DataFrame(rows)
    table["stderr"] = table.stderr.astype(float).fillna(nan)
    first = table.groupby(["task", "metric"]).value.transform("first")
    table.insert(len(table.columns) - 1, "difference", table.value - first)
    return Capability(table)
