"""The hooks that make changes, for each row of a pass its own patch's way."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cosmic_tl.model.components import OutputProjection, output_projection
from cosmic_tl.model.hooks import Hook, hook_name
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.patching.changes import SITES, Change, Patch


def hooks_of(model: TransformerBridge, patches: Sequence[Patch], groups: Sequence[int]) -> list[Hook]:
    """Hooks that make the changes of patches of one kind, in a pass with the first prompt under each patch, then the second …

    Args:
        model: A `TransformerBridge`.
        patches: Of one kind.
        groups: Of the prompts, by which each finds its target.
    """
    hooks: list[Hook] = []
    last: list[Hook] = []
    for changes in zip(*(patch.changes for patch in patches), strict=True):
        layer, part = changes[0].layer, changes[0].part
        changed, k = _changed(changes, groups), -(changes[0].position or patches[0].position)
        if part == "block":
            entering, hook = _of_block(changed, k)
            last.append((hook_name(model, layer, "hook_resid_pre"), entering))  # after every change of the input
        elif part != "stream" and changes[0].index is not None:
            projection = output_projection(model, layer, part)
            entering, hook = _of_part(changed, k, projection, [one.index for one in changes if one.index is not None])
            hooks.append((projection.hook_in, entering))
        else:
            hook = _of_token(changed, k)
        hooks.append((hook_name(model, layer, SITES[part]), hook))
    return [*hooks, *last]


def _changed(changes: Sequence[Change], groups: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """What one token's activations become, for each row its own patch's way; in float32 or better."""
    target = torch.stack([one.target.double() for one in changes], dim=-2)
    if target.ndim == 3:
        target = target[list(groups)]
    whole = changes[0].read is None
    read = target if whole else torch.stack([one.read.double() for one in changes if one.read is not None])
    write = read if whole else torch.stack([(one.read if one.write is None else one.write).double() for one in changes])  # type: ignore[union-attr]

    def changed(old: Tensor) -> Tensor:
        to, along, out = (one.to(old.dtype).to(old.device) for one in (target, read, write))
        rows = old.view(-1, len(changes), old.shape[-1])
        new = to.expand_as(rows) if whole else rows + ((to - rows) * along).sum(-1, keepdim=True) * out
        return new.reshape(old.shape)

    return changed


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _of_token(changed: Callable[[Tensor], Tensor], k: int) -> Callable[..., Tensor]:
    """The hook that changes the `k`-th token from the end."""

    def hook(x: Tensor, hook: Any) -> Tensor:
        if x.shape[1] < k:  # the last block, in which only the last token is computed
            return x
        x = x.clone()
        x[:, -k] = changed(_wide(x[:, -k])).to(x.dtype)
        return x

    return hook


def _of_block(changed: Callable[[Tensor], Tensor], k: int) -> tuple[Callable[..., None], Callable[..., Tensor]]:
    """A hook that keeps the token that enters a block, and the change of what the block adds to it, at its output."""
    entered: list[Tensor] = []

    def entering(x: Tensor, hook: Any) -> None:
        entered[:] = [_wide(x[:, -k])]

    def leaving(y: Tensor, hook: Any) -> Tensor:
        x = entered.pop()
        y = y.clone()
        y[:, -k] = (x + changed(_wide(y[:, -k]) - x)).to(y.dtype)
        return y

    return entering, leaving


def _of_part(
    changed: Callable[[Tensor], Tensor], k: int, projection: OutputProjection, which: Sequence[int]
) -> tuple[Callable[..., None], Callable[..., Tensor]]:
    """A hook that keeps what a head or a neuron gives at one token, and the change of what that writes, at the block's part."""
    written: list[Tensor] = []

    def entering(inputs: Tensor, hook: Any) -> None:
        token = inputs[:, -k].flatten(1)
        parts = torch.tensor(which, device=token.device).repeat(len(token) // len(which))
        written[:] = [_wide(projection.of(token, parts))]

    def leaving(y: Tensor, hook: Any) -> Tensor:
        old = written.pop()
        if y.shape[1] < k:  # the last block, in which only the last token is computed
            return y
        y = y.clone()
        y[:, -k] = (_wide(y[:, -k]) + changed(old) - old).to(y.dtype)
        return y

    return entering, leaving
