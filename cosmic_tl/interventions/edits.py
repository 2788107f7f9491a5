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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import get_args

import torch

from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.model.fingerprint import check_origin
from cosmic_tl.model.hooks import Part, Scope, hook_name
from cosmic_tl.model.load import TransformerBridge

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
        CosmicError: If layer is not the direction's own, whose reference says nothing about another layer, or the direction
            has no reference.
    """

    direction: Direction
    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """The direction's own layer, or None (default), which is the same."""
    part: Part = "stream"
    """"block" edits what the block adds; direction and reference have to be of that too (`difference_in_means` takes a part)."""

    def __post_init__(self) -> None:
        self.direction.known_reference()
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
        return _rank_one(d, 1.0, float(d.known_reference().double() @ d.unit.double()) + self.alpha * d.norm)


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
