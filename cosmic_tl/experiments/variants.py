"""Selections side by side: what COSMIC's layer ranking, its target and the training prompts change about the choice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import each
from cosmic_tl._util.results import Result
from cosmic_tl.activations import MeanActivations, class_means
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.errors import CosmicError, NoCandidateError
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Keep

WIDE_SHARE = 0.25
"""Share of the layers that the wider ranking keeps."""
FOLDS = 5
"""Default number of folds of the training prompts."""


@checked
def standard_variants(options: CosmicOptions | None = None) -> dict[str, CosmicOptions]:
    """The variants of the paper and its released code, by name.

    Args:
        options: What they are variants of. Default the paper's.

    Example:
        >>> list(standard_variants())
        ['default', 'second half', 'wide', 'wide, concatenated', 'wide, per prompt', 'centred']
    """
    options = options or CosmicOptions()
    wide = replace(options, evaluation_share=WIDE_SHARE)
    return {
        "default": options,
        "second half": replace(options, exclude_first_half=True),
        "wide": wide,
        "wide, concatenated": replace(wide, target="concatenated"),
        "wide, per prompt": replace(wide, target="per-prompt"),
        "centred": replace(options, target="centred"),
    }


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Variants(Result):
    """What each variant chooses."""

    table: pd.DataFrame
    """One row per variant: variant, mode, target, evaluation_layers, layer, position, s_comply, s_refuse, score, kl, `cosine`
    with the first variant's direction, warnings (also that a filter left nothing) and notes. Scores of different targets are
    different quantities: compare the choices and not the scores."""
    selections: Mapping[str, Selection]
    """By variant, of those that found a direction."""

    def _lines(self) -> list[str]:
        n = len(self.table)
        return [f"Variants: {n} variant{'s' * (n != 1)}, {len(self.selections)} with a direction"]


@checked
def compare_variants(
    model: TransformerBridge,
    prompts: ContrastSet,
    variants: Mapping[str, CosmicOptions] | None = None,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    keep: Keep | None = None,
) -> Variants:
    """Select once under each of several settings, on the same training means.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        variants: Name to settings; the first is what the others are compared with. Default: `standard_variants`.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.
        keep: Gives what is already known for prompts and options, and takes new scores as they come. Default: nothing is kept.

    Raises:
        CosmicError: If there are no variants, the first one's filters leave nothing, or as `select_cosmic`.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> variants = {"first": options, "again": options}
        >>> found = compare_variants(load_model("demo", device="cpu"), load_prompts("demo"), variants)
        >>> found.table.cosine.round(6).tolist()
        [1.0, 1.0]
    """
    variants = standard_variants() if variants is None else variants
    if not variants:
        raise CosmicError("variants: none given; name at least one")
    cases = {name: (prompts, options) for name, options in variants.items()}
    return _compared(model, cases, chat, batch_size, keep)


@checked
def training_folds(
    prompts: ContrastSet, options: CosmicOptions | None = None, n_folds: int = FOLDS, seed: int = 0
) -> dict[str, ContrastSet]:
    """The same contrast set with fewer training prompts: all, either half, and without each fold of either side.

    Args:
        prompts: The concept's contrast set.
        options: With `n_train`. Default the paper's.
        n_folds: Number of folds, at least 2. Default 5.
        seed: Of the order that halves and folds are cut from.

    Raises:
        CosmicError: If there are fewer training prompts than folds.

    Example:
        >>> from cosmic_tl import load_prompts
        >>> sets = training_folds(load_prompts("demo"), CosmicOptions(n_train=20), n_folds=2)
        >>> {name: len(some.side("positive", "train")) for name, some in sets.items()}
        {'all': 20, 'first half': 10, 'second half': 10, 'without fold 1': 10, 'without fold 2': 10}
    """
    if n_folds < 2:
        raise CosmicError(f"n_folds: must be at least 2, found {n_folds}")
    n_train = (options or CosmicOptions()).n_train
    orders = []
    for number, texts in enumerate(prompts.sides("train", n_train)):
        if (n := len(texts)) < n_folds:
            raise CosmicError(f"n_folds: found {n_folds}, and there are {n} training prompts on a side; ask for fewer")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(2 * seed + number)).tolist()
        orders.append([texts[i] for i in order])

    def keeping(which: Callable[[list[str]], list[str]]) -> ContrastSet:
        positive, negative = map(which, orders)
        return replace(
            prompts,
            positive={**prompts.positive, "train": tuple(positive)},
            negative={**prompts.negative, "train": tuple(negative)},
        )

    folds = {f"without fold {k + 1}": keeping(partial(_without, fold=k, n_folds=n_folds)) for k in range(n_folds)}
    return {
        "all": keeping(lambda texts: texts),
        "first half": keeping(lambda texts: texts[: len(texts) // 2]),
        "second half": keeping(lambda texts: texts[len(texts) // 2 :]),
        **folds,
    }


def _without(texts: list[str], fold: int, n_folds: int) -> list[str]:
    return [text for i, text in enumerate(texts) if i % n_folds != fold]


@checked
def compare_training_folds(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | None = None,
    *,
    n_folds: int = FOLDS,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    keep: Keep | None = None,
) -> Variants:
    """Select once on all training prompts, on either half, and without each fold: how far the choice hangs on them.

    `Selection.stability` takes the training prompts for given; this does not, and costs 3 + `n_folds` selections in place of
    one.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        options: Of every selection. Default the paper's.
        n_folds: Number of folds. Default 5.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.
        keep: Gives what is already known for prompts and options, and takes new scores as they come. Default: nothing is kept.

    Raises:
        CosmicError: As `training_folds`, or as `select_cosmic` on all training prompts.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
        >>> found = compare_training_folds(load_model("demo", device="cpu"), load_prompts("demo"), options, n_folds=2)
        >>> found.table.variant.tolist()
        ['all', 'first half', 'second half', 'without fold 1', 'without fold 2']
    """
    options = options or CosmicOptions()
    sets = training_folds(prompts, options, n_folds)
    return _compared(model, {name: (some, options) for name, some in sets.items()}, chat, batch_size, keep)


def _compared(
    model: TransformerBridge,
    cases: Mapping[str, tuple[ContrastSet, CosmicOptions]],
    chat: ChatFormat | None,
    batch_size: int | None,
    keep: Keep | None,
) -> Variants:
    known: dict[tuple[int, int, int | None], tuple[MeanActivations, MeanActivations]] = {}
    selections: dict[str, Selection] = {}
    rows: list[dict[str, object]] = []
    for name, (prompts, options) in each(list(cases.items()), "selections"):
        key = (id(prompts), options.n_train, options.n_positions)
        if key not in known:
            positions = post_instruction_positions(model, chat, options.n_positions)
            train = prompts.sides("train", options.n_train)
            known[key] = class_means(model, train, positions=positions, chat=chat, batch_size=batch_size)
        row: dict[str, object] = {"variant": name, "mode": options.mode, "target": options.target}
        try:
            scores, products = (None, None) if keep is None else keep(prompts, options)
            found = select_cosmic(
                model,
                prompts,
                options,
                chat=chat,
                batch_size=batch_size,
                scores=scores,
                products=products,
                means=known[key],
            )
        except NoCandidateError as error:
            if not selections:
                raise
            rows.append({**row, "warnings": str(error)})
            continue
        selections[name] = found
        first = next(iter(selections.values())).direction
        rows.append(
            row
            | {"evaluation_layers": found.evaluation_layers}
            | {"layer": found.direction.layer, "position": found.direction.position}
            | {measure: float(found.winner[measure]) for measure in ("s_comply", "s_refuse", "score", "kl")}
            | {"cosine": float(found.direction.unit @ first.unit)}
            | {"warnings": " ".join(found.warnings), "notes": " ".join(found.notes)}
        )
    return Variants(pd.DataFrame(rows).astype({"layer": "Int64", "position": "Int64"}), selections)
