"""Sums of activations, batch after batch, here or by copies of the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.spreading import Piece, Spread
from cosmic_tl.model.batching import batches
from cosmic_tl.model.copies import copies_of
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.layer_by_layer import at_all_blocks
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import prefix_keys_values

Splits = Mapping[int, Float64[Tensor, " prompt"]]
"""Seed to the weight of each prompt in the difference between the means of two random halves."""
SITES: tuple[Site, ...] = ("hook_resid_pre", "hook_resid_post")
"""Where activations are taken."""
Sums = dict[str, Tensor]
"""Sums over prompts, by what is summed."""


def added(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    n_positions: int,
    n_prefix: int,
    batch_size: int | None,
    label: str,
    splits: Splits,
) -> Iterator[tuple[int, slice, Sums]]:
    """What the sums of activations are made of, in one order, whoever makes the passes.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids.
        n_positions: How many of the last positions.
        n_prefix: Tokens that all rows begin with, which are run once.
        batch_size: Prompts per forward pass; None is by memory.
        label: What the prompts are, in words.
        splits: From `random_splits`.

    Yields:
        How many prompts are done with it, the layers, and the numbers `[layer, position, …]` by what is summed.

    Example:
        >>> from cosmic_tl import load_model
        >>> rows = [[5, 6, 7], [8, 9]]
        >>> ((done, where, sums),) = added(load_model("demo", device="cpu"), rows, 1, 0, None, "prompts", {})
        >>> done, sums["hook_resid_pre"].shape
        (2, torch.Size([8, 1, 128]))
    """
    some = list(batches(model, [row[n_prefix:] for row in rows], batch_size))
    copies = copies_of(model)
    if copies is not None and len(some) > 1:
        shared = rows, n_positions, n_prefix, splits
        for number, sums in enumerate(_in_order(copies, shared, [batch.rows for batch in some], label)):
            yield len(some[number].rows), slice(None), sums
        return
    past, n_layers = prefix_keys_values(model, rows[0][:n_prefix]), int(model.cfg.n_layers)
    for number, where, found in at_all_blocks(model, rows, some, past, n_positions=n_positions):
        batch = some[number]
        sums = _summed(found, _weights(splits, batch.rows))
        yield len(batch.rows) if where.stop == n_layers else 0, where, sums


def _in_order(copies: Spread, shared: tuple[Any, ...], groups: Sequence[Sequence[int]], label: str) -> Iterator[Sums]:
    """Sums of some batches, which copies of the model share, in their order and not in that in which they come."""
    rows, n_positions, n_prefix, splits = shared
    pieces = []
    for number, numbers in enumerate(groups, 1):
        weights = {seed: some.tolist() for seed, some in _weights(splits, numbers).items()}
        key = [label, n_positions, n_prefix, weights, [list(rows[i]) for i in numbers]]
        pieces.append(Piece(f"{label.removeprefix('activations, ')}, batch {number}", (numbers,), key))
    found: dict[int, Sums] = {}
    done = 0
    for at, sums in copies.map("activations", _sums_of, shared, pieces):
        found[at] = sums
        while done in found:
            yield found.pop(done)
            done += 1


def _sums_of(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    n_positions: int,
    n_prefix: int,
    splits: Splits,
    numbers: Sequence[int],
) -> Sums:
    """What the prompts of one batch add to all sums, in another process."""
    own = [rows[i] for i in numbers]
    some = list(batches(model, [row[n_prefix:] for row in own], len(numbers)))
    order, past, total = [numbers[i] for i in some[0].rows], prefix_keys_values(model, rows[0][:n_prefix]), Sums()
    for _, where, found in at_all_blocks(model, own, some, past, n_positions=n_positions):
        for name, added_here in _summed(found, _weights(splits, order)).items():
            total.setdefault(name, added_here.new_zeros(int(model.cfg.n_layers), *added_here.shape[1:]))[where] += (
                added_here
            )
    return total


def _weights(splits: Splits, numbers: Sequence[int]) -> Mapping[int, Float64[Tensor, " some"]]:
    """Those of some prompts."""
    return {seed: weights[list(numbers)] for seed, weights in splits.items()}


def _summed(found: Mapping[Site, Float[Tensor, "layer prompt position d_model"]], weights: Splits) -> Sums:
    """Sums over a batch's prompts."""
    into, out = (found[site].cpu().double() for site in SITES)
    halves = {f"half {seed}": torch.einsum("b,lbpd->lpd", some, into) for seed, some in weights.items()}
    return {SITES[0]: into.sum(1), SITES[1]: out.sum(1), "squares": into.square().sum((1, 3)), **halves}
