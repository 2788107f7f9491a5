"""Attribution patching: what exchanging each head and neuron would do, estimated from one gradient, and checked exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from scipy.stats import spearmanr
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, Prompts, labels_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.engine import Reading
from cosmic_tl.errors import check_count
from cosmic_tl.experiments.causal_measures import TOWARDS, Measures
from cosmic_tl.experiments.causal_prompts import prompts_of
from cosmic_tl.experiments.conditions import REFUSAL, Terms, terms_of
from cosmic_tl.metrics.refusal_score import RefusalTokens, log_odds
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.components import OutputProjection, check_own_parts, output_projection
from cosmic_tl.model.forward import TokenBatch, last_logits, read
from cosmic_tl.model.hooks import Hook, Site, hook_name
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.patching import Change, Patch, patched

Part = Literal["attention", "mlp"]
KINDS: dict[str, Part] = {"head": "attention", "neuron": "mlp"}
"""Kind of place to the part of the block that it belongs to."""
OUTPUTS: dict[Part, Site] = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}
TOP, RANDOM = 20, 50
"""Places of each kind that are checked exactly."""
GRADIENT_BATCH = 8
"""Prompts per pass with a gradient, whose activations are all kept."""
Key = tuple[int, Part]
"""Layer, and part of the block."""
Inputs = dict[Key, Tensor]
Where = tuple[int, int, int]
"""Layer, position, and head or neuron."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class AttributionMap(Result):
    """Estimated effects of all heads and neurons, some of them beside the exact ones."""

    table: pd.DataFrame
    """One row per checked place: side, kind ("head" or "neuron"), chosen ("top", by the size of the estimate, or "random"),
    layer, position, index (of the head or neuron), estimate and exact (change of the refusal score towards the other class, mean
    over prompts)."""
    heads: Float[Tensor, "side layer position head"]
    """Estimates of all heads, first of positive prompts."""
    neurons: Float[Tensor, "side layer position neuron"]
    """Estimates of all neurons."""
    positions: Positions
    n_prompts: tuple[int, int]
    """Positive and negative prompts."""
    terms: Terms = field(default=REFUSAL)
    """What people are shown."""

    @property
    def correlations(self) -> pd.DataFrame:
        """How far estimates can be trusted: one row per side, kind and choice, with n, pearson and spearman (NaN where all are
        alike).

        Example:
            >>> rows = {"side": "positive", "kind": "head", "chosen": "top", "estimate": [1.0, 2.0], "exact": [0.5, 1.0]}
            >>> empty = torch.zeros(2, 1, 1, 1)
            >>> AttributionMap(pd.DataFrame(rows), empty, empty, Positions(("a",)), (1, 1)).correlations.pearson.tolist()
            [1.0]
        """
        rows = []
        for key, some in self.table.groupby(["side", "kind", "chosen"], sort=False):
            one, other = some.estimate.to_numpy(float), some.exact.to_numpy(float)
            alike = np.ptp(one) == 0 or np.ptp(other) == 0
            pearson = nan if alike else float(np.corrcoef(one, other)[0, 1])
            spearman = nan if alike else float(spearmanr(one, other).statistic)
            rows.append((*key, len(some), round(pearson, 12), round(spearman, 12)))
        return pd.DataFrame(rows, columns=["side", "kind", "chosen", "n", "pearson", "spearman"])

    def _lines(self) -> list[str]:
        n, m = self.n_prompts
        found = self.correlations
        said = "; ".join(
            f"{kind}s " + ", ".join(f"{row.pearson:.2f} ({row.side}, {row.chosen})" for row in some.itertuples())
            for kind, some in found.groupby("kind", sort=False)
        )
        return [
            f"AttributionMap({self.heads[0].numel()} heads and {self.neurons[0].numel()} neurons at tokens, {n} + {m} prompts)",
            f"  correlation of estimated with exact effects: {said}",
        ]

    def _shown(self) -> pd.DataFrame:
        top = self.table[self.table.chosen == "top"].drop(columns="chosen")
        return top.groupby(["side", "kind"], sort=False).head(3).reset_index(drop=True)


