"""Forward passes on hook points: what to edit, what to read, where to start and to stop.

The only file that knows how TransformerLens names, starts and stops things.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from cosmic_tl.chat import TokenBatch
from cosmic_tl.errors import CosmicError
from cosmic_tl.matmul import FastLinear
from cosmic_tl.models import model_fingerprint

T = TypeVar("T")
Site = Literal["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
Hook = tuple[str, Callable[..., Tensor | None]]
"""A hook point's name and a function `(activation, hook=…)` that returns its replacement, or None."""
KeysValues = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of some tokens, `[row, head, token, d_head]`, one pair a layer."""
_names: WeakKeyDictionary[TransformerBridge, dict[str, str]] = WeakKeyDictionary()
_block_outputs: WeakKeyDictionary[TransformerBridge, int | None] = WeakKeyDictionary()
_probed: WeakKeyDictionary[TransformerBridge, dict[tuple[str, ...], Any]] = WeakKeyDictionary()


def hook_name(model: TransformerBridge, layer: int, site: Site) -> str:
    """The canonical name of a block's hook point.

    Canonical, because a hook on an alias fires once for every name in TransformerLens's compatibility mode.

    Raises:
        CosmicError: If the layer is outside the model, or its block has no such hook point.

    Example:
        >>> from cosmic_tl import load_model
        >>> hook_name(load_model("demo", device="cpu"), 3, "hook_resid_pre")
        'blocks.3.hook_in'
    """
    n_layers = int(model.cfg.n_layers)
    if not 0 <= layer < n_layers:
        raise CosmicError(f"layer: found {layer}, and the model has layers 0 to {n_layers - 1}")
    if model not in _names:  # going through all hook points takes milliseconds
        _names[model] = {alias: str(point.name) for alias, point in model.hook_dict.items() if point.name is not None}
    name = _names[model].get(f"blocks.{layer}.{site}")
    if name is None:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} has no {site}, so this edit has no place "
            "there; edits of one layer's input (Addition, AffineEdit) need hook_resid_pre alone"
        )
    return name


def _hooked(model: TransformerBridge) -> list[HookPoint]:
    """The hook points that somebody has hooked, each once."""
    return [point for point in {id(point): point for point in model.hook_dict.values()}.values() if point.fwd_hooks]


def hooks_around(model: TransformerBridge) -> list[Callable[..., Any]]:
    """The functions that are hooked to a model, by `steering` or by the user.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with model.hooks(fwd_hooks=[("blocks.3.hook_in", lambda x, hook: x)]):
        ...     len(hooks_around(model))
        1
    """
    handles = [handle for point in _hooked(model) for handle in point.fwd_hooks]
    return [handle.user_hook for handle in handles if handle.user_hook is not None]


@contextmanager
def without_hooks(model: TransformerBridge) -> Iterator[None]:
    """The model as if nobody had hooked it; afterwards all hooks are where they were.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with model.hooks(fwd_hooks=[("blocks.3.hook_in", lambda x, hook: 0 * x)]), without_hooks(model):
        ...     hooks_around(model)
        []
    """
    kept = [(point, point._forward_hooks, point.fwd_hooks) for point in _hooked(model)]
    try:
        for point, _, _ in kept:
            point._forward_hooks, point.fwd_hooks = OrderedDict(), []
        yield
    finally:
        for point, hooks, handles in kept:
            point._forward_hooks, point.fwd_hooks = hooks, handles


def probed(model: TransformerBridge, what: str, probe: Callable[[], T]) -> T:
    """What trying a model finds, tried once for each set of weights and dtype, without anybody's hooks.

    Args:
        model: The model.
        what: What is tried.
        probe: Tries it.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> probed(model, "an example", lambda: 1), probed(model, "an example", lambda: 2)
        (1, 1)
    """
    known = _probed.setdefault(model, {})
    key = (what, model_fingerprint(model), str(next(model.original_model.parameters()).dtype))
    if key not in known:
        with without_hooks(model):
            known[key] = probe()
    return cast(T, known[key])


class _Stop(Exception):
    """Everything that was to be read has been read."""


@dataclass(frozen=True, eq=False)
class Resume:
    """Where a pass starts, when not at the first token and the first block."""

    layer: int = 0
    """The first block to run; the ones below pass their input through."""
    stream: Float[Tensor, "batch seq d_model"] | None = None
    """The residual stream that enters it."""
    past: KeysValues | None = None
    """Keys and values of the tokens before the batch's, without padding between them: one row that all rows of the batch
    follow, or several that equally many rows each follow, in order."""


@dataclass(frozen=True, eq=False)
class Reached:
    """What a pass read."""

    activations: dict[tuple[int, Site], Float[Tensor, "batch position d_model"]] = field(default_factory=dict)
    logits: Float[Tensor, "batch vocab"] | None = None
    """At the last position, in float32."""
    keys_values: KeysValues | None = None
    """From the block on where the pass started."""


def forward(
    model: TransformerBridge,
    batch: TokenBatch,
    reads: Iterable[tuple[int, Site]] = (),
    n_positions: int | None = 1,
    logits: bool = False,
    hooks: Sequence[Hook] = (),
    resume: Resume | None = None,
    last_token_only: bool = False,
    keep_keys_values: bool = False,
) -> Reached:
    """One pass: from where it has to start to where nothing more is read.

    Args:
        model: Any bridge.
        batch: Left-padded prompts, or what follows the tokens of `resume.past`.
        reads: (layer, site) pairs to read.
        n_positions: How many of the last positions to read; None for all.
        logits: Also go on to the logits of the last position.
        hooks: Edits to make on the way; an edit at a site that is read is seen there.
        resume: Where to start.
        last_token_only: In the last block that runs compute the MLP and the attention's output of the last token
            alone; other tokens of that block then hold nothing that means anything.
        keep_keys_values: Return the keys and values too.

    Raises:
        CosmicError: If a site does not exist.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.chat import batches, tokenize
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, tokenize(model, ["hi", "hello"]), 2))
        >>> stream = forward(model, batch, [(3, "hook_resid_pre")], None).activations[3, "hook_resid_pre"]
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

    # The stream comes in first, is then edited, and read last.
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
        mask = torch.cat([mask.new_ones(mask.shape[0], n_past), mask], dim=1)
    options = _options(inner, mask, batch.ids.shape[1], 1)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(resume.past or ()):
        times = batch.ids.shape[0] // keys.shape[0]
        cache.update(keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0), layer)
    if resume.past or keep_keys_values:
        options |= {"use_cache": True, "past_key_values": cache}
    found = None
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(FastLinear())
        stack.enter_context(_passing_through(model, resume.layer))
        stack.enter_context(model.hooks(fwd_hooks=everything))
        with suppress(_Stop):
            found = inner(batch.ids, attention_mask=mask, **options).logits[:, -1].float()
    return Reached(
        reached,
        found if logits else None,
        tuple((layer.keys, layer.values) for layer in cache.layers[resume.layer :]) if keep_keys_values else None,
    )


