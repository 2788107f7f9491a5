"""Causal maps: which layers and tokens make the model do it, by exchanging what they write with the other class's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, ContrastSet, Prompts, labels_of, sides_of
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.experiments.conditions import REFUSAL, Terms, terms_of
from cosmic_tl.experiments.options import CausalOptions, Span, Treatment
from cosmic_tl.interventions.options import WrittenPart
from cosmic_tl.metrics.divergence import divergence_from
from cosmic_tl.metrics.refusal_score import RefusalTokens, log_odds
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import read
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import Positions, post_instruction_positions
from cosmic_tl.patching import SITES, Change, Patch, patched, unpatched
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Products

DIRECTION, PLACEBO, WHOLE = "direction", "placebo", "whole"
RESAMPLES = 1000
"""Of the prompts, for the intervals."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class CausalMap(Result):
    """What exchanging one place's contribution does, for every layer and position."""

    table: pd.DataFrame
    """One row per side, measure, treatment and place: side ("positive": the behaviour is released; "negative": it is
    restored), measure ("score": change of the refusal score towards the other class; "cosine": change of the cosine to the other
    class's mean at the evaluation layers; "kl": divergence from the clean model, nats), treatment ("direction", "placebo" or
    "whole"), layer, position, effect (mean over prompts, and over placebos), and low and high (95 % interval over prompts)."""
    shares: pd.DataFrame
    """The *mediated share*, what the direction alone does over what the whole activation does. One row per side, measure and
    place: side, measure, layer, position, share, low and high; missing where the whole effect's interval contains 0."""
    part: WrittenPart
    treatment: Treatment
    span: Span
    positions: Positions
    n_prompts: tuple[int, int]
    """Positive and negative prompts."""
    terms: Terms = field(default=REFUSAL)
    """What people are shown."""

    @property
    def what(self) -> str:
        """What was exchanged, in words.

        Example:
            >>> table = pd.DataFrame({"measure": ["kl"]})
            >>> CausalMap(table, table, "mlp", "interchange", "at", Positions(("a",)), (1, 1)).what
            'what the mlp adds'
        """
        return "the stream that enters a block" if self.part == "stream" else f"what the {self.part} adds"

    @property
    def measures(self) -> list[str]:
        """The measures, the first one being that of the figure.

        Example:
            >>> table = pd.DataFrame({"measure": ["score", "score", "kl"]})
            >>> CausalMap(table, table, "block", "interchange", "at", Positions(("a",)), (1, 1)).measures
            ['score', 'kl']
        """
        return list(self.table.measure.unique())

    def strongest(self, side: str = "positive", measure: str | None = None, n: int = 5) -> pd.DataFrame:
        """The places with the largest effects of the direction, beside their placebo and their share.

        Args:
            side: "positive" (default) or "negative".
            measure: Default the first one.
            n: Number of rows. Default 5.

        Raises:
            CosmicError: If there is no such side or measure.

        Example:
            >>> place = {"side": "positive", "measure": "kl", "layer": 3, "position": -1}
            >>> rows = [{**place, "treatment": name, "effect": 0.5, "low": 0.0, "high": 1.0} for name in (DIRECTION, PLACEBO)]
            >>> shares = pd.DataFrame([{**place, "share": 0.7, "low": 0.6, "high": 0.8}])
            >>> found = CausalMap(pd.DataFrame(rows), shares, "block", "interchange", "at", Positions(("a",)), (1, 1))
            >>> found.strongest().columns.tolist()
            ['layer', 'position', 'effect', 'low', 'high', 'placebo', 'share']
        """
        one_of("side", side, SIDES)
        measure = self.measures[0] if measure is None else measure
        if measure not in self.measures:
            raise CosmicError(f"measure: found {measure!r}; it has {', '.join(self.measures)}")
        place = ["layer", "position"]

        def of(table: pd.DataFrame) -> pd.DataFrame:
            return table[(table.side == side) & (table.measure == measure)].set_index(place)

        own, shares = of(self.table), of(self.shares)
        found = own[own.treatment == DIRECTION][["effect", "low", "high"]]
        found = found.assign(placebo=own[own.treatment == PLACEBO].effect, share=shares.share)
        return found.sort_values("effect", ascending=False).head(n).reset_index()

    def _lines(self) -> list[str]:
        n, m = self.n_prompts
        return [
            f"CausalMap({self.treatment} of the {self.part}, {self.span.replace('-', ' ')} each layer, {n} + {m} prompts)"
        ]

    def _shown(self) -> pd.DataFrame:
        return pd.concat(
            [self.strongest(side).assign(side=side) for side in self.table.side.unique()], ignore_index=True
        )


