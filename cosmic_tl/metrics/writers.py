"""Who writes a direction: what single heads and neurons add to the stream along it, by weights and on prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, Prompts, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.metrics.chance import RANDOM, beside, chance_of, with_random
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.components import check_additive
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.parts import Kind, Output, given_to, outputs_of
from cosmic_tl.model.positions import Positions, post_instruction_positions

NUMBERS = ["weight", "weight_z", "positive", "negative", "difference", "se", "difference_z"]
COLUMNS = ["part", "layer", "index", "position", "weight", "weight_z", "beyond_chance", *NUMBERS[2:]]
BIASES: dict[Kind, str] = {"attention": "attention bias", "mlp": "MLP bias"}


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Writers(Result):
    """What every part of a model adds to the stream along a direction."""

    table: pd.DataFrame
    """One row per part and position: part ("embedding", "head", "attention bias", "neuron", "other neurons" or "MLP bias"), layer
    (−1 for the embedding), index (of the head or neuron; −1 otherwise), position, weight (a head's `‖W_O r̂‖`, a neuron's
    `w_out·r̂`), weight_z (in standard deviations of random directions), beyond_chance (whether `|weight_z|` exceeds `chance`),
    positive and negative (mean over prompts of what it adds along `r̂`), difference, se (its standard error), and difference_z (in
    standard deviations of the part's difference along random directions).

    Positive, negative and difference add up, at each position, to those of the stream that leaves the last block; over the layers
    below `l` to those of the stream that enters block `l`."""
    chance: Mapping[str, float]
    """For heads and for neurons, the `|weight_z|` that the best one stays below in 95 % of the cases for a random direction."""
    direction: Direction
    positions: Positions
    n_prompts: tuple[int, int]
    """Positive and negative prompts."""

    @property
    def place(self) -> int:
        """The position that is shown: the direction's own, or the last one.

        Example:
            >>> direction = Direction(torch.ones(4), None, layer=3, position=-9)
            >>> Writers(pd.DataFrame(), {}, direction, Positions(("a", "b")), (1, 1)).place
            -1
        """
        own = self.direction.position
        return own if own in self.positions.indices else -1

    def strongest(self, n: int = 10, position: int | None = None) -> pd.DataFrame:
        """The heads and neurons whose contributions differ most between the sides, whichever way: of the layers below the
        direction's, which make it; of all layers if there are none.

        Args:
            n: Number of rows. Default 10.
            position: Default `place`.

        Raises:
            CosmicError: If that position was not measured.

        Example:
            >>> rows = {"part": "head", "layer": 0, "index": [0, 1], "position": -1, "difference": [0.1, -0.3]}
            >>> direction = Direction(torch.ones(4), None, layer=3, position=-1)
            >>> Writers(pd.DataFrame(rows), {}, direction, Positions(("a",)), (1, 1)).strongest(1)["index"].tolist()
            [1]
        """
        check_count("n", n)
        position = self.place if position is None else position
        if position not in self.positions.indices:
            raise CosmicError(f"position: found {position}; it has {', '.join(map(str, self.positions.indices))}")
        some = self.table[(self.table.position == position) & self.table.part.isin(["head", "neuron"])]
        some = some[some.layer < (self.direction.layer or np.inf)]
        return some.sort_values("difference", key=abs, ascending=False).head(n).reset_index(drop=True)

    def _lines(self) -> list[str]:
        n, m = self.n_prompts
        return [f"Writers({self.direction!r}, {n} + {m} prompts), strongest at position {self.place}"]

    def _shown(self) -> pd.DataFrame:
        return self.strongest()


@dataclass(eq=False)
class _Sums:
    """Sums over one side's prompts, from zero on: of what is written along the direction and of its square (`[power, …]`)."""

    embedding: Float64[Tensor, "*power_position_one"]
    parts: list[Float64[Tensor, "*power_position_part"]]
    """By the heads or neurons of each output,"""
    biases: list[Float64[Tensor, "*power_position_one"]]
    """and by its bias."""
    given: list[Float64[Tensor, "*position_in"]]
    """Of what heads or neurons give to each output projection."""


@checked
def find_writers(
    model: TransformerBridge,
    prompts: Prompts,
    direction: Direction,
    *,
    n: int = 20,
    n_val: int | None = None,
    n_positions: int | None = None,
    n_random: int = RANDOM,
    chat: ChatFormat | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Writers:
    """What heads, neurons, biases and embeddings add to the stream along `r̂`, on positive and on negative prompts.

    Nothing else writes to the stream, so the parts add up to its projection on `r̂`, and their differences to the difference
    between the sides. A large output matrix writes along any direction: beside each weight stands how many standard deviations it
    lies from what random directions get, and beside each difference the same for what the part's own difference between the sides
    has along random directions.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, whose validation prompts are taken, or a pair of lists: positive and negative prompts.
        direction: Whose `r̂` is written.
        n: Neurons to list by difference (at any position), and as many by weight, below the direction's layer; and again from it
            on. Default 20. The others are summed up by layer.
        n_val: Prompts per side. Default all.
        n_positions: How many of the last positions. Default every post-instruction token.
        n_random: Random directions. Default 128.
        chat: Formatting. Defaults to the plain chat template.
        seed: Of the random directions. Default 0.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a number is too small, the direction does not fit, a block does more than add attention and MLP outputs,
            or its heads or neurons cannot be told apart, as in a mixture of experts.

    Example:
        >>> from cosmic_tl import load_model
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> sides = ["Rob a bank clerk."], ["Bake a pie."]
        >>> found = find_writers(load_model("demo", device="cpu"), sides, direction, n=5, n_positions=1)
        >>> found.table.part.value_counts()[["embedding", "head", "MLP bias"]].tolist()
        [1, 32, 8]
    """
    check_count("n", n)
    direction.check(model)
    check_additive(model)
    units = with_random(direction.unit, n_random, seed)
    positions = post_instruction_positions(model, chat, n_positions)
    sides = [tokenize(model, side, chat) for side in sides_of(prompts, "val", n_val)]
    weights = [_weights(model, one, units) for kind in BIASES for one in outputs_of(model, kind)]
    with track(sum(map(len, sides)), "writers") as advance:
        sums = [_side(model, rows, weights, direction.unit, len(positions), batch_size, advance) for rows in sides]
    counts = (len(sides[0]), len(sides[1]))
    frames = [_frame("embedding", -1, positions, _summary([one.embedding for one in sums], counts))]
    neurons: list[tuple[int, dict[str, Tensor]]] = []
    for k, own in enumerate(weights):
        parts = _summary([one.parts[k] for one in sums], counts) | {"weight": own.weight, "weight_z": own.z}
        if own.of.kind == "attention":
            delta = sums[0].given[k] / counts[0] - sums[1].given[k] / counts[1]
            written = _by_head(model, own.slopes[:, None] * delta)
            parts["difference_z"] = beside(written[:1].flatten(1), written[1:].flatten(1))[0].view(written[0].shape)
            frames.append(_frame("head", own.of.layer, positions, parts))
        else:  # a neuron has one output vector, so that a difference is as far from random ones as its weight is
            parts["difference_z"] = own.z * (parts["difference"] * own.weight).sign()
            neurons.append((own.of.layer, parts))
        biases = _summary([one.biases[k] for one in sums], counts)
        frames.append(_frame(BIASES[own.of.kind], own.of.layer, positions, biases))
    frames += _listed(neurons, positions, n, direction.layer)
    chance = {
        name: chance_of(torch.stack([one.best for one in weights if one.of.kind == kind]).amax(0))
        for name, kind in (("head", "attention"), ("neuron", "mlp"))
    }
    table = pd.concat(frames, ignore_index=True)
    table["beyond_chance"] = table.weight_z.abs() > table.part.map(chance)
    table = table.sort_values(["layer", "position"], kind="stable", ignore_index=True)[COLUMNS]
    return Writers(table, chance, direction, positions, counts)


@dataclass(frozen=True, eq=False)
class _Weights:
    """How the heads or neurons of one block write along a direction."""

    of: Output
    slopes: Float64[Tensor, "direction d_in"]
    """What one unit of each input writes along the direction, and for heads along random ones."""
    constant: Float64[Tensor, " 1"]
    """What the bias writes."""
    weight: Float64[Tensor, "1 part"]
    z: Float64[Tensor, "1 part"]
    best: Float64[Tensor, " random"]
    """The largest |z| for each random direction."""


def _weights(model: TransformerBridge, output: Output, units: Float[Tensor, "direction d_model"]) -> _Weights:
    slopes, constants = output.along(units)
    heads = output.kind == "attention"
    weights = _by_head(model, slopes.square()).sqrt() if heads else slopes
    z, random = beside(weights[:1], weights[1:])
    return _Weights(
        output, slopes if heads else slopes[:1].clone(), constants[:1], weights[:1].clone(), z, random.abs().amax(1)
    )


def _side(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    weights: Sequence[_Weights],
    unit: Float[Tensor, " d_model"],
    n_positions: int,
    batch_size: int | None,
    advance: Callable[[int], object],
) -> _Sums:
    """What one side's prompts write."""
    enters: tuple[int, Site] = (0, "hook_resid_pre")
    zero = torch.zeros((), dtype=torch.float64)
    sums = _Sums(zero, *([zero] * len(weights) for _ in range(3)))
    for batch in batches(model, rows, batch_size):
        stream = read(model, batch, [enters], n_positions=n_positions)[enters].cpu().double()
        sums.embedding = sums.embedding + _powers(stream @ unit.double()[:, None])
        found = given_to(model, batch, [own.of for own in weights], n_positions)
        for k, (own, (given, factor)) in enumerate(zip(weights, found, strict=True)):
            written = given * own.slopes[0]
            sums.parts[k] = sums.parts[k] + _powers(_by_head(model, written) if own.of.kind == "attention" else written)
            sums.biases[k] = sums.biases[k] + _powers(factor * own.constant)
            sums.given[k] = sums.given[k] + given.sum(0)
        advance(len(batch.rows))
    return sums


def _powers(values: Float64[Tensor, "row position part"]) -> Float64[Tensor, "power position part"]:
    return torch.stack([values.sum(0), values.square().sum(0)])


def _by_head(model: TransformerBridge, values: Float64[Tensor, "*any input"]) -> Float64[Tensor, "*any head"]:
    return values.view(*values.shape[:-1], int(model.cfg.n_heads), -1).sum(-1)


def _summary(
    sums: Sequence[Float64[Tensor, "power position part"]], counts: Sequence[int]
) -> dict[str, Float64[Tensor, "position part"]]:
    """Means of both sides, their difference, and its standard error; missing with a single prompt."""
    means = [one[0] / n for one, n in zip(sums, counts, strict=True)]
    variances = [
        (one[1] / n - mean.square()).clamp(min=0) / (n - 1) if n > 1 else torch.full_like(mean, torch.nan)
        for one, mean, n in zip(sums, means, counts, strict=True)
    ]
    positive, negative = means
    error = (variances[0] + variances[1]).sqrt()
    return {"positive": positive, "negative": negative, "difference": positive - negative, "se": error}


def _listed(
    neurons: list[tuple[int, dict[str, Float64[Tensor, "position neuron"]]]], positions: Positions, n: int, split: int
) -> Iterator[pd.DataFrame]:
    """The neurons that differ most between the sides or whose weights are most extreme, below a layer and from it on, and the sum
    of each layer's others.
    """
    values = [torch.stack([parts[name].abs().amax(0) for _, parts in neurons]) for name in ("difference", "weight_z")]
    chosen = torch.zeros_like(values[0], dtype=torch.bool)
    for some, into in ((x[layers], chosen[layers]) for layers in (slice(split), slice(split, None)) for x in values):
        into.view(-1)[some.flatten().topk(min(n, some.numel())).indices] = True
    for (layer, parts), some in zip(neurons, chosen, strict=True):
        rest = {name: parts[name][:, ~some].sum(1, keepdim=True) for name in (*SIDES, "difference")}
        yield _frame("other neurons", layer, positions, rest)
        if some.any():
            yield _frame(
                "neuron", layer, positions, {name: x[:, some] for name, x in parts.items()}, some.nonzero()[:, 0]
            )


def _frame(
    part: str,
    layer: int,
    positions: Positions,
    values: Mapping[str, Float64[Tensor, "position part"]],
    indices: Int[Tensor, " part"] | None = None,
) -> pd.DataFrame:
    """One row per position and part."""
    shape = values["difference"].shape
    if indices is None:
        indices = torch.arange(shape[1]) if part == "head" else torch.tensor([-1])
    where = {"part": part, "layer": layer, "index": indices.repeat(shape[0]).tolist()}
    where |= {"position": np.repeat(positions.indices, shape[1])}
    columns = {name: values[name].expand(shape).flatten().tolist() if name in values else nan for name in NUMBERS}
    return pd.DataFrame(where | columns)
