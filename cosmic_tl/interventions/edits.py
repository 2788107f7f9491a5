"""Addition, directional ablation and affine concept editing: frozen values that become hooks.

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

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from cosmic_tl._util.border import checked
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_alpha, one_of
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.model.fingerprint import check_origin
from cosmic_tl.model.hooks import Part, Scope, Site, hook_name
from cosmic_tl.model.load import TransformerBridge

Place = tuple[int, Part]
EVERYWHERE: Place = (-1, "stream")


def written(n_layers: int) -> list[tuple[int, Site]]:
    """Hook points of whatever enters or is added to the stream, in every block: where an edit of `EVERYWHERE` acts.

    Example:
        >>> len(written(8))
        24
    """
    sites: tuple[Site, ...] = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
    return [(block, site) for block in range(n_layers) for site in sites]


def _rank_one(direction: Direction, reads: float, offset: float) -> AffineMap:
    unit = direction.unit[None]
    at = torch.tensor([offset], dtype=torch.float64)
    return AffineMap(unit, reads * unit, at, direction.fingerprint, direction.model)


class Edit(ABC):
    """An affine map at some places of a model. A new kind of edit is a frozen dataclass with `map` and `place`.

    Example:
        >>> @dataclass(frozen=True, eq=False)
        ... class Doubling(Edit):
        ...     layer: int
        ...     width: int
        ...
        ...     @property
        ...     def map(self):
        ...         eye = torch.eye(self.width)
        ...         return AffineMap(-eye, eye, torch.zeros(self.width))
        ...
        ...     @property
        ...     def place(self):
        ...         return self.layer, "stream"
        >>> Doubling(3, 2).map(torch.tensor([1.0, 2.0]))
        tensor([2., 4.])
    """

    tokens: Scope = "all"
    """Which tokens are edited."""

    if TYPE_CHECKING:  # a field in some edits and a property in others

        @property
        def map(self) -> AffineMap:
            """The map that it is."""

    def map_at(self, site: Site) -> AffineMap:
        """The map at hook points of one kind; the same everywhere, unless the edit says otherwise.

        Example:
            >>> Ablation(Direction(torch.ones(2), torch.zeros(2), 0, -1)).map_at("hook_mlp_out")
            AffineMap(rank 1, d_model 2)
        """
        return self.map

    @property
    @abstractmethod
    def place(self) -> Place:
        """The first edited layer, and the part. Edits with equal places share a batch."""

    def points(self, n_layers: int) -> list[tuple[int, Site]]:
        """The edited hook points.

        Example:
            >>> AffineEdit(Direction(torch.ones(4), torch.zeros(4), 3, -1)).points(8)
            [(3, 'hook_resid_pre')]
        """
        layer, part = self.place
        return [(layer, "hook_resid_pre" if part == "stream" else "hook_resid_post")]

    def check(self, model: TransformerBridge) -> None:
        """Check that a model has this place, and a stream with the width of the map.

        Raises:
            CosmicError: If not.

        Example:
            >>> from cosmic_tl import load_model
            >>> AffineEdit(Direction(torch.ones(128), torch.zeros(128), 3, -1)).check(load_model("demo", device="cpu"))
        """
        layer, part = self.place
        one_of("part", part, get_args(Part))
        if (width := self.map.left.shape[1]) != (d_model := int(model.cfg.d_model)):
            raise CosmicError(f"map: it is for a stream of width {width}, and the model's is {d_model}")
        if self.place != EVERYWHERE:
            hook_name(model, layer, "hook_resid_pre")


class Everywhere(Edit):
    """An edit of whatever enters or is added to the stream, in every block.

    Example:
        >>> issubclass(Ablation, Everywhere), issubclass(AffineEdit, Everywhere)
        (True, False)
    """

    @property
    def place(self) -> Place:
        """Everywhere."""
        return EVERYWHERE

    def points(self, n_layers: int) -> list[tuple[int, Site]]:
        """Whatever enters or is added to the stream, in every block.

        Example:
            >>> len(Ablation(Direction(torch.ones(4), torch.zeros(4), 3, -1)).points(8))
            24
        """
        return written(n_layers)


Intervention = Edit
Interventions = Edit | Sequence[Edit]


@dataclass(frozen=True, eq=False)
class OfDirection(Edit):
    """An edit along a direction."""

    direction: Direction

    def __post_init__(self) -> None:
        check_alpha("alpha", getattr(self, "alpha", 0.0))

    def check(self, model: TransformerBridge) -> None:
        """Check that the direction and the place of the edit fit a model.

        Raises:
            CosmicError: If width or depth of the direction differ, or the model has no such place.

        Example:
            >>> from cosmic_tl import load_model
            >>> Ablation(Direction(torch.ones(128), torch.zeros(128), 3, -1)).check(load_model("demo", device="cpu"))
        """
        self.direction.check_shape(model)
        super().check(model)


@checked
@dataclass(frozen=True, eq=False)
class Addition(OfDirection):
    """Activation addition: `x' = x + α r` at the input of the source layer (CAA; Arditi et al. 2024, equation 3)."""

    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """Layer to apply it at; None is the direction's own layer."""

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> Addition(Direction(torch.ones(4), torch.zeros(4), 0, -1), alpha=0.5).map(torch.zeros(4))
            tensor([0.5000, 0.5000, 0.5000, 0.5000])
        """
        return _rank_one(self.direction, 0.0, self.alpha * self.direction.norm)

    @property
    def place(self) -> Place:
        """Its layer, or the direction's own."""
        return self.direction.layer if self.layer is None else self.layer, "stream"


