"""COSMIC's variants side by side: what the layer ranking and the target of the comparison change about the choice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from cosmic_tl._util.border import checked
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

WIDE_SHARE = 0.25
"""Share of the layers that the wider ranking keeps."""


@checked
def standard_variants(options: CosmicOptions | None = None) -> dict[str, CosmicOptions]:
    """The variants of the paper and its released code, by name.

    Args:
        options: What they are variants of. Default the paper's.

    Example:
        >>> list(standard_variants())
        ['default', 'second half', 'wide', 'wide, concatenated', 'wide, per prompt']
    """
    options = options or CosmicOptions()
    wide = replace(options, evaluation_share=WIDE_SHARE)
    return {
        "default": options,
        "second half": replace(options, exclude_first_half=True),
        "wide": wide,
        "wide, concatenated": replace(wide, target="concatenated"),
        "wide, per prompt": replace(wide, target="per-prompt"),
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
) -> Variants:
    """Select once under each of several settings, on the same training means.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        variants: Name to settings; the first is what the others are compared with. Default: `standard_variants`.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.

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
    known: dict[tuple[int, int | None], tuple[MeanActivations, MeanActivations]] = {}
    selections: dict[str, Selection] = {}
    rows: list[dict[str, object]] = []
    for name, options in variants.items():
        key = (options.n_train, options.n_positions)
        if key not in known:
            positions = post_instruction_positions(model, chat, options.n_positions)
            train = prompts.sides("train", options.n_train)
            known[key] = class_means(model, train, positions=positions, chat=chat, batch_size=batch_size)
        row: dict[str, object] = {"variant": name, "mode": options.mode, "target": options.target}
        try:
            found = select_cosmic(model, prompts, options, chat=chat, batch_size=batch_size, means=known[key])
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
