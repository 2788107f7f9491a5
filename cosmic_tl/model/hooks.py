"""Hook points: names, attached hooks, and which tokens a pass edits."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.errors import CosmicError
from cosmic_tl.model.fingerprint import model_fingerprint

T = TypeVar("T")
Site = Literal["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
Hook = tuple[str, Callable[..., Tensor | None]]
"""A hook point's name and a function `(activation, hook=…)` that returns its replacement, or None."""
_users: WeakKeyDictionary[TransformerBridge, Any] = WeakKeyDictionary()
"""The lock of each model that was used."""
_names: WeakKeyDictionary[TransformerBridge, dict[str, str]] = WeakKeyDictionary()
_probed: WeakKeyDictionary[TransformerBridge, dict[tuple[str, ...], Any]] = WeakKeyDictionary()


def hook_name(model: TransformerBridge, layer: int, site: Site) -> str:
    """The canonical name of a block's hook point.

    A hook on an alias fires once per name in TransformerLens's compatibility mode, hence the canonical name.

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
    name = _canonical_names(model).get(f"blocks.{layer}.{site}")
    if name is None:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} has no {site}, so this edit has no place "
            "there; edits of one layer's input (Addition, AffineEdit) need hook_resid_pre alone"
        )
    return name


def _canonical_names(model: TransformerBridge) -> dict[str, str]:
    """Every name of every hook point, to the canonical one."""
    if model not in _names:  # iterating over all hook points takes milliseconds
        _names[model] = {alias: str(point.name) for alias, point in model.hook_dict.items() if point.name is not None}
    return _names[model]


def _hooked(model: TransformerBridge) -> list[HookPoint]:
    """Hook points with at least one hook, each once."""
    return [point for point in {id(point): point for point in model.hook_dict.values()}.values() if point.fwd_hooks]


def hooks_around(model: TransformerBridge) -> list[Callable[..., Any]]:
    """The functions hooked to a model, by `steering` or by the user.

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
def alone(model: TransformerBridge) -> Iterator[None]:
    """Keep other threads from the model within the context: they would see this one's edits, and it theirs.

    They get an error and do not wait, because a thread may wait for one that it has started itself.

    Raises:
        CosmicError: If another thread is in such a context.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with alone(model), alone(model):  # one thread may enter it again
        ...     pass
    """
    lock = _users.setdefault(model, RLock())
    if not lock.acquire(blocking=False):
        raise CosmicError(
            "model: another thread is using it, and the two would see each other's edits; load one model per thread, or let "
            "them take turns with a lock"
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hooked(model: TransformerBridge, hooks: Iterable[Hook]) -> Iterator[None]:
    """Attach hooks within the context, as `model.hooks(fwd_hooks=…)`, which lists all names of all hook points each time.

    Args:
        model: The model.
        hooks: Names of hook points, and functions.

    Raises:
        KeyError: If there is no hook point of such a name.
        ValueError: If the hook point is switched off.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with hooked(model, [("blocks.3.hook_in", lambda x, hook: x)]):
        ...     len(hooks_around(model))
        1
        >>> hooks_around(model)
        []
    """
    level = model.context_level = int(getattr(model, "context_level", 0)) + 1
    added: list[tuple[HookPoint, Any]] = []
    try:
        for name, function in hooks:
            point = model.get_hook_point(_canonical_names(model).get(name, name))
            if point is None:
                raise KeyError(f"the model has no hook point {name!r}")
            model.check_hooks_to_add(point, name, function)
            added.append((point, point.add_hook(function, level=level)))
        yield
    finally:
        for point, handle in added:
            handle.hook.remove()
            point.fwd_hooks[:] = [one for one in point.fwd_hooks if one is not handle]
        model.context_level -= 1


@contextmanager
def without_hooks(model: TransformerBridge) -> Iterator[None]:
    """Remove all hooks from the model within the context, and restore them afterwards.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with model.hooks(fwd_hooks=[("blocks.3.hook_in", lambda x, hook: 0 * x)]), without_hooks(model):
        ...     hooks_around(model)
        []
    """
    with alone(model):
        kept = [(point, point._forward_hooks, point.fwd_hooks) for point in _hooked(model)]
        try:
            for point, _, _ in kept:
                point._forward_hooks, point.fwd_hooks = OrderedDict(), []
            yield
        finally:
            for point, hooks, handles in kept:
                point._forward_hooks, point.fwd_hooks = hooks, handles


def probed(model: TransformerBridge, what: str, probe: Callable[[], T]) -> T:
    """The result of trying out a model without hooks, cached for each set of weights and dtype.

    Args:
        model: The model.
        what: Name of what is tried.
        probe: Function that tries it and returns the result.

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


@contextmanager
def counting_tokens(model: TransformerBridge) -> Iterator[Mapping[str, int]]:
    """Tell hooks where in the sequence the current pass starts.

    Yields:
        A mapping whose "start" is the number of tokens before the pass's first one, held in a cache or a recurrent
        state (0 without one). A recurrent state does not know its length, so tokens are counted from the pass that
        created it.

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
    """Number of tokens in the cache given to a pass; `seen` for a recurrent state, which does not know."""
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


Scope = Literal["all", "prompt", "completion"] | Bool[Tensor, "batch seq"]
"""Which tokens are edited: all, those of the prompt, those after it, or a boolean mask over the first tokens (later
tokens are then not edited). A pass that continues a cache belongs to the completion."""
Part = Literal["stream", "block"]
"""What is edited at a layer: the stream that enters the block, or what the block adds to the stream (the residual mode
of Marshall et al. 2025)."""


@dataclass(frozen=True, eq=False, repr=False)
class ScopedHook:
    """A hook that knows which tokens it edits, for code that feeds the same tokens in other ways."""

    edit: Callable[[Tensor], Tensor | None]
    tokens: Scope

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """The edited activation."""
        return self.edit(x)


def check_scopes_around(model: TransformerBridge) -> None:
    """Check that no surrounding intervention has a mask of several rows, for code that chooses the rows of a pass
    itself.

    Raises:
        CosmicError: If there is one.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_scopes_around(load_model("demo", device="cpu"))
    """
    for hook in hooks_around(model):
        tokens = getattr(hook, "tokens", None)
        if isinstance(tokens, Tensor) and tokens.shape[0] > 1:
            raise CosmicError(
                f"tokens: the mask of the intervention around has {tokens.shape[0]} rows, and prompts are batched in an order "
                "of their own here; give a mask of one row, for every prompt"
            )


def same_for_all_tokens(model: TransformerBridge) -> bool:
    """Whether all hooks on a model treat every token alike, independent of its place in a pass.

    Example:
        >>> from cosmic_tl import Ablation, Direction, steering
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> with steering(model, Ablation(direction)):
        ...     same_for_all_tokens(model)
        True
        >>> with steering(model, Ablation(direction, tokens="prompt")):
        ...     same_for_all_tokens(model)
        False
    """
    return all(isinstance(hook, ScopedHook) and is_all_tokens(hook.tokens) for hook in hooks_around(model))


def is_all_tokens(tokens: Scope) -> bool:
    """Whether a scope covers every token.

    Example:
        >>> is_all_tokens("all"), is_all_tokens("prompt")
        (True, False)
    """
    return isinstance(tokens, str) and tokens == "all"
