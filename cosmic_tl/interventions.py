"""Addition, directional ablation and affine concept editing: values that turn into hooks.

All are one affine map, `x' = x − leftᵀ (right x − offset)`, at some hook points (`AffineMap` has the table of cases):

============  ==============================================================
intervention  where
============  ==============================================================
`Addition`    the input of the source layer
`Ablation`    whatever enters or is added to the stream, in every block
`AffineEdit`  the input of the source layer, or what its block adds (ACE)
`MapEdit`     the same, with any affine map: LEACE, a subspace, amplification
============  ==============================================================
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.affine import AffineMap, apply, placed, stack
from cosmic_tl.directions.artifact import Direction
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.forward import Hook, Site, check_additive, counting_tokens, hook_name, hooks_around
from cosmic_tl.models import check_origin

Scope = Literal["all", "prompt", "completion"] | Bool[Tensor, "batch seq"]
"""Which tokens are edited: all, those of the prompt, those that come after it, or a mask over the first tokens (with
it, later tokens are left alone). A pass that continues a cache belongs to the completion."""
Part = Literal["stream", "block"]
"""What is edited at a layer: the stream that enters it, or what its block adds to the stream (the residual mode of
Marshall et al. 2025)."""
Place = tuple[int, Part]
EVERYWHERE: Place = (-1, "stream")


def _rank_one(direction: Direction, reads: float, offset: float) -> AffineMap:
    unit = direction.unit[None]
    at = torch.tensor([offset], dtype=torch.float64)
    return AffineMap(unit, reads * unit, at, direction.fingerprint, direction.model)


@dataclass(frozen=True, eq=False)
class Addition:
    """Activation addition: `x' = x + α r` at the input of the source layer (CAA; Arditi et al. 2024, equation 3)."""

    direction: Direction
    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """Where to apply it; None is the direction's own layer."""

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> Addition(Direction(torch.ones(4), torch.zeros(4), 0, -1), alpha=0.5).map(torch.zeros(4))
            tensor([0.5000, 0.5000, 0.5000, 0.5000])
        """
        return _rank_one(self.direction, 0.0, self.alpha * self.direction.norm)


@dataclass(frozen=True, eq=False)
class Ablation:
    """Directional ablation: `x' = x − (x·r̂) r̂`, everywhere (Arditi et al. 2024, equation 4)."""

    direction: Direction
    tokens: Scope = "all"

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> Ablation(Direction(torch.ones(2), torch.zeros(2), 0, -1)).map(torch.tensor([3.0, 1.0])).round()
            tensor([ 1., -1.])
        """
        return _rank_one(self.direction, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class AffineEdit:
    """Affine concept editing: `x' = x − (x·r̂) r̂ + (nu·r̂) r̂ + α r` at one layer (Marshall et al. 2025, equation 3).

    α = 0 reads as the negative class and α = 1 as the positive class. `affine_edits` makes one for every layer, and
    `Candidates.moved` takes a direction to another one.

    Raises:
        CosmicError: If layer is not the direction's own, whose reference says nothing about another layer.
    """

    direction: Direction
    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """The direction's own layer, or None (default), which is the same."""
    part: Part = "stream"
    """"block" edits what the block adds; direction and reference have to be of that too (`difference_in_means` takes a part)."""

    def __post_init__(self) -> None:
        own = self.direction.layer
        if self.layer not in (None, own):
            raise CosmicError(
                f"layer: found {self.layer}, and the direction's reference is of layer {own}; pass "
                f"`candidates.moved(direction, {self.layer})`, which has the reference of that layer, and no layer"
            )

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> AffineEdit(Direction(torch.ones(4), torch.ones(4), 0, -1), alpha=0.5).map(torch.zeros(4))
            tensor([1.5000, 1.5000, 1.5000, 1.5000])
        """
        d = self.direction
        return _rank_one(d, 1.0, float(d.reference.double() @ d.unit.double()) + self.alpha * d.norm)


@dataclass(frozen=True, eq=False)
class MapEdit:
    """Any affine map at one layer, such as an eraser."""

    map: AffineMap
    layer: int
    tokens: Scope = "all"
    part: Part = "stream"
    """The stream that enters the block, or what the block adds to it."""


Intervention = Addition | Ablation | AffineEdit | MapEdit
Interventions = Intervention | Sequence[Intervention]


@dataclass(frozen=True, eq=False, repr=False)
class ScopedHook:
    """A hook that says which tokens it edits, for those who feed a model the same tokens in other ways."""

    edit: Callable[[Tensor], Tensor | None]
    tokens: Scope

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """The edited activation."""
        return self.edit(x)


def check_scopes_around(model: TransformerBridge) -> None:
    """Make sure that no intervention around has a mask of several rows, for those who choose the rows of a pass themselves.

    Raises:
        CosmicError: If one has.

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
    """Whether all that is hooked to a model does the same to every token, wherever in a pass it stands.

    Example:
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
    return all(isinstance(hook, ScopedHook) and _is_all(hook.tokens) for hook in hooks_around(model))


def _is_all(tokens: Scope) -> bool:
    return isinstance(tokens, str) and tokens == "all"


def _edited(tokens: Scope, x: Tensor, start: int, prompt_length: int | None) -> Bool[Tensor, "rows length"]:
    """Which of a pass's tokens a scope takes in; the pass starts at token `start`."""
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
    edits: Sequence[Intervention], clock: Mapping[str, int], prompt_length: int | None
) -> Callable[[Tensor], Tensor]:
    """The edit of one intervention, or of several of a kind on a batch that holds equally many rows of each."""
    factors, tokens = stack([edit.map for edit in edits]), edits[0].tokens
    kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    def edit(x: Tensor) -> Tensor:
        if (where := (x.device, x.dtype)) not in kept:
            kept[where] = placed(factors, x)
        edited = apply(x.reshape(len(edits), -1, x.shape[-1]), *kept[where]).view(x.shape)
        if _is_all(tokens):
            return edited
        return torch.where(_edited(tokens, x, clock["start"], prompt_length)[..., None], edited, x)

    return edit


