"""Weights that are kept elsewhere and brought in when a module runs: which they are, and how to keep them for many passes."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge


def is_offloaded(model: TransformerBridge) -> bool:
    """Whether a model has weights in memory or on disk that accelerate brings in each time a module runs.

    Example:
        >>> from cosmic_tl import load_model
        >>> is_offloaded(load_model("demo", device="cpu"))
        False
    """
    return any(True for _ in _offloading([model.original_model]))


def input_device(model: torch.nn.Module) -> str | None:
    """Where the modules of a plain model compute whose weights are offloaded; None if none are.

    Example:
        >>> from cosmic_tl import load_model
        >>> input_device(load_model("demo", device="cpu").original_model) is None
        True
    """
    return next((str(hook.execution_device) for _, hook in _offloading([model])), None)


def outside_blocks(model: TransformerBridge, logits: bool = True) -> list[torch.nn.Module]:
    """The modules of a model that are in no block: embedding, final norm and, if logits are read, the unembedding.

    Example:
        >>> from cosmic_tl import load_model
        >>> len(outside_blocks(load_model("demo", device="cpu")))
        3
    """
    left = [getattr(model, name, None) for name in ("embed", "pos_embed", "ln_final", *(["unembed"] if logits else []))]
    return [module for module in left if isinstance(module, torch.nn.Module)]


def block_bytes(model: TransformerBridge) -> int:
    """Bytes of the largest block's offloaded weights, of those that are brought in together.

    Example:
        >>> from cosmic_tl import load_model
        >>> block_bytes(load_model("demo", device="cpu"))
        0
    """
    return max(
        sum(one.numel() * one.element_size() for module, _ in _offloading([block]) for one in module.parameters(False))
        for block in model.blocks
    )


@contextmanager
def loaded(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Bring offloaded weights of some modules in once, and keep them within the context.

    Elsewhere accelerate brings them in and drops them again each time that a module runs.

    Args:
        modules: Modules with all that is in them; those whose weights are not offloaded are left alone.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with loaded([model.blocks[0]]):
        ...     pass
    """
    kept: list[tuple[torch.nn.Module, Any]] = []
    try:
        for module, hook in _offloading(modules):
            hook.pre_forward(module)
            hook.offload = False  # so that it neither brings them in again nor drops them
            kept.append((module, hook))
        yield
    finally:
        for module, hook in kept:
            hook.offload = True
            hook.post_forward(module, None)
        if kept:
            release_freed()


def release_freed() -> None:
    """Give freed memory back to the system, where the C library keeps it: weights that come and go leave gaps in its heap, which
    add up to more than the model.

    Example:
        >>> release_freed()
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """That of glibc; other C libraries have none."""
    if sys.platform != "linux":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


def _offloading(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[torch.nn.Module, Any]]:
    """Modules that own offloaded weights, each once, and the hook that brings them in."""
    seen: set[int] = set()
    for whole in modules:
        for module in whole.modules():
            # Not by attribute: a bridge hands out the hook of the module that it wraps.
            hook = module.__dict__.get("_hf_hook")
            for one in getattr(hook, "hooks", [hook]):
                if (
                    getattr(one, "offload", False)
                    and id(one) not in seen
                    and next(module.parameters(False), None) is not None
                ):
                    seen.add(id(one))
                    yield module, one
