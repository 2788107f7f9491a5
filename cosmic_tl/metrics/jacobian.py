"""What a small change of the stream along a direction does to the stream that leaves the last block (Jacobian lens)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.autograd import forward_ad

from cosmic_tl._util.progress import track
from cosmic_tl.model.batching import batches, rows_per_pass
from cosmic_tl.model.forward import check_positions, forward
from cosmic_tl.model.hooks import Site, hook_name, without_hooks
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import late_start
from cosmic_tl.patching import MOST_ROWS, starts_late


def carried(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    vectors: Float[Tensor, "n d_model"],
    layer: int,
    *,
    n_positions: int = 1,
    batch_size: int | None = None,
) -> Float64[Tensor, "n d_model"]:
    """Vectors at the input of a block, carried to the output of the last one by the average Jacobian.

    The Jacobian is `Σ_{t' ≥ t} ∂y[last, t'] / ∂x[l, t]`, `t` and `t'` among the last positions, averaged over `t` and over the
    prompts: the estimator of Gurnee et al. 2026, at these positions. It takes forward-mode derivatives, one pass of the last
    positions from block `l` on per prompt and vector, and never makes the matrix. Hooks on the model play no part.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.
        vectors: Changes of `x[l, t]`.
        layer: The block `l` that they enter.
        n_positions: How many of the last positions. Default 1.
        batch_size: Rows (prompts times vectors) per pass. Default: by memory, at most 256.

    Raises:
        CosmicError: If a prompt is shorter than the positions.

    Example:
        >>> from cosmic_tl import load_model
        >>> carried(load_model("demo", device="cpu"), [[5, 6, 7], [8, 9]], torch.eye(128)[:2], 7).shape
        torch.Size([2, 128])
    """
    enters: tuple[int, Site] = (layer, "hook_resid_pre")
    leaves: tuple[int, Site] = (int(model.cfg.n_layers) - 1, "hook_resid_post")
    check_positions(min(map(len, rows)), n_positions)
    bar = track(len(rows) * len(vectors), "Jacobian lens")
    with torch.inference_mode(False), without_hooks(model), bar as advance:  # inference mode knows no tangents
        total = torch.zeros(vectors.shape, dtype=torch.float64)
        late = starts_late(model)
        for batch in batches(model, rows, batch_size):
            clean = forward(model, batch, [enters, leaves], n_positions=n_positions, keep_keys_values=late)
            most = batch_size or min(MOST_ROWS, rows_per_pass(model, n_positions if late else batch.ids.shape[1]))
            step = max(1, most // len(batch.rows))
            for start in range(0, len(vectors), step):
                some = vectors[start : start + step]
                tokens, resume = batch.times(len(some)), None
                if late:
                    past = clean.keys_values or ()
                    tokens, resume = late_start(batch, past, layer, clean.activations[enters], len(some))

                def attach(x: Tensor, hook: Any, some: Tensor = some) -> Tensor:
                    tangent = torch.zeros_like(x)
                    by_row = some.to(x).repeat(len(x) // len(some), 1)
                    tangent[:, -n_positions:] = by_row[:, None]
                    dual: Tensor = forward_ad.make_dual(x.clone(), tangent)  # type: ignore[no-untyped-call]
                    return dual

                hooks = [(hook_name(model, *enters), attach)]
                with forward_ad.dual_level():
                    found = forward(
                        model, tokens, [leaves], n_positions=n_positions, hooks=hooks, resume=resume, tangents=True
                    ).activations[leaves]
                    change = forward_ad.unpack_dual(found).tangent  # type: ignore[no-untyped-call]
                total[start : start + step] += change.view(-1, len(some), *change.shape[1:]).sum((0, 2)).cpu().double()
                advance(len(batch.rows) * len(some))
    return total / (len(rows) * n_positions)
