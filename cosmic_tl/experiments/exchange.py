"""What is exchanged in a causal map: what parts of a model write, and the patches that give it other values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.experiments.causal_statistics import DIRECTION, PLACEBO, WHOLE, Place
from cosmic_tl.experiments.options import CausalOptions, CausalPart
from cosmic_tl.model.batching import batches
from cosmic_tl.model.components import output_projection
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import Hook, Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.patching import Change, Patch
from cosmic_tl.patching.changes import SITES

Values = dict[int, Float64[Tensor, "..."]]
"""By layer, what a part writes: `[position, group, d_model]`, of single heads `[position, head, group, d_model]`."""


Batches = Iterator[tuple[tuple[int, ...], Values]]
"""The numbers of some prompts, and what is written on them: `[prompt, position, (head,) d_model]`."""


def mean_of(written: Batches) -> Values:
    """The prompts' mean, as one group."""
    total: Values = {}
    n = 0
    for numbers, values in written:
        n += len(numbers)
        for layer, some in values.items():
            total[layer] = total.get(layer, 0) + some.sum(0)
    return {layer: (some / n).unsqueeze(-2) for layer, some in total.items()}


def each_of(written: Batches) -> Values:
    """Each prompt as a group of its own."""
    order: list[int] = []
    found: dict[int, list[Tensor]] = {}
    for numbers, values in written:
        order += numbers
        for layer, some in values.items():
            found.setdefault(layer, []).append(some)
    back = torch.tensor(order).argsort()
    return {layer: torch.cat(some)[back].movedim(0, -2) for layer, some in found.items()}


def written(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    part: CausalPart,
    layers: Sequence[int],
    n_positions: int,
    batch_size: int | None,
) -> Batches:
    """What a part of a model writes at the last positions, batch by batch."""
    heads = {layer: output_projection(model, layer, "attention") for layer in layers} if part == "head" else {}
    inputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(z: Tensor, hook: Any) -> None:
            inputs[layer] = z[:, -n_positions:].flatten(2)

        return hook

    hooks: list[Hook] = [(projection.hook_in, keep(layer)) for layer, projection in heads.items()]
    if part == "head":
        sites: list[tuple[int, Site]] = [(max(layers), "hook_attn_out")]  # where the pass may end
    else:
        sites = [(layer, SITES[part]) for layer in layers]
        sites += [(layer, "hook_resid_pre") for layer in layers if part == "block"]
    for batch in batches(model, rows, batch_size):
        found = read(model, batch, sites, n_positions=n_positions, hooks=hooks)
        if part == "head":
            with torch.inference_mode():
                values = {layer: heads[layer].of_each(z).cpu().double() for layer, z in inputs.items()}
        else:
            values = {layer: found[layer, SITES[part]].cpu().double() for layer in layers}
        if part == "block":
            values = {layer: y - found[layer, "hook_resid_pre"].cpu().double() for layer, y in values.items()}
        yield batch.rows, values


def patches_of(
    other: Values,
    unit: Tensor,
    random: Sequence[Tensor],
    asked: CausalOptions,
    layers: Sequence[int],
    positions: Sequence[int],
) -> Iterator[tuple[str, Place, Patch]]:
    """Treatment and place of each patch, and the patch."""
    part = asked.part
    for layer in layers:
        reach = [at for at in other if {"at": at == layer, "up-to": at <= layer, "from": at >= layer}[asked.span]]
        heads = range(other[layer].shape[1]) if part == "head" else [None]
        for position in positions:
            at_tokens = [position] if asked.token_span == "at" else [one for one in positions if one >= position]
            for head in heads:
                given = {
                    (at, token): other[at][token] if head is None else other[at][token, head]
                    for at in reach
                    for token in at_tokens
                }
                along = (
                    {at: torch.zeros_like(value) for at, value in given.items()}
                    if asked.treatment == "removal"
                    else given
                )

                def patch(
                    targets: Mapping[tuple[int, int], Tensor],
                    read: Tensor | None = None,
                    write: Tensor | None = None,
                    position: int = position,
                    head: int | None = head,
                ) -> Patch:
                    of = "attention" if part == "head" else part
                    return Patch(
                        position,
                        tuple(Change(at, of, to, read, write, token, head) for (at, token), to in targets.items()),
                    )

                place = (layer, position) if head is None else (layer, position, head)
                yield DIRECTION, place, patch(along, unit)
                for number, one in enumerate(random):
                    yield f"{PLACEBO} {number}", place, patch(along, unit, one)
                if asked.whole:
                    yield WHOLE, place, patch(given)