@checked
def attribution_map(
    model: TransformerBridge,
    prompts: Prompts,
    direction: Direction | None,
    tokens: RefusalTokens,
    *,
    n_top: int = TOP,
    n_random: int = RANDOM,
    n_train: int | None = None,
    n_val: int | None = None,
    n_positions: int | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> AttributionMap:
    """Estimate what exchanging each single head and neuron would do, all at once, and check the estimates.

    The effect on the refusal score of giving one place the other class's mean `x'` is, to first order, `(x' − x)·∂m/∂x`
    (attribution patching). One pass with a gradient gives it for every place. It is exact for small changes alone, so that the
    places with the largest estimates, and as many drawn at random, are patched as well; `correlations` compares the two.

    Other classes' means come from training prompts, effects from validation prompts; of a pair of lists both from these.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, or a pair of lists.
        direction: Along which is exchanged, as in `causal_map`; None exchanges what the place writes altogether.
        tokens: Whose log-odds are the refusal score.
        n_top: Places of each kind and side with the largest estimates that are patched. Default 20.
        n_random: Random places that are. Default 50.
        n_train: Training prompts per side, of a contrast set. Default all.
        n_val: Validation prompts per side. Default all.
        n_positions: How many of the last positions. Default every post-instruction token.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times patches) per pass. Default: by available memory; with a gradient at most 8 prompts.
        seed: Of the random places. Default 0.

    Raises:
        CosmicError: If a number is out of range, the direction does not fit, or the model's heads or neurons do not write to
            the stream themselves.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> from cosmic_tl.metrics import refusal_tokens
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> tokens = refusal_tokens(model, ["I'm sorry"])
        >>> options = {"n_train": 4, "n_val": 2, "n_positions": 1, "n_top": 2, "n_random": 2}
        >>> found = attribution_map(model, prompts, None, tokens, **options)
        >>> found.heads.shape, len(found.table)  # 2 sides, 2 kinds, 2 choices, 2 places
        (torch.Size([2, 8, 1, 4]), 16)
    """
    check_count("n_top", n_top)
    check_count("n_random", n_random)
    if direction is not None:
        direction.check(model)
    positions = post_instruction_positions(model, chat, n_positions)
    train, val = prompts_of(prompts, n_train, n_val)
    projections = _projections(model)
    unit = None if direction is None else direction.unit
    chance = np.random.default_rng(seed)
    estimates: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    rows = []
    for number, side in enumerate(SIDES):
        here = tokenize(model, val[number], chat)
        means = _means(model, tokenize(model, train[1 - number], chat), projections, len(positions), batch_size)
        found = _estimate(model, here, TOWARDS[number], means, projections, unit, tokens, len(positions), batch_size)
        every = []
        for kind, values in found.items():
            estimates[kind].append(values)
            chosen = _choose(values, n_top, n_random, chance)
            every += [(kind, name, where) for name, some in chosen.items() for where in some]
        patches = [_patch(where, KINDS[kind], means, projections, unit) for kind, _, where in every]
        measures = Measures([number] * len(here), tokens, ())
        exact: dict[int, float] = {}
        with track(len(patches), "places") as advance:
            for i, effect in patched(
                model, here, patches, Reading(logits=True), measures, on_clean=measures.keep, batch_size=batch_size
            ):
                exact[i] = float(effect[:, 0].mean())
                advance(1)
        rows += [
            (side, kind, name, *where, float(found[kind][where]), exact[i])
            for i, (kind, name, where) in enumerate(every)
        ]
    columns = ["side", "kind", "chosen", "layer", "position", "index", "estimate", "exact"]
    heads, neurons = (torch.stack(estimates[kind]) for kind in KINDS)
    counts = (len(val[0]), len(val[1]))
    terms = terms_of(None, labels_of(prompts))
    return AttributionMap(pd.DataFrame(rows, columns=columns), heads, neurons, positions, counts, terms)


def _projections(model: TransformerBridge) -> dict[Key, OutputProjection]:
    found = {}
    for layer in range(int(model.cfg.n_layers)):
        for part in OUTPUTS:
            found[layer, part] = output_projection(model, layer, part)
            check_own_parts(model, layer, part)
    return found


def _keeping(points: dict[Key, str], into: Inputs) -> list[Hook]:
    """Hooks that keep what passes, and pass that on: a hook point may show a view of what it has."""

    def keep(key: Key) -> Callable[..., Tensor]:
        def hook(x: Tensor, hook: Any) -> Tensor:
            into[key] = x
            return x

        return hook

    return [(name, keep(key)) for key, name in points.items()]


def _means(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    projections: dict[Key, OutputProjection],
    n_positions: int,
    batch_size: int | None,
) -> Inputs:
    """Mean over prompts of what enters each projection: `[position, d_in]`."""
    total: Inputs = {}
    seen: Inputs = {}
    hooks = _keeping({key: one.hook_in for key, one in projections.items()}, seen)
    for batch in batches(model, rows, batch_size):
        read(model, batch, [(int(model.cfg.n_layers) - 1, "hook_resid_post")], n_positions=n_positions, hooks=hooks)
        for key, x in seen.items():
            total[key] = total.get(key, 0) + _last(x, n_positions).sum(0)
    return {key: x / len(rows) for key, x in total.items()}


def _last(x: Tensor, n_positions: int) -> Float64[Tensor, "prompt position d"]:
    return x[:, -n_positions:].flatten(2).detach().cpu().double()


def _estimate(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    towards: int,
    means: Inputs,
    projections: dict[Key, OutputProjection],
    unit: Tensor | None,
    tokens: RefusalTokens,
    n_positions: int,
    batch_size: int | None,
) -> dict[str, Float[Tensor, "layer position part"]]:
    """The first-order effect of each place, mean over prompts."""
    along = {} if unit is None else {key: one.along(unit[None])[0][0] for key, one in projections.items()}
    total: Inputs = {}
    with track(len(rows), "gradients") as advance:
        for batch in batches(model, rows, min(batch_size or GRADIENT_BATCH, GRADIENT_BATCH)):
            inputs, slopes = _gradients(model, batch, projections, tokens, at_inputs=unit is None)
            for key, x in inputs.items():
                slope = _last(slopes[key], n_positions)
                if unit is not None:
                    slope = (slope @ unit.double())[..., None] * along[key]
                effect = (means[key] - _last(x, n_positions)) * slope
                parts = effect.reshape(*effect.shape[:2], projections[key].n_parts, -1).sum(-1)
                total[key] = total.get(key, 0) + towards * parts.sum(0) / len(rows)
            advance(len(batch.rows))
    layers = range(int(model.cfg.n_layers))
    return {kind: torch.stack([total[layer, part].float() for layer in layers]) for kind, part in KINDS.items()}


def _gradients(
    model: TransformerBridge,
    batch: TokenBatch,
    projections: dict[Key, OutputProjection],
    tokens: RefusalTokens,
    *,
    at_inputs: bool,
) -> tuple[Inputs, Inputs]:
    """What enters each projection, and the slope of every prompt's own score there, or at what attention and MLP add."""
    inputs: Inputs = {}
    outputs: Inputs = {}
    hooks: list[Hook] = [(hook_name(model, 0, "hook_resid_pre"), lambda x, hook: x.detach().requires_grad_())]
    hooks += _keeping({key: one.hook_in for key, one in projections.items()}, inputs)
    hooks += _keeping({key: hook_name(model, key[0], OUTPUTS[key[1]]) for key in projections}, outputs)
    with torch.inference_mode(False), torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        score = log_odds(last_logits(model, batch, 1)[:, -1].float(), tokens.ids).sum()
        wanted = inputs if at_inputs else outputs
        slopes = torch.autograd.grad(score, list(wanted.values()))
    return inputs, dict(zip(wanted, slopes, strict=True))


def _choose(
    values: Float[Tensor, "layer position part"], n_top: int, n_random: int, chance: np.random.Generator
) -> dict[str, list[Where]]:
    """The places with the largest estimates, and random ones among all that can have an effect."""
    reached = torch.ones_like(values, dtype=torch.bool)
    reached[-1, :-1] = False  # in the last block, only the last token is read
    places = reached.nonzero().numpy()
    order = values[reached].abs().argsort(descending=True)[:n_top].numpy()
    drawn = chance.choice(len(places), min(n_random, len(places)), replace=False)
    n_positions = values.shape[1]
    return {
        name: [(int(layer), int(position) - n_positions, int(index)) for layer, position, index in places[some]]
        for name, some in (("top", order), ("random", drawn))
    }


def _patch(
    where: Where, part: Part, means: Inputs, projections: dict[Key, OutputProjection], unit: Tensor | None
) -> Patch:
    layer, position, index = where
    projection = projections[layer, part]
    weight = next(projection.module.parameters())
    with torch.inference_mode():
        entering = means[layer, part][position].to(weight)[None]
        target = projection.of(entering, torch.tensor([index]))[0].cpu().float()
    return Patch(position, (Change(layer, part, target, unit, index=index),))