def _options(inner: Any, mask: Tensor, length: int, n_logits: int) -> dict[str, Any]:
    """What a model is told of its last `length` tokens, as far as it takes it."""
    found: dict[str, Any] = {
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - length :],
        "use_cache": False,
        "logits_to_keep": n_logits,  # spares the unembedding of all other positions
    }
    known = signature(inner.forward).parameters
    return {name: value for name, value in found.items() if name in known}


def last_logits(model: TransformerBridge, batch: TokenBatch, n: int) -> Float[Tensor, "batch position vocab"]:
    """Logits at the last `n` positions, in the model's dtype; with a gradient where one is asked for.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.chat import batches, tokenize
        >>> model = load_model("demo", device="cpu")
        >>> with torch.inference_mode():
        ...     last_logits(model, next(batches(model, tokenize(model, ["hi"]), 1)), 3).shape
        torch.Size([1, 3, 2048])
    """
    inner: Any = model.original_model
    options = _options(inner, batch.mask, batch.ids.shape[1], n)
    logits: Tensor = inner(batch.ids, attention_mask=batch.mask, **options).logits
    return logits[:, -n:]


def _last_token_hooks(model: TransformerBridge, layer: int) -> list[Hook]:
    """Cut all tokens but the last from what enters a block's MLP and attention output.

    Both are added to a stream that still has all tokens, so the shapes fit, and its last token is right.
    """
    points, known = (f"blocks.{layer}.attn.o.hook_in", f"blocks.{layer}.mlp.hook_in"), model.hook_dict
    return [(name, lambda x, hook: x[:, -1:]) for name in points if name in known]


@contextmanager
def _passing_through(model: TransformerBridge, n_blocks: int) -> Iterator[None]:
    """Let the lowest blocks return their input at once."""
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
    """How many things a block gives the model in a tuple, None for a bare tensor: up to the architecture."""
    if model not in _block_outputs:

        def look(module: torch.nn.Module, args: Any, output: Any) -> None:
            _block_outputs[model] = len(output) if isinstance(output, tuple) else None

        handle = model.blocks[0].register_forward_hook(look)
        try:
            with without_hooks(model):
                forward(model, _tiny_batch(model), logits=True)
        finally:
            handle.remove()
    return _block_outputs[model]


def _tiny_batch(model: TransformerBridge) -> TokenBatch:
    ids = torch.arange(1, 5, device=torch.device(str(model.cfg.device)))[None]
    return TokenBatch(ids, torch.ones_like(ids), (0,))


