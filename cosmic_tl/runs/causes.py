"""The causal map of a run."""

from dataclasses import replace
from pathlib import Path

from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.errors import NoCandidateError
from cosmic_tl.experiments.causal import causal_map
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.metrics.refusal_score import find_refusal_tokens
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.runs.logs import ProductLog
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.selection.result import Selection


def map_causes(
    model: TransformerBridge,
    prompts: ContrastSet,
    settings: RunSettings,
    selection: Selection,
    log: Path,
    notes: list[str],
) -> CausalMap | None:
    """Where the direction acts: means of training prompts, effects on test prompts.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        settings: The run's.
        selection: The choice.
        log: Where effects are kept, so that a stopped run goes on.
        notes: Takes a sentence where there is nothing to measure, or less than usual.

    Example:
        >>> callable(map_causes)
        True
    """
    options, chat, tokens = settings.selection, settings.chat, selection.tokens
    train, test = prompts.sides("train", options.n_train), prompts.sides("test", settings.causal)
    try:
        tokens = tokens or find_refusal_tokens(model, train, chat=chat, batch_size=settings.batch_size)
    except NoCandidateError as error:
        if not selection.evaluation_layers:
            notes.append(f"The causal map was not made: {error}")
            return None
        notes.append(f"The causal map has no refusal scores: {error}")
    positive, negative = ({"train": tuple(own), "val": tuple(held)} for own, held in zip(train, test, strict=True))
    return causal_map(
        model,
        replace(prompts, positive=positive, negative=negative, contrast={}),
        selection,
        tokens=tokens,
        n_positions=options.n_positions,
        chat=chat,
        batch_size=settings.batch_size,
        seed=settings.seed,
        effects=ProductLog(log),
    )
