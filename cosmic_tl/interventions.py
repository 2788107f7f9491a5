"""Addition, directional ablation and affine concept editing: three settings of one affine edit.

Every intervention is `x' = x − s·(x·r̂) r̂ + β r̂` at some hook points:

============  =====  ================  ==============================================================
intervention  `s`    `β`               where
============  =====  ================  ==============================================================
`Addition`    0      `α‖r‖`            the input of the source layer
`Ablation`    1      0                 whatever enters or is added to the stream, in every block
`AffineEdit`  1      `nu·r̂ + α‖r‖`     the input of the source layer (ACE)
============  =====  ================  ==============================================================
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl.directions.artifact import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.forward import Hook, Site, check_additive, counting_tokens, hook_name

Scope = Literal["all", "prompt", "completion"] | Bool[Tensor, "batch seq"]
"""Which tokens are edited: all, those of the prompt, those that come after it, or a mask over the first tokens (with
it, later tokens are left alone). A pass that continues a cache belongs to the completion."""


def affine_edit(
    x: Float[Tensor, "*batch d_model"], unit: Float[Tensor, " d_model"], scale: float, shift: float
) -> Float[Tensor, "*batch d_model"]:
    """`x − scale·(x·r̂) r̂ + shift·r̂`, computed in float32 or better and returned in the dtype of `x`.

    Args:
        x: Activations.
        unit: `r̂`.
        scale: How much of the component along `r̂` is taken away (0 or 1 in the papers).
        shift: What is put in its place.

    Example:
        >>> affine_edit(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), scale=1.0, shift=0.5)
        tensor([0.5000, 4.0000])
    """
    one = torch.tensor([[[scale]], [[shift]]], dtype=torch.float64, device=x.device)
    return _affine_edits(x.reshape(1, -1, x.shape[-1]), unit[None].to(x.device), one[:1], one[1:]).view(x.shape)


def _affine_edits(
    x: Float[Tensor, "edit token d_model"],
    unit: Float[Tensor, "edit d_model"],
    scale: Float64[Tensor, "edit 1 1"],
    shift: Float64[Tensor, "edit 1 1"],
) -> Float[Tensor, "edit token d_model"]:
    """As many affine edits as `x` has first entries."""
    work = x if x.dtype in (torch.float32, torch.float64) else x.float()
    unit, scale, shift = unit.to(work), scale.to(work), shift.to(work)
    along = shift - scale * (work @ unit[..., None])
    return torch.addcmul(work, along, unit[:, None]).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Addition:
    """Activation addition: `x' = x + α r` at the input of the source layer (CAA; Arditi et al. 2024, equation 3)."""

    direction: Direction
    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """Where to apply it; None is the direction's own layer."""

    @property
    def terms(self) -> tuple[float, float]:
        """`(s, β)` of the affine edit.

        Example:
            >>> Addition(Direction(torch.ones(4), torch.zeros(4), 0, -1), alpha=0.5).terms
            (0.0, 1.0)
        """
        return 0.0, self.alpha * self.direction.norm


@dataclass(frozen=True, eq=False)
class Ablation:
    """Directional ablation: `x' = x − (x·r̂) r̂`, everywhere (Arditi et al. 2024, equation 4)."""

    direction: Direction
    tokens: Scope = "all"

    @property
    def terms(self) -> tuple[float, float]:
        """`(s, β)` of the affine edit.

        Example:
            >>> Ablation(Direction(torch.ones(4), torch.zeros(4), 0, -1)).terms
            (1.0, 0.0)
        """
        return 1.0, 0.0


@dataclass(frozen=True, eq=False)
class AffineEdit:
    """Affine concept editing: `x' = x − (x·r̂) r̂ + (nu·r̂) r̂ + α r` at one layer's input (Marshall et al. 2025).

    α = 0 reads as the negative class and α = 1 as the positive class.
    """

    direction: Direction
    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """Where to apply it; None is the direction's own layer."""

    @property
    def terms(self) -> tuple[float, float]:
        """`(s, β)` of the affine edit.

        Example:
            >>> AffineEdit(Direction(torch.ones(4), torch.ones(4), 0, -1), alpha=0.5).terms
            (1.0, 3.0)
        """
        d = self.direction
        return 1.0, float(d.reference.double() @ d.unit.double()) + self.alpha * d.norm