def next_token_logits(
    model: TransformerBridge, batch: TokenBatch, hooks: Sequence[Hook] = ()
) -> Float[Tensor, "batch vocab"]:
    """Logits at the last position, in float32.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.chat import batches, tokenize
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
    n_positions: int = 1,
    hooks: Sequence[Hook] = (),
) -> dict[tuple[int, Site], Float[Tensor, "batch position d_model"]]:
    """Activations of the last positions at some hook points, in one pass that stops after the last of them.

    Args:
        model: Any bridge.
        batch: Left-padded prompts.
        sites: (layer, site) pairs to read.
        n_positions: How many of the last positions.
        hooks: Edits to make on the way; an edit at a site that is read is seen there.

    Raises:
        CosmicError: If a prompt of the batch is shorter than `n_positions`, or a site does not exist.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.chat import batches, tokenize
        >>> model = load_model("demo", device="cpu")
        >>> batch = next(batches(model, tokenize(model, ["hi", "hello"]), 2))
        >>> read(model, batch, [(3, "hook_resid_post")], n_positions=5)[3, "hook_resid_post"].shape
        torch.Size([2, 5, 128])
    """
    if (shortest := int(batch.mask.sum(1).min())) < n_positions:
        raise CosmicError(
            f"positions: {n_positions} asked for, and a prompt has only {shortest} tokens; ask for fewer positions"
        )
    return forward(model, batch, sites, n_positions, hooks=hooks).activations


def masks_padding(model: TransformerBridge) -> bool:
    """Whether padding before a prompt leaves its activations as they are.

    Attention masks it. A recurrent model may take it into its state: RWKV ignores the mask, and so does RecurrentGemma's
    convolution. A recurrent model is tried once, on a short row beside a long one. And where an intervention around
    (`steering`) has a mask of tokens, padding would move the tokens under it.

    Example:
        >>> from cosmic_tl import load_model
        >>> masks_padding(load_model("demo", device="cpu"))
        True
    """
    if not getattr(model.adapter, "supports_batched_generation", True):
        return False
    if any(isinstance(getattr(hook, "tokens", None), Tensor) for hook in hooks_around(model)):
        return False
    if not getattr(model.original_model, "_is_stateful", False):
        return True

    def probe() -> bool:
        short = _tiny_batch(model)
        n, device = short.ids.shape[1], short.ids.device
        ids, mask = torch.arange(1, 3 * n + 1, device=device).repeat(2, 1), torch.ones(2, 3 * n, device=device).long()
        ids[0, -n:], mask[0, :-n] = short.ids[0], 0
        site: tuple[int, Site] = (int(model.cfg.n_layers) - 1, "hook_resid_post")
        padded, alone = (
            read(model, batch, [site], n)[site][0].float() for batch in (TokenBatch(ids, mask, (0, 1)), short)
        )
        tolerance = 1e-4 if model.cfg.dtype in (torch.float32, torch.float64) else 5e-2
        return bool((padded - alone).norm() <= tolerance * alone.norm())

    return probed(model, "padding", probe)


def check_additive(model: TransformerBridge) -> None:
    """Make sure that each block adds `hook_attn_out` and `hook_mlp_out` to its input and nothing else.

    Directional ablation edits these three, and holds in the whole stream only then.

    Raises:
        CosmicError: If a block's output is anything but the sum.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_additive(load_model("demo", device="cpu"))
    """
    if (layer := probed(model, "additive", lambda: _first_not_additive(model))) is not None:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} does more than add attention and MLP "
            "outputs to its input, so directional ablation would not hold; use AffineEdit (mode='affine') instead"
        )


def _first_not_additive(model: TransformerBridge) -> int | None:
    n_layers = int(model.cfg.n_layers)
    sites: tuple[Site, ...] = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    found = read(
        model, _tiny_batch(model), [(layer, site) for layer in range(n_layers) for site in sites], n_positions=4
    )
    for layer in range(n_layers):
        before, attn, mlp, after = (found[layer, site].float() for site in sites)
        tolerance = 1e-3 if found[layer, sites[0]].dtype == torch.float32 else 5e-2
        if before.shape != after.shape or not (after - before - attn.to(after) - mlp.to(after)).norm() <= (
            tolerance * after.norm()
        ):
            return layer
    return None


@contextmanager
def counting_tokens(model: TransformerBridge) -> Iterator[Mapping[str, int]]:
    """Tells hooks where in the sequence the pass under way stands.

    Yields:
        A mapping whose "start" is the number of tokens before this pass's first one, those that a cache or a recurrent
        state holds (0 in a pass without one). A recurrent state does not know how many it holds: they are counted from
        the pass that began it.

    Example:
        >>> from cosmic_tl import load_model
        >>> with counting_tokens(load_model("demo", device="cpu")) as clock:
        ...     clock["start"]
        0
    """
    clock, seen = {"start": 0}, 0

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        clock["start"] = _tokens_before(kwargs, seen)
        fed = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        seen = clock["start"] + (0 if fed is None else int(fed.shape[1]))

    handle = model.original_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield clock
    finally:
        handle.remove()


def _tokens_before(kwargs: Mapping[str, Any], seen: int) -> int:
    """How many tokens the cache given to a pass holds; `seen` where it is a recurrent state, which does not know."""
    found = [kwargs[name] for name in ("past_key_values", "cache_params", "state") if kwargs.get(name) is not None]
    if not found:
        return 0
    length = getattr(found[0], "get_seq_length", None)
    if length is None:
        return max(seen, 1)  # at least one, also where it was begun before anyone counted
    try:
        return int(length())
    except ValueError:
        return max(seen, 1) if found[0].has_previous_state() else 0
