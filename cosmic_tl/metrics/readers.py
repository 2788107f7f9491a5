"""Who reads a direction: the heads and neurons whose input weights look along it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import check_count
from cosmic_tl.metrics.chance import RANDOM, beside, chance_of, with_random
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.parts import reading_along

NEURONS = ("neuron", "gate")


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Readers(Result):
    """What heads and neurons read from the stream along a direction."""

    table: pd.DataFrame
    """One row per head of each kind, and per neuron that is listed: part ("query", "key" or "value"; "neuron" for a neuron's
    input weights, "gate" for those of its gate), layer, index (of the head, or the key-value head; of the neuron), weight
    (`‖W (g ⊙ r̂)‖` for a head, `w·(g ⊙ r̂)` for a neuron, with the gain `g` of the norm before it), z (in standard deviations of
    random directions), and beyond_chance (whether `|z|` exceeds `chance`)."""
    chance: Mapping[str, float]
    """For each part, the `|z|` that the best one stays below in 95 % of the cases for a random direction."""
    direction: Direction

    def strongest(self, n: int = 10) -> pd.DataFrame:
        """The parts that read most, by `|z|` over chance, so that heads and neurons compare.

        Args:
            n: Number of rows. Default 10.

        Example:
            >>> rows = {"part": ["query", "gate"], "layer": 3, "index": 0, "weight": 0.1, "z": [3.0, -4.0]}
            >>> direction = Direction(torch.ones(4), None, layer=3, position=-1)
            >>> Readers(pd.DataFrame(rows), {"query": 2.0, "gate": 5.0}, direction).strongest(1).part.tolist()
            ['query']
        """
        check_count("n", n)
        over_chance = self.table.z.abs() / self.table.part.map(self.chance)
        return self.table.loc[over_chance.nlargest(n).index].reset_index(drop=True)

    def _lines(self) -> list[str]:
        counts = self.table[self.table.beyond_chance].part.value_counts()
        found = ", ".join(f"{counts.get(part, 0)} {part}" for part in self.chance)
        return [f"Readers({self.direction!r}): beyond chance {found}"]

    def _shown(self) -> pd.DataFrame:
        return self.strongest()


@checked
def find_readers(
    model: TransformerBridge, direction: Direction, *, n: int = 20, n_random: int = RANDOM, seed: int = 0
) -> Readers:
    """Which heads' queries, keys and values, and which neurons' input weights look along `r̂`, through the norm before them.

    From the direction's own layer on, at whose input it is. Large weights read any direction, so each number stands beside what
    random directions get. These are weights alone: a part that reads the direction may do nothing with it.

    Args:
        model: A `TransformerBridge`.
        direction: Whose `r̂` is read.
        n: Neurons to list, by `|z|`, and as many gates. Default 20; all heads are listed.
        n_random: Random directions. Default 128.
        seed: Of the random directions. Default 0.

    Raises:
        CosmicError: If a number is too small, the direction does not fit, or a matrix cannot be found, as in a mixture of
            experts.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = find_readers(load_model("demo", device="cpu"), Direction(torch.ones(128), None, 3, -1), n=5)
        >>> found.table.part.value_counts(sort=False).to_dict()  # 5 layers of 4 heads on 2 keys and values
        {'query': 20, 'key': 10, 'value': 10, 'neuron': 5, 'gate': 5}
    """
    check_count("n", n)
    direction.check(model)
    units = with_random(direction.unit, n_random, seed)
    rows: dict[str, list[pd.DataFrame]] = {}
    best: dict[str, list[Tensor]] = {}
    for layer in range(direction.layer, int(model.cfg.n_layers)):
        for part, vectors in reading_along(model, layer, units).items():
            weights = vectors[..., 0] if part in NEURONS else vectors.norm(dim=-1)
            z, random = beside(weights[:1], weights[1:])
            best.setdefault(part, []).append(random.abs().amax(1))
            numbers = {"weight": weights[0].tolist(), "z": z[0].tolist()}
            frame = pd.DataFrame({"part": part, "layer": layer, "index": range(len(weights[0])), **numbers})
            rows.setdefault(part, []).append(frame.loc[frame.z.abs().nlargest(n).index] if part in NEURONS else frame)
    chance = {part: chance_of(torch.stack(some).amax(0)) for part, some in best.items()}
    tables = []
    for part, frames in rows.items():
        table = pd.concat(frames, ignore_index=True)
        tables.append(table.loc[table.z.abs().nlargest(n).index] if part in NEURONS else table)
    table = pd.concat(tables, ignore_index=True)
    return Readers(table.assign(beyond_chance=table.z.abs() > table.part.map(chance)), chance, direction)
