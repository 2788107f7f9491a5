"""Representational independence (Wollschläger et al. 2025): whether removing one direction changes another."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.interventions.edits import Ablation, Interventions
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge

PLACEBOS = 5
"""Random directions that are ablated instead, per direction."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Independence(Result):
    """How ablating either of two directions changes the other's cosines along the layers."""

    table: pd.DataFrame
    """One row per direction that is read, edit and layer: read ("first" or "second"), ablated ("nothing", "the other" or
    "random"), seed (−1 but for random ones), layer, cosine (of `y[l, -1]` with the direction that is read, mean over prompts),
    and change (mean over prompts of the squared difference to the cosine with no edit)."""
    cosine: float
    """Between the two directions."""
    layers: tuple[int, int]
    """Of the two directions."""

    @property
    def scores(self) -> pd.DataFrame:
        """One row per direction that is read, with the columns read, change (sum over layers, with the other ablated; 0:
        independent), random (the mean of the same for the random directions) and largest (their largest).

        Example:
            >>> rows = {"read": "first", "ablated": ["the other", "random"], "seed": [-1, 0], "layer": 3, "change": [0.5, 0.1]}
            >>> Independence(pd.DataFrame(rows), 0.0, (3, 4)).scores.drop(columns="read").iloc[0].tolist()
            [0.5, 0.1, 0.1]
        """
        sums = self.table.groupby(["read", "ablated", "seed"], sort=False).change.sum().reset_index()
        rows = []
        for read, some in sums.groupby("read", sort=False):
            by_random = some[some.ablated == "random"].change
            change = float(some[some.ablated == "the other"].change.iloc[0])
            rows.append({"read": read, "change": change, "random": by_random.mean(), "largest": by_random.max()})
        return pd.DataFrame(rows)

    @property
    def total(self) -> float:
        """RepInd: the sum of both changes.

        Example:
            >>> rows = {"read": ["first", "second"], "ablated": "the other", "seed": -1, "layer": 3, "change": [0.5, 0.25]}
            >>> Independence(pd.DataFrame(rows), 0.0, (3, 4)).total
            0.75
        """
        return float(self.scores.change.sum())

    def _lines(self) -> list[str]:
        return [f"Independence(RepInd {self.total:.3g}, cosine {self.cosine:.3f})"]

    def _shown(self) -> pd.DataFrame:
        return self.scores


@checked
def measure_independence(
    model: TransformerBridge,
    prompts: Sequence[str],
    one: Direction,
    other: Direction,
    *,
    n_placebos: int = PLACEBOS,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Independence:
    """Whether two directions are parts of one mechanism: does ablating one change how much of the other is there?

    Directions at a right angle may still depend on each other: later layers may write the one where they read the other. The
    score (RepInd; Wollschläger et al. 2025) is, at the last position, the sum over layers of the mean squared change of
    cos(y[l], v) when u is ablated everywhere, for either direction in both roles. Beside it stand random directions that have
    the same cosine with the one that is read, since ablating any direction that is not at a right angle changes it.

    Args:
        model: A `TransformerBridge`.
        prompts: Instructions, such as positive test prompts.
        one: A direction.
        other: Another one.
        n_placebos: Random directions in place of each. Default 5.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times edits) per forward pass. Default: by available memory.

    Raises:
        CosmicError: If the directions point the same way or the opposite one, or do not fit the model.

    Example:
        >>> from cosmic_tl import load_model, random_direction
        >>> d = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = measure_independence(load_model("demo", device="cpu"), ["hi"], d, random_direction(d, 1), n_placebos=2)
        >>> len(found.table), found.scores["read"].tolist()  # 2 directions, 4 edits, 8 layers
        (64, ['first', 'second'])
    """
    check_count("n_placebos", n_placebos)
    for direction in (one, other):
        direction.check(model)
    cosine = float(one.unit.double() @ other.unit.double())
    if abs(cosine) > 1 - 1e-6:
        raise CosmicError(f"directions: their cosine is {cosine:.4f}, so they are one; give two that differ")
    rows, layers = tokenize(model, prompts, chat), tuple(range(int(model.cfg.n_layers)))
    units = torch.stack([one.unit, other.unit]).double()
    # Of each direction that is read, what is ablated instead of nothing.
    ablated = {
        "first": [other, *(_as_close(other, one, seed) for seed in range(n_placebos))],
        "second": [one, *(_as_close(one, other, seed) for seed in range(n_placebos))],
    }
    edits: list[Interventions] = [(), *(Ablation(direction) for some in ablated.values() for direction in some)]

    def along(outcome: Outcome) -> Float64[Tensor, "prompt read layer"]:
        stream = torch.stack([outcome.resid_post[layer][:, -1].cpu().double() for layer in layers], dim=1)
        return cosine_similarity(stream[:, None], units[None, :, None], dim=-1)

    cosines = {}
    with track(len(edits), "independence") as advance:
        for i, found in intervened(model, rows, edits, Reading(layers), along, batch_size=batch_size):
            cosines[i] = found
            advance(1)
    names = [("the other", -1), *(("random", seed) for seed in range(n_placebos))]
    frames = []
    for k, read in enumerate(ablated):
        clean, first = cosines[0][:, k], 1 + k * len(names)
        for i, (name, seed) in ((0, ("nothing", -1)), *enumerate(names, first)):
            here = cosines[i][:, k]
            about = {"read": read, "ablated": name, "seed": seed, "layer": layers}
            values = {"cosine": here.mean(0).tolist(), "change": (here - clean).square().mean(0).tolist()}
            frames.append(pd.DataFrame({**about, **values}))
    return Independence(pd.concat(frames, ignore_index=True), cosine, (one.layer, other.layer))


def _as_close(like: Direction, to: Direction, seed: int) -> Direction:
    """A random direction that has the same cosine with `to` as `like` has."""
    unit = to.unit.double()
    noise = torch.randn(len(unit), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cosine = like.unit.double() @ unit
    apart: Float[Tensor, " d_model"] = normalize(noise - (noise @ unit) * unit, dim=0)
    vector = cosine * unit + (1 - cosine**2).sqrt() * apart
    return Direction(vector.float(), None, layer=like.layer, position=like.position, method=f"random (seed {seed})")
