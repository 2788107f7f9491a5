"""Which direction an edit of the weights removes: the difference of what writes to the stream, matrix by matrix."""

import re
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.directions.cosines import chance_cosine
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.components import (
    Contribution,
    Writer,
    contributions,
    plain_parameters,
    unreadable_weight_reason,
)
from cosmic_tl.model.fingerprint import model_fingerprint
from cosmic_tl.model.load import TransformerBridge, model_label
from cosmic_tl.model.same_shape import check_same_shape

PARTS = {"hook_resid_pre": "embedding", "hook_attn_out": "attention", "hook_mlp_out": "MLP"}
RANK = 4
"""Singular vectors whose share of the energy is told."""
_OVERSAMPLED = 8
_STEPS = 6
ALIKE = 0.9
"""Share of the energy, and cosine, from which one direction is said to explain an edit."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class RemovedDirection(Result):
    """What an edit changed in the weights that write to the stream, and along which direction."""

    table: pd.DataFrame
    """One row per parameter that writes to the stream: parameter, part (embedding, attention or MLP), layer, matrix (False for a
    bias), change (norm of the difference over that of the base's weights), share (of the difference's squared norm that its
    leading singular vector has; missing for a bias, or without a difference), share_4 (that of the four leading ones), left
    (what the edited weights write along that vector, in units of what the base's write: 0 where it is removed, 0.5 where it is
    halved, −1 where it is reflected), common (absolute cosine of that vector with the one that all matrices have in common), and
    cosine (the same with the direction that it was compared with, if any)."""
    vectors: Float[Tensor, "parameter d_model"]
    """The leading singular vectors on the stream side, of unit length; zeros without a difference. float32, on the CPU."""
    common: Float[Tensor, " d_model"]
    """The unit vector that the matrices' leading vectors have in common; zeros without a difference."""
    changed: pd.DataFrame
    """One row per kind of parameter, with a star for the layer: parameter, n, differing (how many of them are not equal)."""
    given: Direction | None
    """What the vectors were compared with."""
    base: str
    edited: str
    fingerprint: str = ""
    """Of the base."""

    @property
    def differs(self) -> bool:
        """Whether any weight does.

        Example:
            >>> from cosmic_tl import load_model
            >>> demo = load_model("demo", device="cpu")
            >>> find_removed_direction(demo, demo).differs
            False
        """
        return bool(self.changed.differing.any())

    @property
    def is_one(self) -> bool:
        """Whether one direction explains the differences of all matrices: at least 90 % of each, with cosines of at least 0.9.

        Example:
            >>> from cosmic_tl import load_model
            >>> demo, weak = (load_model(name, device="cpu") for name in ("demo", "demo-weak"))
            >>> find_removed_direction(demo, weak).is_one
            False
        """
        some = self.matrices
        return bool(len(some)) and bool(some.share.min() >= ALIKE and some.common.min() >= ALIKE)

    @property
    def chance(self) -> float:
        """What the absolute cosine of two random directions of this width stays below in 95 % of the cases."""
        return chance_cosine(len(self.common))

    @property
    def matrices(self) -> pd.DataFrame:
        """The rows of `table` of matrices that differ, without biases."""
        return self.table[self.table.matrix & (self.table.change > 0)]

    @property
    def cosines(self) -> pd.DataFrame:
        """Absolute cosines between the leading vectors of the matrices that differ, with their names in rows and columns."""
        some = self.matrices
        names = [f"{part} {layer}" for part, layer in zip(some.part, some.layer, strict=True)]
        own = self.vectors[some.index.tolist()]
        return pd.DataFrame((own @ own.T).abs().numpy(), index=names, columns=names)

    def as_direction(self, layer: int = 0) -> Direction:
        """The common vector as a direction of the base, for edits that take one, such as `Ablation`.

        It has unit length and no reference: how far apart the classes are is not in the weights. Its sign is arbitrary, unless it
        was compared with a direction.

        Args:
            layer: Where the direction belongs. Default 0; ablation acts at every layer in any case.

        Raises:
            CosmicError: If no matrix that writes to the stream differs.
        """
        if not self.common.any():
            raise CosmicError("removed: no matrix that writes to the stream differs, so there is no direction")
        method = f"removed by {self.edited}"
        return Direction(self.common, None, layer, -1, method, self.fingerprint, self.base.rsplit("/", 1)[-1])

    def said(self) -> str:
        """What was found, in a sentence.

        Example:
            >>> from cosmic_tl import load_model
            >>> demo = load_model("demo", device="cpu")
            >>> find_removed_direction(demo, demo).said()
            'no difference: all 99 parameters are equal'
        """
        n, differing = int(self.changed.n.sum()), int(self.changed.differing.sum())
        if not differing:
            return f"no difference: all {n} parameters are equal"
        some, biases = self.matrices, self.table[~self.table.matrix & (self.table.change > 0)]
        if some.empty:
            also = f"{len(biases)} of them biases that write to the stream" if len(biases) else "none that writes to it"
            return f"{differing} of {n} parameters differ, and no matrix that writes to the stream; {also}"
        other = differing - len(some) - len(biases)
        compared = "" if self.given is None else f"; median cosine with the given direction {some.cosine.median():.3f}"
        return (
            f"{len(some)} of {int(self.table.matrix.sum())} matrices that write to the stream differ, "
            f"{'in one direction' if self.is_one else 'and not in one direction'}: each one's leading direction has "
            f"{some.share.min():.1%} to {some.share.max():.1%} of its difference (median {some.share.median():.1%}), and cosines "
            f"of {some.common.min():.3f} to {some.common.max():.3f} with what they have in common (chance: {self.chance:.2f}); "
            f"{round(float(some.left.median()), 2) + 0.0:.2f} of what the base writes along it is left (median){compared}"
            + (f"; {other} other parameters differ too" if other > 0 else "")
        )

    def _lines(self) -> list[str]:
        return [f"RemovedDirection({self.base} to {self.edited})", f"  {self.said()}"]


