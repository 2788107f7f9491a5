"""What attention heads add along a direction, and where they attend."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, n_shared, tokenize
from cosmic_tl.model.forward import TokenBatch, read
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.parts import given_to, outputs_of
from cosmic_tl.suffixes.groups import ADVERSARIAL, BARE_PROMPTS, HARMFUL, RANDOM, REGIONS, Groups, summary_by_group
from cosmic_tl.suffixes.tokens import frames

Head = tuple[int, int]
"""Layer and head."""


def contributions_along(
    model: TransformerBridge,
    prompts: Sequence[str],
    direction: Direction,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> tuple[Float64[Tensor, "prompt layer head"], Float64[Tensor, "prompt layer"]]:
    """What each head writes along `r̂` at the last position, and what the bias of the output projection writes.

    Their sum is the component along `r̂` of what attention adds to the stream (`hook_attn_out`). If there is a norm
    between the output projection and the stream (Gemma 2, OLMo 2), its scale on that prompt is used.

    Args:
        model: A `TransformerBridge` whose attention has an output projection.
        prompts: Instructions.
        direction: Whose `r̂` is written.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If the direction does not fit the model, or a block has no attention of this kind.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> heads, bias = contributions_along(load_model("demo", device="cpu"), ["Rob a clerk."], direction)
        >>> heads.shape, bias.shape
        (torch.Size([1, 8, 4]), torch.Size([1, 8]))
    """
    direction.check(model)
    rows = tokenize(model, prompts, chat)
    n_heads, outputs = int(model.cfg.n_heads), outputs_of(model, "attention")
    along = [one.along(direction.unit[None]) for one in outputs]
    heads = torch.zeros(len(rows), len(outputs), n_heads, dtype=torch.float64)
    bias = torch.zeros(len(rows), len(outputs), dtype=torch.float64)
    with track(len(rows), "heads") as advance:
        for batch in batches(model, rows, batch_size):
            found = given_to(model, batch, outputs, 1)
            for layer, ((given, factor), (slopes, constant)) in enumerate(zip(found, along, strict=True)):
                heads[list(batch.rows), layer] = (given[:, -1] * slopes).view(len(given), n_heads, -1).sum(-1)
                bias[list(batch.rows), layer] = factor[:, -1, 0] * constant
            advance(len(batch.rows))
    return heads, bias


@checked
def head_contributions(
    model: TransformerBridge,
    groups: Groups,
    direction: Direction,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Contribution of each head along `r̂` at the last position, by group (Arditi et al. 2024, figure 6a).

    Args:
        model: A `TransformerBridge` whose attention has an output projection.
        groups: From `suffix_groups`, or with any other names.
        direction: Whose `r̂` is written.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        One row per group and head: group, layer, head, mean, sd (of the sample), n.

    Raises:
        CosmicError: As `contributions_along`.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = head_contributions(load_model("demo", device="cpu"), {"harmful": ["Rob a clerk."]}, direction)
        >>> list(found), len(found)
        (['group', 'layer', 'head', 'mean', 'sd', 'n'], 32)
    """
    tables = []
    for group, prompts in groups.items():
        found, _ = contributions_along(model, prompts, direction, chat=chat, batch_size=batch_size)
        _, n_layers, n_heads = found.shape
        where = {
            "layer": [layer for layer in range(n_layers) for _ in range(n_heads)],
            "head": list(range(n_heads)) * n_layers,
        }
        tables.append(summary_by_group(group, found.flatten(1), where))
    return pd.concat(tables, ignore_index=True)


@checked
def top_heads(contributions: pd.DataFrame, *, n: int = 8, group: str = RANDOM) -> list[Head]:
    """The heads that write the most along `r̂`, strongest first.

    Args:
        contributions: From `head_contributions`.
        n: Number of heads. Default 8, as in the paper.
        group: Group of prompts on which they are ranked. Defaults to those with a random suffix.

    Raises:
        CosmicError: If the table does not have this group.

    Example:
        >>> columns = {"group": ["harmful"] * 2, "layer": [0, 0], "head": [0, 1], "mean": [0.1, 0.3]}
        >>> top_heads(pd.DataFrame(columns), n=1, group="harmful")
        [(0, 1)]
    """
    some = contributions[contributions.group == group]
    if some.empty:
        raise CosmicError(f"group: the contributions have no {group!r}; they have {sorted(set(contributions.group))}")
    best = some.nlargest(n, "mean")
    return [(int(layer), int(head)) for layer, head in zip(best.layer, best["head"], strict=True)]