@checked
def causal_map(
    model: TransformerBridge,
    prompts: Prompts,
    selection: Selection | Direction,
    *,
    tokens: RefusalTokens | None = None,
    evaluation_layers: Sequence[int] | None = None,
    treatment: Treatment = "interchange",
    part: WrittenPart = "block",
    span: Span = "at",
    n_train: int | None = None,
    n_val: int | None = None,
    n_positions: int | None = None,
    n_placebos: int = 1,
    whole: bool = True,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    effects: Products | None = None,
) -> CausalMap:
    """Where a concept acts: exchange what each layer writes at each token, along the direction, and see what the model then does.

    At one token, what a part of a block writes is given the other class's mean component along `r̂` ("interchange"), or none
    ("removal"). Positive prompts are moved towards the negative class, which releases the behaviour; negative prompts towards the
    positive one, which restores it. The two need not have the same places. Beside the direction stand two references: the *whole*
    activation, replaced by the other class's mean there, and *placebos*, the same displacement of every token in a random
    direction. All are exact: passes begin at the changed token, on clean keys and values (`cosmic_tl.patching`).

    Other classes' means come from training prompts, effects from validation prompts; of a pair of lists both from these.
    Intervals are over the prompts.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, or a pair of lists, which then also give the means.
        selection: What was chosen, with its evaluation layers and refusal tokens; or a bare direction.
        tokens: Whose log-odds are a measure. Default those of the selection, if it has any.
        evaluation_layers: Where cosines are a measure. Default those of the selection, if it has any; empty for none.
        treatment: "interchange" (default) or "removal", which does not touch negative prompts.
        part: What is exchanged: what the whole "block" adds (default), what its "attention" or its "mlp" adds, or the "stream"
            that enters it, with all that was written before ("at" one layer alone).
        span: One layer "at" a time (default), all layers "up-to" each, or all "from" it on. At each of them the placebo moves
            what is written as far as its own component along `r̂` differs.
        n_train: Training prompts per side, of a contrast set. Default all.
        n_val: Validation prompts per side. Default all.
        n_positions: How many of the last positions. Default every post-instruction token.
        n_placebos: Random directions. Default 1.
        whole: Whether to replace whole activations too. Default True.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times patches) per pass. Default: by available memory.
        seed: Of the placebos and the resampling. Default 0.
        effects: What is already known, by layer, position and a name of side and treatment; new ones are put in as they come, so
            that a mapping that writes them down makes the map resumable. Of the same arguments only.

    Raises:
        CosmicError: If there is nothing to measure, a number is out of range, or the direction does not fit the model.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> direction = Direction(torch.ones(128), None, layer=3, position=-1)
        >>> found = causal_map(model, prompts, direction, evaluation_layers=(6,), n_train=4, n_val=2, n_positions=1)
        >>> found.measures, len(found.table)  # 2 sides, 2 measures, 3 treatments, 8 layers
        (['cosine', 'kl'], 96)
    """
    CausalOptions(
        treatment=treatment,
        part=part,
        span=span,
        n_positions=n_positions,
        n_placebos=n_placebos,
        whole=whole,
        seed=seed,
    )
    given = selection if isinstance(selection, Selection) else None
    direction = selection.direction if isinstance(selection, Selection) else selection
    direction.check(model)
    if given is not None:
        tokens = given.tokens if tokens is None else tokens
        evaluation_layers = given.evaluation_layers if evaluation_layers is None else evaluation_layers
    layers = tuple(sorted(set(evaluation_layers or ())))
    if layers and not 0 <= layers[0] <= layers[-1] < int(model.cfg.n_layers):
        raise CosmicError(f"evaluation_layers: found {layers}; give some of 0 to {int(model.cfg.n_layers) - 1}")
    if tokens is None and not layers:
        raise CosmicError(
            "tokens: a bare direction comes without anything to measure; give tokens, evaluation_layers or a selection"
        )
    positions = post_instruction_positions(model, chat, n_positions)
    train, val = prompts_of(prompts, n_train, n_val)
    rows = [tokenize(model, side, chat) for side in val]
    means = [part_means(model, tokenize(model, side, chat), part, len(positions), batch_size) for side in train]
    random = [random_direction(direction, seed + k).unit for k in range(n_placebos)]
    clean = [clean_passes(model, side, layers, batch_size) for side in rows]
    sides = SIDES if treatment == "interchange" else SIDES[:1]
    names = [name for name, wanted in (("score", tokens is not None), ("cosine", layers), ("kl", True)) if wanted]
    tables, shares = [], []
    effects = {} if effects is None else effects
    n_patches = len(sides) * int(model.cfg.n_layers) * len(positions) * (1 + n_placebos + whole)
    with track(n_patches, "places") as advance:
        for number, side in enumerate(sides):
            measured = measuring(clean, number, tokens, layers)
            patches = list(_patches(means[1 - number], direction.unit, random, part, treatment, span, positions, whole))
            keys = [(layer, position, f"{side}, {name}") for (name, layer, position), _ in patches]
            known = {i for i, key in enumerate(keys) if key in effects}
            advance(len(known))
            for i, effect in patched(
                model,
                rows[number],
                [patch for _, patch in patches],
                Reading(layers, logits=True),
                measured,
                batch_size=batch_size,
                known=known,
            ):
                if i not in known:
                    effects[keys[i]] = effect.float()
                    advance(1)
            found: dict[tuple[str, int, int], list[Tensor]] = {}
            for (name, layer, position), _ in patches:
                one_place = found.setdefault((name.partition(" ")[0], layer, position), [])
                one_place.append(effects[layer, position, f"{side}, {name}"].double())
            one, other = _summarized({key: torch.stack(some).mean(0) for key, some in found.items()}, names, seed)
            tables.append(one.assign(side=side))
            shares.append(other.assign(side=side))
    order = ["side", "measure", "treatment", "layer", "position", "effect", "low", "high"]
    table, share = pd.concat(tables, ignore_index=True)[order], pd.concat(shares, ignore_index=True)
    share = share[["side", "measure", "layer", "position", "share", "low", "high"]]
    counts = (len(rows[0]), len(rows[1]))
    return CausalMap(table, share, part, treatment, span, positions, counts, terms_of(None, labels_of(prompts)))


