"""Activations of every prompt, for figures and probes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import Resume, forward, read
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.model.shortcuts import prefix_keys_values, shared_prefix


@checked
def cache_activations(
    model: TransformerBridge,
    prompts: Sequence[str],
    *,
    site: Site = "hook_resid_pre",
    positions: Positions | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "prompt layer position d_model"]:
    """Every prompt's activations at every layer and post-instruction position, in the order of the prompts.

    Holds all of them in memory, for figures and probes. Use `mean_activations` for means.

    Args:
        model: A `TransformerBridge`.
        prompts: Instructions.
        site: Which of a block's hook points. Default the stream that enters it.
        positions: From `post_instruction_positions` (the default).
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: As `mean_activations`.

    Example:
        >>> from cosmic_tl import load_model
        >>> cache_activations(load_model("demo", device="cpu"), ["hi", "hello there"]).shape
        torch.Size([2, 8, 5, 128])
    """
    positions = positions or post_instruction_positions(model, chat)
    rows = tokenize(model, prompts, chat)
    layers = range(int(model.cfg.n_layers))
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in batches(model, rows, batch_size):
        acts = read(model, batch, [(layer, site) for layer in layers], n_positions=len(positions))
        stacked = torch.stack([acts[layer, site].float().cpu() for layer in layers], dim=1)
        for row, activation in zip(batch.rows, stacked, strict=True):
            found[row] = activation
    return torch.stack(found)


@checked
def stream_at(
    model: TransformerBridge,
    prompts: Sequence[str],
    layer: int,
    position: int,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Float64[Tensor, "prompt d_model"]:
    """`x[l, i]` of every prompt at one layer and position, from passes that stop there.

    Args:
        model: A `TransformerBridge`.
        prompts: Instructions.
        layer: From 0.
        position: Counted from the end.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If layer or position is out of range, or a prompt is blank or too long.

    Example:
        >>> from cosmic_tl import load_model
        >>> stream_at(load_model("demo", device="cpu"), ["hi", "hello there"], 4, -1).shape
        torch.Size([2, 128])
    """
    if not 0 <= layer < int(model.cfg.n_layers) or position >= 0:
        raise CosmicError(
            f"layer, position: found {layer} and {position}; layers are 0 to {int(model.cfg.n_layers) - 1}, and positions count "
            "from the end: -1 is the last"
        )
    rows = tokenize(model, prompts, chat)
    if (shortest := min(map(len, rows))) < -position:
        raise CosmicError(f"position: found {position}, and a prompt has only {shortest} tokens; take a later one")
    n_prefix = shared_prefix(model, rows, -position)
    start = Resume(past=prefix_keys_values(model, rows[0][:n_prefix]))
    site: tuple[int, Site] = (layer, "hook_resid_pre")
    found = torch.empty(len(rows), int(model.cfg.d_model), dtype=torch.float64)
    for batch in batches(model, [row[n_prefix:] for row in rows], batch_size):
        reached = forward(model, batch, [site], n_positions=-position, resume=start)
        found[list(batch.rows)] = reached.activations[site][:, 0].cpu().double()
    return found
