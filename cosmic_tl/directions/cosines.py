"""Directions and subspaces against each other: cosines and principal angles, beside those of random directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import nan

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.directions.subspace import Subspace
from cosmic_tl.errors import CosmicError

LEVEL = 0.95
"""Share of random directions that stay below chance."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Cosines(Result):
    """How alike some directions or subspaces are, pair by pair."""

    table: pd.DataFrame
    """One row per pair and principal angle: first, second (what is compared), angle (1: the smallest, and the only one of two
    directions), cosine (signed between two directions), degrees, and p (share of random directions, or random subspaces of the
    same ranks, that come at least as close, either way; missing but for the smallest angle, and where both have several
    directions)."""
    names: tuple[str, ...]
    width: int
    """Of the residual stream."""

    @property
    def chance(self) -> float:
        """What the absolute cosine of two random directions of this width stays below in 95 % of the cases.

        Example:
            >>> round(Cosines(pd.DataFrame(), ("a", "b"), 128).chance, 3)
            0.173
        """
        return chance_cosine(self.width)

    @property
    def matrix(self) -> pd.DataFrame:
        """The cosine of every pair's smallest angle, names in rows and columns.

        Example:
            >>> row = {"first": ["a"], "second": ["b"], "angle": 1, "cosine": 0.5}
            >>> Cosines(pd.DataFrame(row), ("a", "b"), 8).matrix.to_numpy().tolist()
            [[1.0, 0.5], [0.5, 1.0]]
        """
        found = pd.DataFrame(np.eye(len(self.names)), index=self.names, columns=self.names)
        for row in self.table[self.table.angle == 1].itertuples():
            found.loc[row.first, row.second] = found.loc[row.second, row.first] = row.cosine
        return found

    def _lines(self) -> list[str]:
        return [f"Cosines({len(self.names)} in width {self.width}; chance {self.chance:.3f})"]

    def _shown(self) -> pd.DataFrame:
        return self.matrix.rename_axis("").reset_index()


@checked
def compare_directions(directions: Mapping[str, Direction | Subspace]) -> Cosines:
    """Cosines and principal angles between directions: of several layers, generators, kinds of prompts, or models.

    What random directions would have is exact: the squared cosine of a random direction with a subspace of rank k in d
    dimensions has the Beta distribution with parameters k/2 and (d − k)/2. It is the chance level of one pair; of many pairs
    some are beyond it. Directions that share a negative mean are alike through its error too.

    Args:
        directions: By name. `candidates.by_layer()` gives those of all layers, `category_directions` those of kinds of prompts.

    Raises:
        CosmicError: If there are fewer than two, or they are of different widths or models.

    Example:
        >>> x, y = (Direction(row, None, 3, -1) for row in torch.eye(3)[:2])
        >>> plane = Subspace(torch.eye(3)[:2].double(), torch.zeros(3).double(), torch.zeros(3).double(), 3, "plane")
        >>> compare_directions({"x": x, "y": y, "plane": plane}).table[["first", "second", "cosine", "p"]].values.tolist()
        [['x', 'y', 0.0, 1.0], ['x', 'plane', 1.0, 0.0], ['y', 'plane', 1.0, 0.0]]
    """
    if len(directions) < 2:
        raise CosmicError(f"directions: found {len(directions)}; give at least two, by name")
    width = _one_space(directions)
    rows = []
    for (first, one), (second, other) in combinations(directions.items(), 2):
        for k, cosine in enumerate(_cosines(one, other), 1):
            ranks = sorted((len(_basis(one)), len(_basis(other))))
            p = _beyond(cosine, ranks[1], width) if k == 1 and ranks[0] == 1 else nan
            degrees = float(np.rad2deg(np.arccos(cosine)))
            rows.append({"first": first, "second": second, "angle": k, "cosine": cosine, "degrees": degrees, "p": p})
    return Cosines(pd.DataFrame(rows), tuple(directions), width)


def chance_cosine(width: int) -> float:
    """What the absolute cosine of two random directions stays below in 95 % of the cases.

    Args:
        width: Number of dimensions, at least 2.

    Example:
        >>> round(chance_cosine(2048), 3)
        0.043
    """
    from scipy.stats import beta  # takes half a second to import

    return float(beta.ppf(LEVEL, 0.5, (width - 1) / 2) ** 0.5)


def _beyond(cosine: float, rank: int, width: int) -> float:
    from scipy.stats import beta

    return float(beta.sf(min(cosine**2, 1.0), rank / 2, (width - rank) / 2)) if rank < width else 1.0


def _basis(one: Direction | Subspace) -> Float64[Tensor, "rank d_model"]:
    return one.basis if isinstance(one, Subspace) else one.unit.double()[None]


def _cosines(one: Direction | Subspace, other: Direction | Subspace) -> list[float]:
    """Of the principal angles, the smallest first; signed between two directions."""
    product = _basis(one) @ _basis(other).T
    if isinstance(one, Direction) and isinstance(other, Direction):
        return [float(product.clamp(-1, 1))]
    return [float(value) for value in torch.linalg.svdvals(product).clamp(max=1)]


def _one_space(directions: Mapping[str, Direction | Subspace]) -> int:
    """The width that all have."""
    name, first = next(iter(directions.items()))
    width = _basis(first).shape[1]
    known = {one.fingerprint: (other, one.model) for other, one in directions.items() if one.fingerprint}
    for other, one in directions.items():
        if _basis(one).shape[1] != width:
            raise CosmicError(
                f"directions: {name!r} has width {width} and {other!r} {_basis(one).shape[1]}; take them from one model"
            )
    if len(known) > 1:
        (one_name, one_model), (other_name, other_model), *_ = known.values()
        raise CosmicError(
            f"directions: {one_name!r} was found in {one_model or 'a model'} and {other_name!r} in {other_model or 'another'}; "
            "take both in one model, or direction.for_model(model) on purpose"
        )
    return width