def prompts_of(
    prompts: Prompts, n_train: int | None, n_val: int | None
) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    """Both sides' training and validation prompts; of a pair of lists both are the same.

    Example:
        >>> prompts_of((["a", "b"], ["c"]), None, 1)
        ((['a', 'b'], ['c']), (['a'], ['c']))
    """
    train = prompts.sides("train", n_train) if isinstance(prompts, ContrastSet) else sides_of(prompts, "train")
    return train, sides_of(prompts, "val", n_val)


def part_means(
    model: TransformerBridge, rows: Sequence[Sequence[int]], part: WrittenPart, n_positions: int, batch_size: int | None
) -> Float64[Tensor, "layer position d_model"]:
    """Mean of what a part of every block writes, at the last positions."""
    layers = range(int(model.cfg.n_layers))
    sites: list[tuple[int, Site]] = [(layer, SITES[part]) for layer in layers]
    entering: list[tuple[int, Site]] = [(layer, "hook_resid_pre") for layer in layers] if part == "block" else []
    total: Tensor | float = 0.0
    for batch in batches(model, rows, batch_size):
        found = read(model, batch, [*entering, *sites], n_positions=n_positions)
        values = torch.stack([found[site].cpu().double() for site in sites])
        if entering:
            values = values - torch.stack([found[site].cpu().double() for site in entering])
        total = total + values.sum(1)
    mean: Tensor = total / len(rows)  # type: ignore[assignment]
    return mean


