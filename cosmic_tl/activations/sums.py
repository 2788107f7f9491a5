"""Sums of activations, batch after batch, here or by copies of the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    advance: Callable[[int], object] = lambda n: None,
) -> Iterator[tuple[slice, Sums]]:
    """What the sums of activations are made of, in one order, whoever makes the passes.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids.
        n_positions: How many of the last positions.
        n_prefix: Tokens that all rows begin with, which are run once.
        batch_size: Prompts per forward pass; None is by memory.
        label: What the prompts are, in words.
        splits: From `random_splits`.
        advance: Takes the number of prompts just done.

    Yields:
        Layers, and the numbers `[layer, position, …]` there by what is summed.

    Example:
        >>> from cosmic_tl import load_model
        >>> rows = [[5, 6, 7], [8, 9]]
        >>> ((layers, sums),) = added(load_model("demo", device="cpu"), rows, 1, 0, None, "prompts", {})
        >>> layers, sums["hook_resid_pre"].shape
        (slice(0, 8, None), torch.Size([8, 1, 128]))
    """
    some = list(batches(model, [row[n_prefix:] for row in rows], batch_size))
    copies, n_layers = copies_of(model), int(model.cfg.n_layers)
    if copies is not None and len(some) > 1:
        shared = rows, n_positions, n_prefix, splits
        for number, sums in enumerate(_in_order(copies, shared, [batch.rows for batch in some], label)):
            advance(len(some[number].rows))
            yield slice(0, n_layers), sums
        return
    past = prefix_keys_values(model, rows[0][:n_prefix])
    for number, where, found in at_all_blocks(model, rows, some, past, n_positions=n_positions):
        batch = some[number]
        advance(len(batch.rows) if where.stop == n_layers else 0)
        yield where, _summed(found, _weights(splits, batch.rows))


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
    order, past = [numbers[i] for i in some[0].rows], prefix_keys_values(model, rows[0][:n_prefix])
    passes = at_all_blocks(model, own, some, past, n_positions=n_positions)
    return summed_up(model, ((where, _summed(found, _weights(splits, order))) for _, where, found in passes))


def summed_up(model: TransformerBridge, parts: Iterable[tuple[slice, Sums]]) -> Sums:
    """The sums that numbers at some layers add up to.

    Args:
        model: A `TransformerBridge`.
        parts: Layers, and numbers `[layer, position, …]` there.

    Example:
        >>> from cosmic_tl import load_model
        >>> parts = [(slice(0, 2), {"n": torch.ones(2, 1)}), (slice(1, 3), {"n": torch.ones(2, 1)})]
        >>> summed_up(load_model("demo", device="cpu"), parts)["n"].flatten().tolist()
        [1.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    total: Sums = {}
    for where, part in parts:
        for name, some in part.items():
            total.setdefault(name, some.new_zeros(int(model.cfg.n_layers), *some.shape[1:]))[where] += some
    return total


def _weights(splits: Splits, numbers: Sequence[int]) -> Mapping[int, Float64[Tensor, " some"]]:
    """Those of some prompts."""
    return {seed: weights[list(numbers)] for seed, weights in splits.items()}


def _summed(found: Mapping[Site, Float[Tensor, "layer prompt position d_model"]], weights: Splits) -> Sums:
    """Sums over a batch's prompts."""
    into, out = (found[site].cpu().double() for site in SITES)
    halves = {f"half {seed}": torch.einsum("b,lbpd->lpd", some, into) for seed, some in weights.items()}
    return {SITES[0]: into.sum(1), SITES[1]: out.sum(1), "squares": into.square().sum((1, 3)), **halves}
