"""Forward passes on hook points: what to edit, what to read, where to start and to stop."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from cosmic_tl.errors import CosmicError
from cosmic_tl.model.hooks import Hook, Site, alone, hook_name, hooked, without_hooks
from cosmic_tl.model.matmul import fast_linear


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Left-padded prompts."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    """1 on real tokens, 0 on padding."""
    rows: tuple[int, ...]
    """Indices of these prompts in the full list."""

    def times(self, n: int) -> "TokenBatch":
        """Each prompt `n` times, one after the other."""
        return TokenBatch(self.ids.repeat_interleave(n, 0), self.mask.repeat_interleave(n, 0), self.rows * n)

    def tiled(self, n: int) -> "TokenBatch":
        """All prompts, and all of them again, `n` times."""
        return TokenBatch(self.ids.repeat(n, 1), self.mask.repeat(n, 1), self.rows * n)


KeysValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of some tokens, `[row, head, token, d_head]`, one pair per layer."""
_block_outputs: WeakKeyDictionary[TransformerBridge, int | None] = WeakKeyDictionary()


class _Stop(Exception):
    """Raised to stop a pass once everything has been read."""


@dataclass(frozen=True, eq=False)
class Resume:
    """Where a pass starts, if not at the first token and the first block."""

    layer: int = 0
    """The first block to run; lower blocks return their input."""
    stream: Float[Tensor, "batch seq d_model"] | None = None
    """The residual stream that enters it."""
    past: KeysValues | None = None
    """Keys and values of the tokens before the batch, without padding in between: one row shared by all rows of the
    batch, or several rows, each shared by equally many rows of the batch, in order."""
    past_mask: Int[Tensor, "row token"] | None = None
    """1 on real tokens of the past, 0 on padding before them; default all real."""


@dataclass(frozen=True, eq=False)
class Reached:
    """What a pass read."""

    activations: dict[tuple[int, Site], Float[Tensor, "batch position d_model"]] = field(default_factory=dict)
    logits: Float[Tensor, "batch vocab"] | None = None
    """At the last position, in float32."""
    keys_values: KeysValues | None = None
    """From the block at which the pass started."""