@checked
def find_removed_direction(
    base: TransformerBridge,
    edited: TransformerBridge,
    direction: Direction | None = None,
    *,
    names: tuple[str, str] | None = None,
) -> RemovedDirection:
    """Find the direction that an edit of the weights takes out of what writes to the residual stream.

    An edit that removes a direction changes every matrix that writes to the stream by a matrix of rank one, whose vector on the
    stream side is that direction: `W' − W = −r̂ (r̂ᵀ W)`. So the leading singular vector of the difference shows it, the share of
    the difference that it explains tells whether there is one, and `left` whether it is removed or added. Where a norm stands
    between a matrix and the stream (Gemma 2 and 3, OLMo 2), weights are taken times its gain. A fine-tune changes many directions
    at once: shares are then small. So they are for a quantized file, whose rounding is in the difference.

    Singular vectors come from a randomized decomposition with a fixed seed, in float32, one matrix at a time.

    Args:
        base: The `TransformerBridge` before the edit.
        edited: The one after it.
        direction: A direction of the base to compare with. Defaults to none.
        names: What the two are called. Defaults to the names that they were loaded from.

    Raises:
        CosmicError: If shapes differ, weights are quantized or not in memory, what writes to the stream cannot be found, or the
            direction does not belong to the base.

    Example:
        >>> from cosmic_tl import load_model, orthogonalize_weights
        >>> base, edited = load_model("demo", device="cpu"), load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> _ = orthogonalize_weights(edited, direction)
        >>> found = find_removed_direction(base, edited, direction)
        >>> bool(found.table.share.min() > 0.999), bool(found.table.cosine.min() > 0.999)
        (True, True)
        >>> bool(found.table.left.abs().max() < 1e-3)
        True
    """
    check_same_shape(base, edited)
    if direction is not None:
        direction.check(base)
    for which, model in (("base", base), ("edited", edited)):
        for name, parameter in plain_parameters(model.original_model):
            if (reason := unreadable_weight_reason(parameter)) is not None:
                raise CosmicError(
                    f"{which}: {name} cannot be compared ({reason}); load the model unquantized and whole in memory, without "
                    "offloading"
                )
    unit = None if direction is None else direction.unit
    rows, vectors = [], []
    pairs = _writers(base, edited)
    with track(len(pairs), "differences of weights") as advance:
        for one, writer, other, theirs in pairs:
            row, vector = _compared(one, writer, other, theirs)
            rows.append(row)
            vectors.append(vector)
            advance(1)
    table, stacked = pd.DataFrame(rows), torch.stack(vectors)
    common = _common(stacked[(table.matrix & (table.change > 0)).tolist()], unit)
    along = stacked @ common
    stacked = torch.where(along[:, None] < 0, -stacked, stacked)
    known = table.change > 0
    table["common"] = np.where(known, along.abs().numpy(), nan)
    table["cosine"] = np.where(known, (stacked @ unit).abs().numpy(), nan) if unit is not None else nan
    labels = names or (model_label(base), model_label(edited))
    return RemovedDirection(table, stacked, common, _changed(base, edited), direction, *labels, model_fingerprint(base))