def _hooks(
    model: TransformerBridge,
    slots: Sequence[Sequence[Intervention]],
    clock: Mapping[str, int],
    prompt_length: int | None,
) -> list[Hook]:
    """The hooks of each slot, which holds one intervention or several that share a batch."""
    hooks: list[Hook] = []
    last: list[Hook] = []
    for slot in slots:
        edit, tokens = _editing(slot, clock, prompt_length), slot[0].tokens
        (layer, part) = place(slot[0])
        if isinstance(slot[0], Ablation):
            check_additive(model)
            sites: tuple[Site, ...] = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
            points = [(block, site) for block in range(int(model.cfg.n_layers)) for site in sites]
        else:
            points = [(layer, "hook_resid_pre" if part == "stream" else "hook_resid_post")]
        if part == "block":
            entering, edit = _added(edit)
            # What enters is looked at after every edit of it.
            last.append((hook_name(model, layer, "hook_resid_pre"), ScopedHook(entering, tokens)))
        hooks += [(hook_name(model, *point), ScopedHook(edit, tokens)) for point in points]
    return [*hooks, *last]


def _added(edit: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], None], Callable[[Tensor], Tensor]]:
    """A hook on what enters a block, and the edit of what the block adds as one of what leaves it."""
    entered: list[Tensor] = []

    def entering(x: Tensor) -> None:
        entered[:] = [x]

    def leaving(y: Tensor) -> Tensor:
        x = entered.pop()
        return x + edit(y - x)

    return entering, leaving


def check_interventions(model: TransformerBridge, interventions: Iterable[Intervention]) -> None:
    """Make sure that interventions fit a model, with one look at its weights for all of them.

    Raises:
        CosmicError: As `intervention_hooks`.

    Example:
        >>> from cosmic_tl import load_model
        >>> edit = AffineEdit(Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1))
        >>> check_interventions(load_model("demo", device="cpu"), [edit])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: direction: it has width 4 and layer 3, and the model width 128 and 8 layers; ...
    """
    origins: dict[str, tuple[str, str]] = {}
    for one in interventions:
        _check(model, one)
        origins[one.map.fingerprint] = one.map.model, "map" if isinstance(one, MapEdit) else "direction"
    for fingerprint, (name, what) in origins.items():
        check_origin(model, fingerprint, name, what)


def _check(model: TransformerBridge, intervention: Intervention) -> None:
    if not isfinite(alpha := getattr(intervention, "alpha", 0.0)):
        raise CosmicError(f"alpha: expected a finite number, found {alpha}; pass a float")
    tokens = intervention.tokens
    if isinstance(tokens, str) and tokens not in ("all", "prompt", "completion"):
        raise CosmicError(f"tokens: unknown scope {tokens!r}; use all, prompt, completion or a mask")
    layer, part = place(intervention)
    one_of("part", part, get_args(Part))
    if not isinstance(intervention, Ablation):
        hook_name(model, layer, "hook_resid_pre")  # −1 would be everywhere
    if not isinstance(intervention, MapEdit):
        intervention.direction.check_shape(model)
    elif (width := intervention.map.left.shape[1]) != (d_model := int(model.cfg.d_model)):
        raise CosmicError(f"map: it is for a stream of width {width}, and the model's is {d_model}")


