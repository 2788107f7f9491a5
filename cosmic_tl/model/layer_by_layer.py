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
from cosmic_tl.model.offload import is_offloaded, loaded, outside_blocks
from cosmic_tl.model.shortcuts import prefix_keys_values, shared_prefix, shortcuts

_SITES: tuple[Site, Site] = ("hook_resid_pre", "hook_resid_post")


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


def at_all_blocks(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    some: Sequence[TokenBatch],
    past: KeysValues,
    *,
    n_positions: int = 1,
) -> Iterator[tuple[int, slice, dict[Site, Float[Tensor, "layer prompt position d_model"]]]]:
    """What enters and leaves every block at the last positions, of every batch.

    Takes one pass per batch. Of a model with offloaded blocks, all batches go through one block before the next, so that each is
    read once; it then holds the stream of all batches at one layer.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.
        some: The prompts in batches, without the tokens of `past`.
        past: Keys and values of the tokens before them, or nothing.
        n_positions: How many of the last positions.

    Yields:
        Number of a batch, which layers, and its activations there by site.

    Example:
        >>> from cosmic_tl import load_model
        >>> model, rows = load_model("demo", device="cpu"), [[5, 6], [7, 8]]
        >>> ((number, layers, found),) = at_all_blocks(model, rows, list(batches(model, rows, 2)), ())
        >>> number, layers, found["hook_resid_post"].shape
        (0, slice(0, 8, None), torch.Size([8, 2, 1, 128]))
    """
    n_layers = int(model.cfg.n_layers)
    if not is_offloaded(model) or not shortcuts(model, rows).resume:
        everywhere = [(layer, site) for layer in range(n_layers) for site in _SITES]
        for number, batch in enumerate(some):
            at = forward(model, batch, everywhere, n_positions=n_positions, resume=Resume(past=past)).activations
            stacked = {site: torch.stack([at[layer, site].cpu() for layer in range(n_layers)]) for site in _SITES}
            yield number, slice(0, n_layers), stacked
        return
    streams: list[Tensor | None] = [None] * len(some)
    with loaded(outside_blocks(model, logits=False)):
        for layer in range(n_layers):
            reads: list[tuple[int, Site]] = [(layer, site) for site in _SITES]
            if layer + 1 < n_layers:
                reads.append((layer + 1, "hook_resid_pre"))
            with loaded([model.blocks[layer]]):
                for number, batch in enumerate(some):
                    resume = Resume(layer, streams[number], past)
                    at = forward(model, batch, reads, n_positions=None, resume=resume).activations
                    streams[number] = at.pop((layer + 1, "hook_resid_pre"), None)
                    yield (
                        number,
                        slice(layer, layer + 1),
                        {site: at[layer, site][None, :, -n_positions:] for site in _SITES},
                    )