Pair = tuple[Contribution, Writer, Contribution, Writer | None]


def _writers(base: TransformerBridge, edited: TransformerBridge) -> list[Pair]:
    """What writes to the stream in the base, each parameter once, with the same of the edited model."""
    pairs: list[Pair] = []
    seen: set[int] = set()
    for one, other in zip(contributions(base), contributions(edited), strict=True):
        theirs = {writer.name: writer for writer in other.writers}
        for writer in one.writers:
            if id(writer.parameter) not in seen:  # a block may be used twice
                seen.add(id(writer.parameter))
                pairs.append((one, writer, other, theirs.get(writer.name)))
    return pairs


def _compared(
    one: Contribution, writer: Writer, other: Contribution, theirs: Writer | None
) -> tuple[dict[str, object], Float[Tensor, " d_model"]]:
    """The row of one parameter, and its leading vector."""
    before = _columns(writer, one.gain)
    after = torch.zeros_like(before) if theirs is None else _columns(theirs, other.gain).to(before.device)
    difference, size = after - before, float(before.norm())
    matrix = before.shape[1] > 1
    row: dict[str, object] = {
        "parameter": writer.name,
        "part": PARTS[one.site],
        "layer": one.layer,
        "matrix": matrix,
        "change": float(difference.norm()) / size if size else float(bool(difference.any())),
        "share": nan,
        "share_4": nan,
        "left": nan,
    }
    if not difference.any():
        return row, torch.zeros(len(before))
    vector, energies = leading_vector(difference)
    if matrix:
        row |= {"share": float(energies[0]), "share_4": float(energies[:RANK].sum())}
    read, now = (vector @ before).double(), (vector @ after).double()
    # Where the base writes nothing along it, there is nothing to remove.
    row["left"] = float(read @ now / read.square().sum()) if float(read.norm()) > 1e-6 * size else nan
    return row, vector.cpu()


def _columns(writer: Writer, gain: Tensor | None) -> Float[Tensor, "d_model column"]:
    """What a parameter adds to the stream, a column for each input, in float32."""
    weights = writer.parameter.detach()
    weights = weights[:, None] if weights.ndim == 1 else weights.movedim(writer.axis, 0).flatten(1)
    weights = weights.float()
    return weights if gain is None else weights * gain.to(weights)[:, None]


def leading_vector(
    matrix: Float[Tensor, "row column"], seed: int = 0
) -> tuple[Float[Tensor, " row"], Float[Tensor, " k"]]:
    """The leading left singular vector of a matrix, and the shares of the squared norm that the first ones have.

    By subspace iteration from a random start, which does not touch the global random state.

    Args:
        matrix: Not zero.
        seed: Of the start.

    Example:
        >>> vector, shares = leading_vector(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> vector.abs().round().tolist(), [round(share, 3) for share in shares.tolist()]
        ([1.0, 0.0], [0.9, 0.1])
    """
    matrix = matrix / matrix.abs().max()  # so that no square underflows
    k = min(RANK + _OVERSAMPLED, *matrix.shape)
    start = torch.randn(matrix.shape[1], k, generator=torch.Generator().manual_seed(seed)).to(matrix)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    rotation, singular, _ = torch.linalg.svd((basis.T @ matrix).cpu(), full_matrices=False)
    shares = singular.double().square() / matrix.double().square().sum().cpu()
    return basis @ rotation[:, 0].to(basis), shares.float()


def _common(vectors: Float[Tensor, "matrix d_model"], unit: Tensor | None) -> Float[Tensor, " d_model"]:
    """The unit vector with the largest squared cosines with all of them."""
    if not len(vectors):
        return torch.zeros(vectors.shape[1])
    common: Tensor = torch.linalg.svd(vectors.double(), full_matrices=False).Vh[0].float()
    towards = common[common.abs().argmax()] if unit is None else common @ unit
    return -common if float(towards) < 0 else common


def _changed(base: TransformerBridge, edited: TransformerBridge) -> pd.DataFrame:
    """How many parameters of each kind differ."""
    ours, theirs = (dict(plain_parameters(model.original_model)) for model in (base, edited))
    rows = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        one, other = ours.get(name), theirs.get(name)
        same = one is not None and other is not None and torch.equal(one.detach(), other.detach().to(one))
        rows.append({"parameter": re.sub(r"\.\d+(?=\.)", ".*", name), "differing": not same})
    found = pd.DataFrame(rows).groupby("parameter", sort=False).differing.agg(n="size", differing="sum")
    return found.reset_index().astype({"n": int, "differing": int})
