"""Activations of every prompt, one layer at a time: for what needs the prompts themselves, and not their means."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl._util.progress import track
from cosmic_tl.model.batching import batches
from cosmic_tl.model.forward import KeysValues, Reached, Resume, TokenBatch, forward
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.offload import loaded
from cosmic_tl.model.shortcuts import prefix_keys_values, shared_prefix, shortcuts


def layer_by_layer(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    *,
    n_positions: int = 1,
    batch_size: int | None = None,
    label: str = "activations by layer",
) -> Iterator[Float[Tensor, "prompt position d_model"]]:
    """The stream that enters each block, of all prompts at their last positions, from the first layer to the last.

    Takes one pass over the prompts: each layer goes on from the stream that the layer before has left. So it holds the stream at
    one layer (every token, in the model's dtype), and what it yields (float32, on the CPU), but never two layers' activations.
    A model that cannot go on from a layer takes a pass up to each one.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids.
        n_positions: How many of the last positions. Default 1.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.
        label: Name on the progress bar.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [tuple(found.shape) for found in layer_by_layer(model, [[5, 6, 7], [8, 9]], n_positions=2)][:2]
        [(2, 2, 128), (2, 2, 128)]
    """
    n_layers = int(model.cfg.n_layers)
    resumes = shortcuts(model, rows).resume
    n_prefix = shared_prefix(model, rows, n_positions) if resumes else 0
    past = prefix_keys_values(model, rows[0][:n_prefix])
    some = list(batches(model, [row[n_prefix:] for row in rows], batch_size))
    streams: list[Tensor] = []
    with track(n_layers, label) as advance:
        for layer in range(n_layers):
            site: tuple[int, Site] = (layer, "hook_resid_pre")
            if not resumes:
                passes = [forward(model, batch, [site], n_positions=n_positions) for batch in some]
                last = [_at(found, site) for found in passes]
            elif layer == 0:
                streams = [
                    _at(forward(model, batch, [site], n_positions=None, resume=Resume(past=past)), site)
                    for batch in some
                ]
                last = [stream[:, -n_positions:] for stream in streams]
            else:
                with loaded([model.blocks[layer - 1]]):
                    for i, batch in enumerate(some):  # in place, so that one layer's streams are held
                        resume = Resume(layer - 1, streams[i], past)
                        streams[i] = _at(forward(model, batch, [site], n_positions=None, resume=resume), site)
                last = [stream[:, -n_positions:] for stream in streams]
            found = torch.empty(len(rows), *last[0].shape[1:])
            for batch, part in zip(some, last, strict=True):
                found[list(batch.rows)] = part.float().cpu()
            yield found
            advance(1)


def _at(found: Reached, site: tuple[int, Site]) -> Tensor:
    return found.activations[site]


def block_by_block(
    model: TransformerBridge, some: Sequence[TokenBatch], past: KeysValues, *, n_positions: int = 1
) -> Iterator[tuple[int, int, dict[Site, Float[Tensor, "prompt position d_model"]]]]:
    """What enters and leaves each block at the last positions, all batches through one block before the next is read.

    For models with offloaded blocks, of which each is read once. It holds the stream of all batches at one layer.

    Args:
        model: A `TransformerBridge` that can go on from a layer (`shortcuts`).
        some: Batches of prompts.
        past: Keys and values of the tokens before them, or nothing.
        n_positions: How many of the last positions.

    Yields:
        Layer, number of the batch, and its activations by site.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> found = list(block_by_block(model, list(batches(model, [[5, 6], [7, 8]], 1)), ()))
        >>> len(found), found[-1][:2], found[-1][2]["hook_resid_post"].shape
        (16, (7, 1), torch.Size([1, 1, 128]))
    """
    n_layers = int(model.cfg.n_layers)
    streams: list[Tensor | None] = [None] * len(some)
    for layer in range(n_layers):
        reads: list[tuple[int, Site]] = [(layer, "hook_resid_pre"), (layer, "hook_resid_post")]
        if layer + 1 < n_layers:
            reads.append((layer + 1, "hook_resid_pre"))
        with loaded([model.blocks[layer]]):
            for number, batch in enumerate(some):
                resume = Resume(layer, streams[number], past)
                found = forward(model, batch, reads, n_positions=None, resume=resume).activations
                streams[number] = found.pop((layer + 1, "hook_resid_pre"), None)
                yield layer, number, {site: x[:, -n_positions:] for (_, site), x in found.items()}