def forward(
    model: TransformerBridge,
    batch: TokenBatch,
    reads: Iterable[tuple[int, Site]] = (),
    *,
    n_positions: int | None = 1,
    logits: bool = False,
    hooks: Sequence[Hook] = (),
    resume: Resume | None = None,
    last_token_only: bool = False,
    keep_keys_values: bool = False,
    tangents: bool = False,
) -> Reached:
    """Run one pass, from the first block that is needed to the last one that is read.

    Args:
        model: A `TransformerBridge`.
        batch: Left-padded prompts, or what follows the tokens of `resume.past`.
        reads: (layer, site) pairs to read.
        n_positions: How many of the last positions to read; None for all.
        logits: Whether to compute the logits of the last position too.
        hooks: Edits to make on the way; an edit at a site that is read is seen there.
        resume: Where to start.
        last_token_only: In the last block, compute the MLP and the attention output for the last token only.
            Activations of that block at other tokens are then undefined.
        keep_keys_values: Whether to return the keys and values too.
        tangents: Whether to carry on tangents of forward-mode differentiation (`torch.func.jvp`), which hooks bring in. Inference
            mode, oneDNN and fused attention would drop or refuse them.

    Raises:
        CosmicError: If a site does not exist.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.batching import batches
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, tokenize(model, ["hi", "hello"]), 2))
        >>> stream = forward(model, batch, [(3, "hook_resid_pre")], n_positions=None).activations[3, "hook_resid_pre"]
        >>> rest = forward(model, batch, logits=True, resume=Resume(3, stream))
        >>> torch.allclose(rest.logits, forward(model, batch, logits=True).logits, atol=1e-5)
        True
    """
    resume = resume or Resume()
    wanted = list(reads)
    reached: dict[tuple[int, Site], Tensor] = {}
    first = 0 if n_positions is None else -n_positions

    def keep(key: tuple[int, Site]) -> Callable[..., None]:
        def hook(activation: Tensor, hook: Any) -> None:
            reached[key] = activation[:, first:].clone()
            if len(reached) == len(wanted) and not logits:
                raise _Stop

        return hook

    # First the stream is set, then edited, then read.
    everything: list[Hook] = []
    if resume.stream is not None:
        stream = resume.stream
        everything.append((hook_name(model, resume.layer, "hook_resid_pre"), lambda x, hook: stream.to(x.device)))
    everything += hooks
    if last_token_only:
        last = int(model.cfg.n_layers) - 1 if logits else max(layer for layer, _ in wanted)
        everything += _last_token_hooks(model, last)
    everything += [(hook_name(model, *key), keep(key)) for key in wanted]

    inner = model.original_model
    mask = batch.mask
    if resume.past:
        n_past = resume.past[-1][0].shape[2]
        before = mask.new_ones(1, n_past) if resume.past_mask is None else resume.past_mask
        mask = torch.cat([before.repeat_interleave(mask.shape[0] // before.shape[0], 0), mask], dim=1)
    options = _options(inner, mask, batch.ids.shape[1], 1)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(resume.past or ()):
        if layer < resume.layer:  # its block does not run, and only their number counts
            cache.update(keys[:1, :1], values[:1, :1], layer)
            continue
        times = batch.ids.shape[0] // keys.shape[0]
        cache.update(keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0), layer)
    if resume.past or keep_keys_values:
        options |= {"use_cache": True, "past_key_values": cache}
    found = None
    with ExitStack() as stack:
        stack.enter_context(alone(model))
        stack.enter_context(torch.inference_mode(not tangents))
        for mode in (torch.no_grad(), sdpa_kernel(SDPBackend.MATH)) if tangents else (fast_linear(),):
            stack.enter_context(mode)
        stack.enter_context(_passing_through(model, resume.layer))
        stack.enter_context(hooked(model, everything))
        with suppress(_Stop):
            found = inner(batch.ids, attention_mask=mask, **options).logits[:, -1].float()
    return Reached(
        reached,
        found if logits else None,
        tuple((layer.keys, layer.values) for layer in cache.layers[resume.layer :]) if keep_keys_values else None,
    )


def _options(inner: Any, mask: Tensor, length: int, n_logits: int) -> dict[str, Any]:
    """Options that limit a model's logits to the last `length` tokens, if it supports them."""
    found: dict[str, Any] = {
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - length :],
        "use_cache": False,
        "logits_to_keep": n_logits,  # skips the unembedding of all other positions
    }
    known = signature(inner.forward).parameters
    return {name: value for name, value in found.items() if name in known}


def last_logits(model: TransformerBridge, batch: TokenBatch, n: int) -> Float[Tensor, "batch position vocab"]:
    """Logits at the last `n` positions, in the model's dtype, with a gradient if enabled.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.batching import batches
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> with torch.inference_mode():
        ...     last_logits(model, next(batches(model, tokenize(model, ["hi"]), 1)), 3).shape
        torch.Size([1, 3, 2048])
    """
    inner: Any = model.original_model
    options = _options(inner, batch.mask, batch.ids.shape[1], n)
    with alone(model):
        logits: Tensor = inner(batch.ids, attention_mask=batch.mask, **options).logits
    return logits[:, -n:]


def _last_token_hooks(model: TransformerBridge, layer: int) -> list[Hook]:
    """Pass only the last token to a block's MLP and attention output projection.

    Their results are broadcast onto a stream with all tokens, so shapes fit and the last token is correct.
    """
    points, known = (f"blocks.{layer}.attn.o.hook_in", f"blocks.{layer}.mlp.hook_in"), model.hook_dict
    return [(name, lambda x, hook: x[:, -1:]) for name in points if name in known]


@contextmanager
def _passing_through(model: TransformerBridge, n_blocks: int) -> Iterator[None]:
    """Make the lowest blocks return their input."""
    skipped = list(model.blocks)[:n_blocks]
    n_outputs = _n_outputs(model) if n_blocks else None

    def same(*args: Any, hidden_states: Tensor | None = None, **kwargs: Any) -> Any:
        x = args[0] if args else hidden_states
        return x if n_outputs is None else (x, *[None] * (n_outputs - 1))

    try:
        for block in skipped:
            block.__dict__["forward"] = same  # plain assignment would go to the wrapped block
        yield
    finally:
        for block in skipped:
            block.__dict__.pop("forward", None)


def _n_outputs(model: TransformerBridge) -> int | None:
    """Length of the tuple that a block returns, None for a bare tensor; this depends on the architecture."""
    if model not in _block_outputs:

        def look(module: torch.nn.Module, args: Any, output: Any) -> None:
            _block_outputs[model] = len(output) if isinstance(output, tuple) else None

        handle = model.blocks[0].register_forward_hook(look)
        try:
            with without_hooks(model):
                forward(model, tiny_batch(model), logits=True)
        finally:
            handle.remove()
    return _block_outputs[model]


def tiny_batch(model: TransformerBridge) -> TokenBatch:
    """Four tokens for trying out a model.

    Example:
        >>> from cosmic_tl import load_model
        >>> tiny_batch(load_model("demo", device="cpu")).ids.tolist()
        [[1, 2, 3, 4]]
    """
    ids = torch.arange(1, 5, device=torch.device(str(model.cfg.device)))[None]
    return TokenBatch(ids, torch.ones_like(ids), (0,))


def next_token_logits(
    model: TransformerBridge, batch: TokenBatch, hooks: Sequence[Hook] = ()
) -> Float[Tensor, "batch vocab"]:
    """Logits at the last position, in float32.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.batching import batches
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> next_token_logits(model, next(batches(model, tokenize(model, ["hi"]), 1))).shape
        torch.Size([1, 2048])
    """
    logits = forward(model, batch, logits=True, hooks=hooks).logits
    assert logits is not None
    return logits


def read(
    model: TransformerBridge,
    batch: TokenBatch,
    sites: Iterable[tuple[int, Site]],
    *,
    n_positions: int = 1,
    hooks: Sequence[Hook] = (),
) -> dict[tuple[int, Site], Float[Tensor, "batch position d_model"]]:
    """Activations of the last positions at some hook points, from one pass that stops after the last hook point.

    Args:
        model: A `TransformerBridge`.
        batch: Left-padded prompts.
        sites: (layer, site) pairs to read.
        n_positions: How many of the last positions.
        hooks: Edits to make on the way; an edit at a site that is read is seen there.

    Raises:
        CosmicError: If a prompt of the batch is shorter than `n_positions`, or a site does not exist.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.batching import batches
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, tokenize(model, ["hi", "hello"]), 2))
        >>> read(model, batch, [(3, "hook_resid_post")], n_positions=5)[3, "hook_resid_post"].shape
        torch.Size([2, 5, 128])
    """
    check_positions(int(batch.mask.sum(1).min()), n_positions)
    return forward(model, batch, sites, n_positions=n_positions, hooks=hooks).activations


def check_positions(shortest: int, n_positions: int) -> None:
    """Check that the shortest prompt has as many tokens as are read.

    Raises:
        CosmicError: If it has not.

    Example:
        >>> check_positions(4, 5)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: positions: 5 asked for, and a prompt has only 4 tokens; ask for fewer positions
    """
    if shortest < n_positions:
        raise CosmicError(
            f"positions: {n_positions} asked for, and a prompt has only {shortest} tokens; ask for fewer positions"
        )