@checked
@dataclass(frozen=True, eq=False)
class Ablation(Everywhere, OfDirection):
    """Directional ablation: `x' = x − (x·r̂) r̂`, everywhere (Arditi et al. 2024, equation 4)."""

    tokens: Scope = "all"

    @property
    def map(self) -> AffineMap:
        """The map that it is.

        Example:
            >>> Ablation(Direction(torch.ones(2), torch.zeros(2), 0, -1)).map(torch.tensor([3.0, 1.0])).round()
            tensor([ 1., -1.])
        """
        return _rank_one(self.direction, 1.0, 0.0)


@checked
@dataclass(frozen=True, eq=False)
class AffineEdit(OfDirection):
    """Affine concept editing: `x' = x − (x·r̂) r̂ + (nu·r̂) r̂ + α r` at one layer (Marshall et al. 2025, equation 3).

    α = 0 reads as the negative class and α = 1 as the positive class. `affine_edits` makes one for every layer, and
    `Candidates.moved` takes a direction to another one.

    Raises:
        CosmicError: If layer is not the direction's own (the reference is valid there only), or the direction has no
            reference.
    """

    alpha: float = 1.0
    tokens: Scope = "all"
    layer: int | None = None
    """The direction's own layer, or None (default), which means the same."""
    part: Part = "stream"
    """"block" edits what the block adds; direction and reference must then be of that part too (`difference_in_means`
    takes a part)."""

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @property
    def place(self) -> Place:
        """The direction's own layer."""
        return self.direction.layer, self.part


@checked
@dataclass(frozen=True, eq=False)
class MapEdit(Edit):
    """Any affine map at one layer, such as an eraser."""

    map: AffineMap
    layer: int
    tokens: Scope = "all"
    part: Part = "stream"
    """The stream that enters the block, or what the block adds to it."""

    @property
    def place(self) -> Place:
        """Its layer and part."""
        return self.layer, self.part


def check_interventions(model: TransformerBridge, interventions: Iterable[Intervention]) -> None:
    """Check that interventions fit a model, computing its fingerprint once for all of them.

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
        if isinstance(one.tokens, str) and one.tokens not in ("all", "prompt", "completion"):
            raise CosmicError(f"tokens: unknown scope {one.tokens!r}; use all, prompt, completion or a mask")
        one.check(model)
        found = one.map
        origins[found.fingerprint] = found.model, "direction" if hasattr(one, "direction") else "map"
    for fingerprint, (name, what) in origins.items():
        check_origin(model, fingerprint, name, what)


def as_sequence(interventions: Interventions) -> tuple[Intervention, ...]:
    """One intervention or several, as a tuple.

    Example:
        >>> as_sequence(())
        ()
    """
    return tuple(interventions) if isinstance(interventions, Sequence) else (interventions,)
