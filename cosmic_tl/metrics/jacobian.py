"""What a small change of the stream along a direction does to the stream that leaves the last block (Jacobian lens)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.progress import track
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.batching import batches, rows_per_pass
from cosmic_tl.model.forward import TokenBatch, check_positions, forward
from cosmic_tl.model.hooks import Hook, Site, hook_name, without_hooks
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.shortcuts import late_start, out_of_memory
from cosmic_tl.patching.passes import MOST_ROWS, starts_late


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
        CosmicError: If a prompt is shorter than the positions, or the model has an operation without such a derivative.

    Example:
        >>> from cosmic_tl import load_model
        >>> carried(load_model("demo", device="cpu"), [[5, 6, 7], [8, 9]], torch.eye(128)[:2], 7).shape
        torch.Size([2, 128])
    """
    check_positions(min(map(len, rows)), n_positions)
    bar = track(len(rows) * len(vectors), "Jacobian lens")
    with torch.inference_mode(False), torch.no_grad(), without_hooks(model), bar as advance:
        total = torch.zeros(vectors.shape, dtype=torch.float64)
        for batch in batches(model, rows, batch_size):
            upper, stream = _upper_blocks(model, batch, layer, n_positions)
            most = batch_size or min(MOST_ROWS, rows_per_pass(model, batch.ids.shape[1]))
            step = max(1, most // len(batch.rows))
            for start in range(0, len(vectors), step):
                some = vectors[start : start + step]
                total[start : start + step] += _changes(model, upper, stream, some).cpu().double()
                advance(len(batch.rows) * len(some))
    return total / (len(rows) * n_positions)


def _upper_blocks(
    model: TransformerBridge, batch: TokenBatch, layer: int, n_positions: int
) -> tuple[Callable[[Tensor], Tensor], Float[Tensor, "row position d_model"]]:
    """The last positions of a batch, from what enters a block to what leaves the last one, as a function; and what enters."""
    enters: tuple[int, Site] = (layer, "hook_resid_pre")
    leaves: tuple[int, Site] = (int(model.cfg.n_layers) - 1, "hook_resid_post")
    late = starts_late(model)
    clean = forward(model, batch, [enters, leaves], n_positions=n_positions, keep_keys_values=late)
    stream = clean.activations[enters].clone()  # which inference mode can be left with
    tokens, resume = late_start(batch, clean.keys_values or (), layer, stream, 1) if late else (batch, None)

    def upper(x: Tensor) -> Tensor:
        hooks: list[Hook] = [(hook_name(model, *enters), lambda y, hook: torch.cat([y[:, :-n_positions], x], dim=1))]
        found = forward(model, tokens, [leaves], n_positions=n_positions, hooks=hooks, resume=resume, tangents=True)
        return found.activations[leaves]

    return upper, stream


def _changes(
    model: TransformerBridge,
    upper: Callable[[Tensor], Tensor],
    stream: Float[Tensor, "row position d_model"],
    vectors: Float[Tensor, "n d_model"],
) -> Float[Tensor, "n d_model"]:
    """Of what leaves, summed over rows and positions, for each vector; the pass itself is run once for all of them."""

    def change(vector: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(upper, (stream,), (vector.expand_as(stream),))[1]
        return found.sum((0, 1))

    try:
        found: Tensor = torch.func.vmap(change)(vectors.to(stream))
    except (NotImplementedError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise CosmicError(
            f"model: something in {type(model.original_model).__name__} has no forward-mode derivative "
            f"({first_line(error)[:120]}); leave out the prompts, for the logit lens"
        ) from error
    return found
