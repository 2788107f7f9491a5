"""Edits as hooks: for one edit, for a batch of edits, and as a context around anything a model does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions.affine_map import apply, placed, stack
from cosmic_tl.interventions.edits import EVERYWHERE, Intervention, Interventions, as_sequence, check_interventions
from cosmic_tl.model.components import check_additive
from cosmic_tl.model.hooks import (
    Hook,
    Scope,
    ScopedHook,
    Site,
    alone,
    counting_tokens,
    hook_name,
    hooked,
    is_all_tokens,
)
from cosmic_tl.model.load import TransformerBridge


def _edited(tokens: Scope, x: Tensor, start: int, prompt_length: int | None) -> Bool[Tensor, "rows length"]:
    """Which tokens of a pass a scope covers; the pass starts at token `start`."""
    index = torch.arange(start, start + x.shape[1], device=x.device)[None]
    if isinstance(tokens, str):
        in_prompt = index < prompt_length if prompt_length is not None else torch.full_like(index, start == 0).bool()
        return in_prompt if tokens == "prompt" else ~in_prompt
    if tokens.shape[0] not in (1, x.shape[0]):
        raise CosmicError(
            f"tokens: the mask has {tokens.shape[0]} rows and the batch {x.shape[0]}; give one row a prompt"
        )
    inside = (index < tokens.shape[1])[0]
    chosen = torch.zeros(tokens.shape[0], x.shape[1], dtype=torch.bool, device=x.device)
    chosen[:, inside] = tokens.to(x.device)[:, index[0][inside]]
    return chosen


def _editing(
    edits: Sequence[Intervention], site: Site, clock: Mapping[str, int], prompt_length: int | None
) -> Callable[[Tensor], Tensor]:
    """The edit of one intervention at a kind of hook point, or of several on a batch with equally many rows for each."""
    factors, tokens = stack([edit.map_at(site) for edit in edits]), edits[0].tokens
    kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    def edit(x: Tensor) -> Tensor:
        if (where := (x.device, x.dtype)) not in kept:
            kept[where] = placed(factors, x)
        edited = apply(x.reshape(len(edits), -1, x.shape[-1]), *kept[where]).view(x.shape)
        if is_all_tokens(tokens):
            return edited
        return torch.where(_edited(tokens, x, clock["start"], prompt_length)[..., None], edited, x)

    return edit


def _hooks(
    model: TransformerBridge,
    slots: Sequence[Sequence[Intervention]],
    clock: Mapping[str, int],
    prompt_length: int | None,
) -> list[Hook]:
    """The hooks of each slot: one intervention, or several that share a batch."""
    hooks: list[Hook] = []
    last: list[Hook] = []
    for slot in slots:
        tokens = slot[0].tokens
        layer, part = slot[0].place
        if slot[0].place == EVERYWHERE:
            check_additive(model)
        points = slot[0].points(int(model.cfg.n_layers))
        edits = {site: _editing(slot, site, clock, prompt_length) for _, site in points}
        if part == "block":
            entering, edits["hook_resid_post"] = _added(edits["hook_resid_post"])
            # The input is read after every edit of it.
            last.append((hook_name(model, layer, "hook_resid_pre"), ScopedHook(entering, tokens)))
        hooks += [(hook_name(model, layer, site), ScopedHook(edits[site], tokens)) for layer, site in points]
    return [*hooks, *last]


def _added(edit: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], None], Callable[[Tensor], Tensor]]:
    """A hook that stores a block's input, and the edit of what the block adds, applied at its output."""
    entered: list[Tensor] = []

    def entering(x: Tensor) -> None:
        entered[:] = [x]

    def leaving(y: Tensor) -> Tensor:
        x = entered.pop()
        return x + edit(y - x)

    return entering, leaving


def batched_hooks(model: TransformerBridge, edits: Sequence[Interventions]) -> list[Hook]:
    """Hooks for a batch with equally many rows for each of `edits`, in order.

    Args:
        model: The bridge to hook.
        edits: Interventions with the same places, each on all tokens. Call `check_interventions` first to check that
            they fit the model.

    Raises:
        CosmicError: If places differ, a token scope is not "all", or the architecture lacks the hook point.

    Example:
        >>> import torch
        >>> from cosmic_tl import Ablation, Addition, AffineEdit, Direction
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> edits = [AffineEdit(direction, alpha) for alpha in (0.0, 1.0)]
        >>> [name for name, _ in batched_hooks(load_model("demo", device="cpu"), edits)]
        ['blocks.3.hook_in']
    """
    if len({tuple(one.place for one in as_sequence(edit)) for edit in edits}) > 1:
        raise CosmicError("edits: they act at different places; batch those that act at the same ones")
    slots = list(zip(*map(as_sequence, edits), strict=True))
    if scopes := [one.tokens for slot in slots for one in slot if not is_all_tokens(one.tokens)]:
        raise CosmicError(f"tokens: found the scope {scopes[0]!r}; edits in a batch act on all tokens")
    return _hooks(model, slots, {"start": 0}, None)


def intervention_hooks(
    model: TransformerBridge,
    interventions: Interventions,
    clock: Mapping[str, int] | None = None,
    prompt_length: int | None = None,
) -> list[Hook]:
    """The hooks that apply interventions, for `model.hooks(fwd_hooks=…)`.

    Most callers want `steering`, which also provides the clock that token scopes need.

    Args:
        model: The bridge to hook.
        interventions: One or several; where they meet, the earlier acts first.
        clock: From `counting_tokens`. By default every pass starts at token 0.
        prompt_length: Tokens of the prompt, including padding. By default, tokens fed without a cache are the prompt.

    Raises:
        CosmicError: If a direction does not fit the model, an α is not finite, or the architecture lacks the hook
            point.

    Example:
        >>> import torch
        >>> from cosmic_tl import Ablation, Addition, AffineEdit, Direction
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> [name for name, _ in intervention_hooks(load_model("demo", device="cpu"), Addition(direction))]
        ['blocks.3.hook_in']
    """
    check_interventions(model, as_sequence(interventions))
    return _hooks(model, [[one] for one in as_sequence(interventions)], clock or {"start": 0}, prompt_length)


@checked
@contextmanager
def steering(
    model: TransformerBridge, interventions: Interventions, *, prompt_length: int | None = None
) -> Iterator[TransformerBridge]:
    """Apply interventions to everything the model does within the context: forward passes, caching, generation.

    Args:
        model: A `TransformerBridge`. It is yielded, and restored at the end, also after an exception.
        interventions: One or several; where they meet, the earlier acts first.
        prompt_length: Tokens of the prompt, including padding, for scopes. By default, tokens fed without a cache are
            the prompt, and tokens that continue a cache are the completion.

    Raises:
        CosmicError: As `intervention_hooks`, or if another thread is using the model.

    Example:
        >>> import torch
        >>> from cosmic_tl import Ablation, Addition, AffineEdit, Direction
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> with steering(model, [Ablation(direction), Addition(direction, alpha=2.0)]) as steered:
        ...     steered(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 2048])
    """
    with ExitStack() as stack:
        stack.enter_context(alone(model))
        clock = stack.enter_context(counting_tokens(model))
        hooks = intervention_hooks(model, interventions, clock, prompt_length)
        stack.enter_context(hooked(model, hooks))
        yield model