def clean_passes(
    model: TransformerBridge, rows: Sequence[Sequence[int]], layers: tuple[int, ...], batch_size: int | None
) -> tuple[Tensor | None, Tensor]:
    """The mean over evaluation layers of `y[l, -1]`, and the next token's logits, of every prompt."""
    logits: dict[int, Tensor] = {}

    def keep(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        logits.update(zip(outcome.rows, outcome.logits.cpu(), strict=True))
        return _over_layers(outcome, layers) if layers else outcome.logits.cpu()[:, :1]

    stream = unpatched(model, rows, Reading(layers, logits=True), keep, batch_size=batch_size)
    return (stream if layers else None), torch.stack([logits[row] for row in range(len(logits))])


def _over_layers(outcome: Outcome, layers: tuple[int, ...]) -> Float64[Tensor, "prompt d_model"]:
    return torch.stack([outcome.resid_post[layer][:, -1].cpu().double() for layer in layers]).mean(0)


def measuring(
    clean: Sequence[tuple[Tensor | None, Tensor]], number: int, tokens: RefusalTokens | None, layers: tuple[int, ...]
) -> Callable[[Outcome], Float64[Tensor, "prompt measure"]]:
    """How far a side's prompts come towards the other class, prompt by prompt."""
    stream, logits = clean[number]
    there = clean[1 - number][0]
    divergence = divergence_from(logits)
    before = None if tokens is None else log_odds(logits, tokens.ids)
    towards = -1 if number == 0 else 1  # positive prompts are to lose their refusal score

    def measured(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        here, now = list(outcome.rows), outcome.logits.cpu()
        columns = []
        if tokens is not None and before is not None:
            columns.append(towards * (log_odds(now, tokens.ids) - before[here]))
        if stream is not None and there is not None:
            target = there.mean(0)[None]
            moved = cosine_similarity(_over_layers(outcome, layers), target, dim=1)
            columns.append(moved - cosine_similarity(stream[here], target, dim=1))
        columns.append(divergence(here, now))
        return torch.stack(columns, dim=1)

    return measured


def _patches(
    other: Float64[Tensor, "layer position d_model"],
    unit: Tensor,
    random: Sequence[Tensor],
    part: WrittenPart,
    treatment: Treatment,
    span: Span,
    positions: Positions,
    whole: bool,
) -> Iterator[tuple[tuple[str, int, int], Patch]]:
    """Treatment, layer and position of each patch, and the patch."""
    n_layers = len(other)
    for layer in range(n_layers):
        reach = {"at": range(layer, layer + 1), "up-to": range(layer + 1), "from": range(layer, n_layers)}[span]
        for position in positions.indices:
            mean = {at: other[at, position] for at in reach}
            along = mean if treatment == "interchange" else {at: torch.zeros_like(mean[at]) for at in reach}

            def patch(
                changes: Mapping[int, Tensor],
                read: Tensor | None = None,
                write: Tensor | None = None,
                position: int = position,
            ) -> Patch:
                return Patch(position, tuple(Change(at, part, to, read, write) for at, to in changes.items()))

            yield (DIRECTION, layer, position), patch(along, unit)
            for number, one in enumerate(random):
                yield (f"{PLACEBO} {number}", layer, position), patch(along, unit, one)
            if whole:
                yield (WHOLE, layer, position), patch(mean)


def resamples(n: int, seed: int) -> np.ndarray:
    """Weights of `n` prompts in each of the resamples, `[resample, prompt]`.

    Example:
        >>> resamples(4, seed=0).shape
        (1000, 4)
    """
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


def interval(drawn: np.ndarray) -> np.ndarray:
    """Both ends of the 95 % interval, over the first axis.

    Example:
        >>> interval(np.arange(101)).tolist()
        [2.5, 97.5]
    """
    ends: np.ndarray = np.quantile(drawn, (0.025, 0.975), axis=0)
    return ends


def _summarized(
    effects: Mapping[tuple[str, int, int], Float64[Tensor, "prompt measure"]], names: Sequence[str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects and shares with 95 % intervals, from the same resamples of the prompts."""
    weights = resamples(len(next(iter(effects.values()))), seed)
    rows, shares = [], []
    drawn = {key: weights @ values.numpy() for key, values in effects.items()}
    for (treatment, layer, position), values in effects.items():
        mean, around = values.mean(0), interval(drawn[treatment, layer, position])
        for m, name in enumerate(names):
            place = {"measure": name, "layer": layer, "position": position}
            rows.append(
                {**place, "treatment": treatment}
                | {"effect": float(mean[m]), "low": float(around[0, m]), "high": float(around[1, m])}
            )
            if treatment == WHOLE:
                share = _share(
                    float(effects[DIRECTION, layer, position][:, m].mean()),
                    float(mean[m]),
                    drawn[DIRECTION, layer, position][:, m],
                    drawn[WHOLE, layer, position][:, m],
                )
                shares.append({**place, **dict(zip(("share", "low", "high"), share, strict=True))})
    empty = pd.DataFrame(columns=["measure", "layer", "position", "share", "low", "high"])
    return pd.DataFrame(rows), pd.DataFrame(shares) if shares else empty


def _share(along: float, whole: float, along_drawn: np.ndarray, whole_drawn: np.ndarray) -> tuple[float, float, float]:
    low, high = interval(whole_drawn)
    if low <= 0 <= high or low == high:  # of one prompt nothing can be said
        return nan, nan, nan
    around = interval(along_drawn / whole_drawn)
    return along / whole, float(around[0]), float(around[1])
