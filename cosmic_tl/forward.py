"""Forward passes on hook points: what to edit, what to read, where to stop.

The only file that knows how TransformerLens names and stops things.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.chat import TokenBatch
from cosmic_tl.errors import CosmicError

Site = Literal["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
Hook = tuple[str, Callable[..., Tensor | None]]
"""A hook point's name and a function `(activation, hook=…)` that returns its replacement, or None."""
_additive: WeakSet[TransformerBridge] = WeakSet()


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
    point = model.hook_dict.get(f"blocks.{layer}.{site}")
    if point is None or point.name is None:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} has no {site}, so this edit has no place "
            "there; edits of one layer's input (Addition, AffineEdit) need hook_resid_pre alone"
        )
    return str(point.name)


def _forward(model: TransformerBridge, batch: TokenBatch, hooks: Sequence[Hook], **options: Any) -> Any:
    with torch.inference_mode(), model.hooks(fwd_hooks=list(hooks)):
        return model(batch.ids, attention_mask=batch.mask, **options)


def _last_logits_only(model: TransformerBridge) -> dict[str, int]:
    """The option that spares the unembedding of all but the last position, where the architecture has it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(model.original_model.forward).parameters else {}


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
    logits: Tensor = _forward(model, batch, hooks, **_last_logits_only(model))
    return logits[:, -1].float()


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
    wanted = list(sites)
    found: dict[tuple[int, Site], Tensor] = {}

    def keep(key: tuple[int, Site]) -> Callable[..., None]:
        def hook(activation: Tensor, hook: Any) -> None:
            found[key] = activation[:, -n_positions:].clone()

        return hook

    reads: list[Hook] = [(hook_name(model, *key), keep(key)) for key in wanted]
    last = max(layer for layer, _ in wanted) + 1
    stop: dict[str, int] = {"stop_at_layer": last} if last < int(model.cfg.n_layers) else _last_logits_only(model)
    _forward(model, batch, [*hooks, *reads], **stop)
    return found


def check_additive(model: TransformerBridge) -> None:
    """Make sure that each block adds `hook_attn_out` and `hook_mlp_out` to its input and nothing else.

    Directional ablation edits these three, and holds in the whole stream only then.

    Raises:
        CosmicError: If a block's output is anything but the sum.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_additive(load_model("demo", device="cpu"))
    """
    if model in _additive:
        return
    n_layers = int(model.cfg.n_layers)
    sites: tuple[Site, ...] = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    ids = torch.arange(1, 5, device=torch.device(str(model.cfg.device)))[None]
    batch = TokenBatch(ids, torch.ones_like(ids), (0,))
    found = read(model, batch, [(layer, site) for layer in range(n_layers) for site in sites], n_positions=4)
    for layer in range(n_layers):
        before, attn, mlp, after = (found[layer, site].float() for site in sites)
        tolerance = 1e-3 if found[layer, sites[0]].dtype == torch.float32 else 5e-2
        if before.shape != after.shape or not (after - before - attn.to(after) - mlp.to(after)).norm() <= (
            tolerance * after.norm()
        ):
            raise CosmicError(
                f"model: block {layer} of {type(model.original_model).__name__} does more than add attention and MLP "
                "outputs to its input, so directional ablation would not hold; use AffineEdit (mode='affine') instead"
            )
    _additive.add(model)


@contextmanager
def counting_tokens(model: TransformerBridge) -> Iterator[Mapping[str, int]]:
    """Tells hooks where in the sequence the pass under way stands.

    Yields:
        A mapping whose "start" is the number of tokens before this pass's first one, those whose keys and values a
        cache holds (0 in a pass without a cache).

    Example:
        >>> from cosmic_tl import load_model
        >>> with counting_tokens(load_model("demo", device="cpu")) as clock:
        ...     clock["start"]
        0
    """
    clock = {"start": 0}

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        length = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
        clock["start"] = int(length()) if length is not None else 0

    handle = model.original_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield clock
    finally:
        handle.remove()