def as_sequence(interventions: Interventions) -> tuple[Intervention, ...]:
    """One intervention or several as a tuple.

    Example:
        >>> as_sequence(())
        ()
    """
    return tuple(interventions) if isinstance(interventions, Sequence) else (interventions,)


def place(intervention: Intervention) -> Place:
    """The layer that an intervention edits, and which part; `EVERYWHERE` for directional ablation.

    Example:
        >>> direction = Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1)
        >>> place(AffineEdit(direction)), place(Ablation(direction))
        ((3, 'stream'), (-1, 'stream'))
    """
    if isinstance(intervention, Ablation):
        return EVERYWHERE
    if isinstance(intervention, MapEdit):
        return intervention.layer, intervention.part
    layer = intervention.direction.layer if intervention.layer is None else intervention.layer
    return layer, intervention.part if isinstance(intervention, AffineEdit) else "stream"


def batched_hooks(model: TransformerBridge, edits: Sequence[Interventions]) -> list[Hook]:
    """Hooks for a batch whose rows fall into equally many for each of `edits`, in their order.

    Args:
        model: The bridge to hook.
        edits: Interventions with the same places, each on all tokens of a prompt. Whether they fit the model is for
            `check_interventions` to say.

    Raises:
        CosmicError: If the places differ, a token scope is not "all", or the architecture has no such place.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> edits = [AffineEdit(direction, alpha) for alpha in (0.0, 1.0)]
        >>> [name for name, _ in batched_hooks(load_model("demo", device="cpu"), edits)]
        ['blocks.3.hook_in']
    """
    if len({tuple(map(place, as_sequence(edit))) for edit in edits}) > 1:
        raise CosmicError("edits: they act at different places; batch those that act at the same ones")
    slots = list(zip(*map(as_sequence, edits), strict=True))
    if scopes := [one.tokens for slot in slots for one in slot if not _is_all(one.tokens)]:
        raise CosmicError(f"tokens: found the scope {scopes[0]!r}; edits in a batch act on all tokens")
    return _hooks(model, slots, {"start": 0}, None)


def intervention_hooks(
    model: TransformerBridge,
    interventions: Interventions,
    clock: Mapping[str, int] | None = None,
    prompt_length: int | None = None,
) -> list[Hook]:
    """The hooks that carry out interventions, for `model.hooks(fwd_hooks=…)`.

    Most callers want `steering`, which also keeps the clock that token scopes need.

    Args:
        model: The bridge to hook.
        interventions: One or several; where they meet, the earlier acts first.
        clock: From `counting_tokens`; by default every pass starts at token 0.
        prompt_length: Tokens of the prompt, padding included. By default what is fed without a cache is prompt.

    Raises:
        CosmicError: If a direction does not fit the model, an α is not finite, or the architecture has no such place.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> [name for name, _ in intervention_hooks(load_model("demo", device="cpu"), Addition(direction))]
        ['blocks.3.hook_in']
    """
    check_interventions(model, as_sequence(interventions))
    return _hooks(model, [[one] for one in as_sequence(interventions)], clock or {"start": 0}, prompt_length)


@contextmanager
def steering(
    model: TransformerBridge, interventions: Interventions, prompt_length: int | None = None
) -> Iterator[TransformerBridge]:
    """Intervene in whatever the model does inside the context: forward passes, caching, generation with its cache.

    Args:
        model: Any bridge; the same one is yielded, and restored at the end, also after an exception.
        interventions: One or several; where they meet, the earlier acts first.
        prompt_length: Tokens of the prompt, padding included, for scopes. By default what is fed without a cache is
            prompt, and what continues a cache is completion.

    Raises:
        CosmicError: As `intervention_hooks`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> with steering(model, [Ablation(direction), Addition(direction, alpha=2.0)]) as steered:
        ...     steered(torch.tensor([[5, 6, 7]])).shape
        torch.Size([1, 3, 2048])
    """
    with ExitStack() as stack:
        clock = stack.enter_context(counting_tokens(model))
        hooks = intervention_hooks(model, interventions, clock, prompt_length)
        stack.enter_context(model.hooks(fwd_hooks=hooks))
        yield model