@checked
def head_attention(
    model: TransformerBridge,
    groups: Groups,
    heads: Sequence[Head],
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Where heads attend from the last token: instruction, suffix or template (Arditi et al. 2024, figure 6b).

    Args:
        model: A `TransformerBridge` with attention patterns.
        groups: From `suffix_groups`; only groups with a suffix are measured.
        heads: From `top_heads`.
        chat: Formatting. Defaults to the plain chat template. A system prompt counts as template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Returns:
        One row per group, head and region: group, layer, head, region, mean (share of the attention), sd (of the
        sample), n.

    Raises:
        CosmicError: If the model gives no attention pattern, or a group or a head does not exist.

    Example:
        >>> from cosmic_tl.suffixes import suffix_groups
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> groups = suffix_groups(model, ["Rob a clerk."], ["Bake a pie."], " x x")
        >>> found = head_attention(model, groups, [(4, 0)])
        >>> found.groupby("group")["mean"].sum().round(3).tolist()
        [1.0, 1.0]
    """
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    if wrong := [head for head in heads if not (0 <= head[0] < n_layers and 0 <= head[1] < n_heads)]:
        raise CosmicError(f"heads: found {wrong[0]}, and the model has {n_layers} layers of {n_heads} heads")
    if missing := [group for group in (HARMFUL, RANDOM, ADVERSARIAL) if group not in groups]:
        raise CosmicError(f"groups: found no {missing[0]!r}; pass what suffix_groups(…) returned")
    places = frames(model, groups[HARMFUL], chat)
    start = n_shared(tokenize(model, BARE_PROMPTS, chat))
    where: dict[str, Sequence[Any]] = {
        "layer": [layer for layer, _ in heads for _ in REGIONS],
        "head": [head for _, head in heads for _ in REGIONS],
        "region": list(REGIONS) * len(heads),
    }
    tables = []
    for group in (RANDOM, ADVERSARIAL):
        rows = tokenize(model, groups[group], chat)
        found = torch.zeros(len(rows), len(heads), len(REGIONS), dtype=torch.float64)
        with track(len(rows), "attention") as advance:
            for batch in batches(model, rows, batch_size):
                patterns = _last_patterns(model, batch, {layer for layer, _ in heads})
                for i, row in enumerate(batch.rows):
                    place = places[row]
                    end = n_shared([rows[row], place.before])
                    tail = len(rows[row]) - len(place.after)
                    for j, (layer, head) in enumerate(heads):
                        weights = patterns[layer][i, head, -len(rows[row]) :].cpu().double()
                        instruction, suffix = weights[start:end].sum(), weights[end:tail].sum()
                        found[row, j] = torch.stack([instruction, suffix, weights.sum() - instruction - suffix])
                advance(len(batch.rows))
        tables.append(summary_by_group(group, found.flatten(1), where))
    return pd.concat(tables, ignore_index=True)


def _pattern(model: TransformerBridge, layer: int) -> str:
    """The canonical name of the hook point of a block's attention pattern."""
    point = model.hook_dict.get(f"blocks.{layer}.attn.hook_pattern")
    if point is None or point.name is None:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} has no attn.hook_pattern; its heads cannot be told "
            "apart"
        )
    return str(point.name)


def _last_patterns(model: TransformerBridge, batch: TokenBatch, layers: set[int]) -> dict[int, Tensor]:
    """The last token's attention in some layers: `[row, head, token]`."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(pattern: Tensor, hook: Any) -> None:
            found[layer] = pattern[:, :, -1].float().cpu()

        return hook

    hooks = [(_pattern(model, layer), keep(layer)) for layer in sorted(layers)]
    read(model, batch, [(max(layers), "hook_resid_post")], hooks=hooks)
    if silent := sorted(layers - set(found)):
        raise CosmicError(
            f"model: block {silent[0]} gave no attention pattern; call "
            "model.original_model.set_attn_implementation('eager') first"
        )
    return found