Intervention = Addition | Ablation | AffineEdit
Interventions = Intervention | Sequence[Intervention]


def _places(model: TransformerBridge, intervention: Intervention) -> list[str]:
    if isinstance(intervention, Ablation):
        check_additive(model)
        sites: tuple[Site, ...] = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
        return [hook_name(model, layer, site) for layer in range(int(model.cfg.n_layers)) for site in sites]
    return [hook_name(model, _layer(intervention), "hook_resid_pre")]


def _edited(tokens: Scope, x: Tensor, start: int, prompt_length: int | None) -> Bool[Tensor, "#batch seq"]:
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


def _hook(edits: Sequence[Intervention], clock: Mapping[str, int], prompt_length: int | None) -> Callable[..., Tensor]:
    """The hook of one intervention, or of several of a kind on a batch that holds equally many rows of each."""
    terms = torch.tensor([edit.terms for edit in edits], dtype=torch.float64)
    scale, shift = terms[:, :1, None], terms[:, 1:, None]
    unit, tokens = torch.stack([edit.direction.unit for edit in edits]), edits[0].tokens

    @cache
    def on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return unit.to(device), scale.to(device), shift.to(device)

    def hook(x: Tensor, hook: Any) -> Tensor:
        edited = _affine_edits(x.reshape(len(edits), -1, x.shape[-1]), *on(x.device)).view(x.shape)
        if isinstance(tokens, str) and tokens == "all":
            return edited
        return torch.where(_edited(tokens, x, clock["start"], prompt_length)[..., None], edited, x)

    return hook


def _check(model: TransformerBridge, intervention: Intervention) -> None:
    if not isfinite(alpha := getattr(intervention, "alpha", 0.0)):
        raise CosmicError(f"alpha: expected a finite number, found {alpha}; pass a float")
    tokens = intervention.tokens
    if isinstance(tokens, str) and tokens not in ("all", "prompt", "completion"):
        raise CosmicError(f"tokens: unknown scope {tokens!r}; use all, prompt, completion or a mask")
    intervention.direction.check(model)


def as_sequence(interventions: Interventions) -> tuple[Intervention, ...]:
    """One intervention or several as a tuple.

    Example:
        >>> as_sequence(())
        ()
    """
    return tuple(interventions) if isinstance(interventions, Sequence) else (interventions,)


def edited_layers(interventions: Interventions) -> tuple[int | None, ...]:
    """The layer whose input each intervention edits; None where it edits everywhere.

    Example:
        >>> direction = Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1)
        >>> edited_layers([AffineEdit(direction), Ablation(direction)])
        (3, None)
    """
    return tuple(None if isinstance(one, Ablation) else _layer(one) for one in as_sequence(interventions))


def _layer(intervention: Addition | AffineEdit) -> int:
    return intervention.direction.layer if intervention.layer is None else intervention.layer


def batched_hooks(model: TransformerBridge, edits: Sequence[Interventions]) -> list[Hook]:
    """Hooks for a batch whose rows fall into equally many for each of `edits`, in their order.

    Args:
        model: The bridge to hook.
        edits: Interventions with the same `edited_layers`, each on all tokens of a prompt.

    Raises:
        CosmicError: If the places differ, a token scope is not "all", or as `intervention_hooks`.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> edits = [AffineEdit(direction, alpha) for alpha in (0.0, 1.0)]
        >>> [name for name, _ in batched_hooks(load_model("demo", device="cpu"), edits)]
        ['blocks.3.hook_in']
    """
    slots = list(zip(*map(as_sequence, edits), strict=True))
    if len({edited_layers(edit) for edit in edits}) > 1:
        raise CosmicError("edits: they act at different places; batch those that act at the same ones")
    hooks: list[Hook] = []
    for slot in slots:
        for one in slot:
            _check(model, one)
            if not isinstance(one.tokens, str) or one.tokens != "all":
                raise CosmicError(f"tokens: found the scope {one.tokens!r}; edits in a batch act on all tokens")
        hook = _hook(slot, {"start": 0}, None)
        hooks += [(name, hook) for name in _places(model, slot[0])]
    return hooks


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
    hooks: list[Hook] = []
    for one in as_sequence(interventions):
        _check(model, one)
        hook = _hook([one], clock or {"start": 0}, prompt_length)
        hooks += [(name, hook) for name in _places(model, one)]
    return hooks


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
