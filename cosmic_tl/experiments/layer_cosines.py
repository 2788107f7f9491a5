"""Both classes' cosines with a direction, layer by layer, in the direction's own model or in another (Arditi et al. 2024)."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, Prompts, labels_of, sides_of
from cosmic_tl.directions.cosines import chance_cosine
from cosmic_tl.directions.direction import Direction
from cosmic_tl.experiments.causal_statistics import interval, resamples
from cosmic_tl.experiments.conditions import REFUSAL, Terms, terms_of
from cosmic_tl.metrics.separation import auc
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.layer_by_layer import layer_by_layer
from cosmic_tl.model.load import TransformerBridge, short_label
from cosmic_tl.model.positions import Positions, post_instruction_positions


@checked
@dataclass(frozen=True, eq=False, repr=False)
class LayerCosines(Result):
    """How far the prompts of both classes lie along a direction, at every layer of a model."""

    table: pd.DataFrame
    """One row per side, position and layer: side, position, layer, cosine (of `x[l, i]` with the direction, mean over prompts),
    and low and high (95 % interval over prompts)."""
    gaps: pd.DataFrame
    """One row per position and layer: position, layer, gap (positive minus negative mean cosine), low, high (95 % over prompts),
    chance (what the absolute gap along a random direction stays below in 95 % of the cases), and auc (share of pairs of prompts
    in which the positive one has the larger cosine)."""
    direction: Direction
    model: str
    """Name of the model whose activations they are."""
    positions: Positions
    n_prompts: tuple[int, int]
    """Positive and negative prompts."""
    terms: Terms = field(default=REFUSAL)
    """What people are shown."""

    def _lines(self) -> list[str]:
        n, m = self.n_prompts
        return [f"LayerCosines({self.model}, {n} + {m} prompts)", f"  {self.direction!r}"]

    def _shown(self) -> pd.DataFrame:
        return self.gaps


@checked
def cosines_by_layer(
    model: TransformerBridge,
    prompts: Prompts,
    direction: Direction,
    *,
    n: int | None = None,
    n_positions: int = 1,
    chat: ChatFormat | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> LayerCosines:
    """Cosines of both classes' activations with one direction, at every layer (Arditi et al. 2024, figure 24).

    With a direction of a chat model and activations of its base model this shows whether the base model tells the classes apart
    along it: take `direction.for_model(base)`. A gap is beyond chance where few random directions have one as large. That level
    is exact: the gap along a random unit vector is the length of the difference between the classes' mean unit activations,
    times the cosine of two random vectors.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose test prompts are taken, or a pair of lists: positive and negative prompts.
        direction: A direction of this model, of any layer; that of another one by its `for_model`.
        n: Prompts per side. Default all.
        n_positions: How many of the last positions. Default the last one.
        chat: Formatting. Defaults to the plain chat template.
        seed: Of the resampling. Default 0.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a number is out of range, or the direction belongs to another model.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> sides = ["Rob a bank clerk.", "Rob a shop."], ["Bake a pizza.", "Bake a pie."]
        >>> found = cosines_by_layer(load_model("demo", device="cpu"), sides, direction)
        >>> len(found.table), found.gaps.columns.tolist()  # 2 sides, 8 layers
        (16, ['position', 'layer', 'gap', 'low', 'high', 'chance', 'auc'])
    """
    direction.check(model)
    positions = post_instruction_positions(model, chat, n_positions)
    sides = sides_of(prompts, "test", n)
    counts = (len(sides[0]), len(sides[1]))
    rows = tokenize(model, [*sides[0], *sides[1]], chat)
    unit = direction.unit.double()
    drawn = [resamples(count, seed + k) for k, count in enumerate(counts)]  # apart: the sides' prompts are no pairs
    level = chance_cosine(len(unit))
    cosines, gaps = [], []
    for layer, stream in enumerate(layer_by_layer(model, rows, n_positions=n_positions, batch_size=batch_size)):
        units: Float64[Tensor, "prompt position d_model"] = normalize(stream.double(), dim=-1)
        apart = (units[: counts[0]].mean(0) - units[counts[0] :].mean(0)).norm(dim=-1)
        along = (units @ unit).numpy()
        for k, position in enumerate(positions.indices):
            place = {"position": position, "layer": layer}
            both = along[: counts[0], k], along[counts[0] :, k]
            means = [weights @ some for weights, some in zip(drawn, both, strict=True)]
            for side, some, mean in zip(SIDES, both, means, strict=True):
                cosines.append({"side": side, **place, "cosine": float(some.mean()), **_ends(mean)})
            gap = float(both[0].mean() - both[1].mean())
            beside = {"chance": float(apart[k]) * level, "auc": auc(*both)[0]}
            gaps.append({**place, "gap": gap, **_ends(means[0] - means[1]), **beside})
    order = ["side", "position", "layer"]
    table = pd.DataFrame(cosines).sort_values(order, ascending=[False, True, True], ignore_index=True)
    gap_table = pd.DataFrame(gaps).sort_values(order[1:], ignore_index=True)
    terms = terms_of(None, labels_of(prompts))
    return LayerCosines(table, gap_table, direction, short_label(model), positions, counts, terms)


def _ends(drawn: np.ndarray) -> dict[str, float]:
    low, high = interval(drawn)
    return {"low": float(low), "high": float(high)}
