"""What COSMIC would choose under other settings, all from the passes of one selection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.activations import MeanActivations, class_means
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.directions.names import DIM
from cosmic_tl.engine import Outcome
from cosmic_tl.errors import CosmicError, NoCandidateError
from cosmic_tl.metrics.refusal_score import find_refusal_tokens, refusal_tokens
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.cosmic_scores import CosmicScorer, shared_by_both
from cosmic_tl.selection.layer_rules import evaluation_layers, layer_similarity, layers_by_rule
from cosmic_tl.selection.options import Cell, CosmicOptions, LayerRule, Target
from cosmic_tl.selection.plan import COSMIC_MEASURES, Plan, plan_cosmic
from cosmic_tl.selection.resampling import Resampled, Rules, winners
from cosmic_tl.selection.scores import KL, Keep, Products, Scores, undefined

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Shares of the layers at which activations are compared."""
VALIDATION = (0.25, 0.5, 0.75, 1.0)
"""Shares of the validation prompts: the first ones."""
TARGETS: tuple[Target, ...] = ("mean", "concatenated", "per-prompt", "centred")


@dataclass(frozen=True)
class Setting:
    """One way to score and to choose."""

    varied: str
    """Which setting is another than asked for: "asked for" if none, else its name."""
    value: str
    """What it is, for people."""
    layers: tuple[int, ...]
    target: Target
    n_val: tuple[int, int]
    """Positive and negative validation prompts: the first ones."""
    n_positions: int


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity(Result):
    """What each of several settings chooses, one varied at a time."""

    table: pd.DataFrame
    """One row per setting: varied ("asked for", "evaluation_layers", "evaluation_share", "target", "n_positions" or "n_val"),
    value, evaluation_layers, layer and position of what is chosen (missing where no candidate passes the filters), cosine with
    the direction that is chosen as asked for, and score (of targets with other zero points: compare choices and not scores)."""
    n_layers: int
    n_positions: int
    plan: Plan | None = None
    """Of its passes; they go up to the highest layer that any setting reads."""

    @property
    def agreeing(self) -> float:
        """Share of the other settings that choose the same candidate.

        Example:
            >>> row = {"varied": ["asked for", "target", "target"], "layer": [3, 3, 4], "position": -1}
            >>> Sensitivity(pd.DataFrame(row), 8, 5).agreeing
            0.5
        """
        first, others = self.table.iloc[0], self.table.iloc[1:]
        return float(((others.layer == first.layer) & (others.position == first.position)).fillna(False).mean())

    def _lines(self) -> list[str]:
        return [f"Sensitivity: {self.agreeing:.0%} of {len(self.table) - 1} other settings choose the same candidate"]


class _Scorer(CosmicScorer):
    """Scores under every setting, from passes that read all their layers."""

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[Sequence[Sequence[int]]],
        candidates: Candidates,
        settings: Sequence[Setting],
        options: CosmicOptions,
        batch_size: int | None,
        centre: Mapping[int, Tensor],
        known: tuple[Scores, Products],
    ) -> None:
        self.settings, self.shared = settings, centre
        self.read = sorted({layer for one in settings for layer in one.layers})
        plain = replace(options, target="mean")
        super().__init__(model, rows[0], rows[1], candidates, self.read, plain, batch_size, *known)

    def reduce(self, outcome: Outcome) -> Float64[Tensor, "prompt layer d_model"]:
        """`y[l, -1]` at every layer that is read."""
        return torch.stack([outcome.resid_post[layer][:, -1].cpu().double() for layer in self.read], dim=1)

    def value(self, measure: str, reached: Tensor) -> float:
        """The score that was asked for."""
        return float(self.product(measure, reached)[0])

    def product(self, measure: str, reached: Tensor) -> Tensor:
        """One score per setting; of the divergence its mean over as many prompts."""
        removed = measure == COSMIC_MEASURES[0]
        if measure == KL:
            return torch.stack([reached[: one.n_val[1]].mean() for one in self.settings])
        other = self.clean_negative if removed else self.clean_positive
        sizes = [one.n_val if removed else one.n_val[::-1] for one in self.settings]
        # Means over the first prompts, once for each number of them.
        own = {n: reached[:n].mean(0) for n, _ in set(sizes)}
        theirs = {n: other[:n].mean(0) for _, n in set(sizes)}
        return torch.stack(
            [self._score(one, own[n], theirs[m], reached[:n]) for one, (n, m) in zip(self.settings, sizes, strict=True)]
        )

    def _score(
        self,
        setting: Setting,
        own: Float64[Tensor, "layer d_model"],
        target: Float64[Tensor, "layer d_model"],
        reached: Float64[Tensor, "prompt layer d_model"],
    ) -> Float64[Tensor, ""]:
        at = [self.read.index(layer) for layer in setting.layers]
        if setting.target == "concatenated":
            return cosine_similarity(own[at].flatten(), target[at].flatten(), dim=0)
        if setting.target == "per-prompt":
            return cosine_similarity(reached[:, at].mean(1), target[at].mean(0)[None], dim=1).mean()
        one, other = own[at].mean(0), target[at].mean(0)
        if setting.target == "centred":
            shift = torch.stack([self.shared[layer] for layer in setting.layers]).mean(0)
            one, other = one - shift, other - shift
        return cosine_similarity(one, other, dim=0)


@checked
def measure_sensitivity(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | None = None,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    keep: Keep | None = None,
) -> Sensitivity:
    """What COSMIC chooses under other settings: one varied at a time, the filters as asked for.

    Varied are the rule that picks the layers at which activations are compared ("causal" where the model has refusal tokens), the
    share of the layers (5 to 50 %), the target, the number of positions (the
    last ones) and the number of validation prompts (the first quarter, half and three quarters). One set of passes gives the
    scores of all of them. It goes up to the highest layer that any of them reads, so it costs more than a selection:
    `Sensitivity.plan` says how much. Further passes are made for the KL of each candidate that some setting chooses.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set.
        options: What is asked for. Default the paper's.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.
        keep: Gives what is already known for prompts and options, and takes new scores as they come. Default: nothing is kept.

    Raises:
        CosmicError: If the options name one candidate, successive halving, filtered prompts or another generator than "dim"; or
            as `select_cosmic`.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=2, max_kl=50.0)
        >>> found = measure_sensitivity(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> found.table.varied.unique().tolist()
        ['asked for', 'evaluation_layers', 'evaluation_share', 'target', 'n_positions', 'n_val']
    """
    options = options or CosmicOptions()
    for name, value in (("cell", options.cell), ("successive_halving", options.successive_halving or None)):
        if value is not None:
            raise CosmicError(
                f"{name}: found {value}, and every setting is to choose among all candidates; leave it out"
            )
    if options.filter_prompts:
        raise CosmicError("filter_prompts: settings are compared on the prompts as they are; leave it out")
    if options.directions != (DIM,):
        raise CosmicError(f"directions: found {','.join(options.directions)}; settings are compared for {DIM} alone")
    n_layers = int(model.cfg.n_layers)
    positions = post_instruction_positions(model, chat, options.n_positions)
    means = class_means(
        model, prompts.sides("train", options.n_train), positions=positions, chat=chat, batch_size=batch_size
    )
    candidates, similarity = difference_in_means(*means), layer_similarity(*means)
    rows = [tokenize(model, side, chat) for side in prompts.sides("val", options.n_val)]
    rules = _by_rule(model, prompts, options, means, chat, batch_size)
    settings = _settings(options, similarity, rules, len(positions), (len(rows[0]), len(rows[1])))
    read = sorted({layer for one in settings for layer in one.layers})
    centre = dict(zip(read, shared_by_both(means, read), strict=True))
    known: tuple[Scores, Products] = ({}, {}) if keep is None else keep(prompts, options)
    scorer = _Scorer(model, rows, candidates, settings, options, batch_size, centre, known)
    cells = [(layer, position) for layer in range(n_layers) for position in positions.indices]
    full = replace(options, full_table=True)  # another setting's rule may look at any of them
    none = [cell for cell in cells if undefined(candidates, cell)]
    plan = plan_cosmic(model, rows[0], rows[1], len(positions), read, full, none)
    for measure in COSMIC_MEASURES[:2]:
        scorer.compute(measure, cells)
    choices = _choices(scorer, options, positions.indices, n_layers)
    scores = [
        float("nan")
        if cell is None
        else sum(float(_product(scorer, cell, measure)[r]) for measure in COSMIC_MEASURES[:2])
        for r, cell in enumerate(choices)
    ]
    units = [None if cell is None else candidates.direction(*cell).unit for cell in choices]
    rows_of = [
        {
            "varied": one.varied,
            "value": one.value,
            "evaluation_layers": one.layers,
            "layer": pd.NA if cell is None else cell[0],
            "position": pd.NA if cell is None else cell[1],
            "cosine": float("nan") if unit is None or units[0] is None else float(unit @ units[0]),
            "score": score,
        }
        for one, cell, unit, score in zip(settings, choices, units, scores, strict=True)
    ]
    table = pd.DataFrame(rows_of).astype({"layer": "Int64", "position": "Int64"})
    return Sensitivity(table, n_layers, len(positions), plan)


def _by_rule(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions,
    means: tuple[MeanActivations, MeanActivations],
    chat: ChatFormat | None,
    batch_size: int | None,
) -> dict[str, tuple[int, ...]]:
    """Evaluation layers as asked for, and by each rule."""
    train = prompts.sides("train", options.n_train)
    tokens = None if options.tokens is None else refusal_tokens(model, options.tokens)
    rules: list[LayerRule | tuple[int, ...] | None] = [options.evaluation_layers, "opposite-signs", "resampled"]
    try:
        tokens = tokens or find_refusal_tokens(model, train, chat=chat, batch_size=batch_size)
        rules.append("causal")
    except NoCandidateError:
        if options.evaluation_layers == "causal":
            raise
    found = {}
    for number, rule in enumerate(rules):
        some = replace(options, evaluation_layers=rule)
        layers, _ = layers_by_rule(model, some, means, train, tokens, chat=chat, batch_size=batch_size)
        found["" if number == 0 else str(rule)] = layers
    return found


def _settings(
    options: CosmicOptions,
    similarity: Tensor,
    rules: Mapping[str, tuple[int, ...]],
    n_positions: int,
    n_val: tuple[int, int],
) -> list[Setting]:
    def layers_of(share: float) -> tuple[int, ...]:
        return evaluation_layers(similarity, share, options.exclude_first_half)

    asked = Setting("asked for", "", rules[""], options.target, n_val, n_positions)
    found = [asked]
    found += [
        replace(asked, varied="evaluation_layers", value=rule, layers=layers) for rule, layers in rules.items() if rule
    ]
    found += [
        replace(asked, varied="evaluation_share", value=f"{share:.0%}", layers=layers_of(share)) for share in SHARES
    ]
    found += [replace(asked, varied="target", value=target, target=target) for target in TARGETS]
    found += [replace(asked, varied="n_positions", value=str(n), n_positions=n) for n in range(1, n_positions + 1)]
    for share in VALIDATION:
        some = max(1, round(share * n_val[0])), max(1, round(share * n_val[1]))
        found.append(replace(asked, varied="n_val", value=str(max(some)), n_val=some))
    return found


def _choices(scorer: _Scorer, options: CosmicOptions, positions: Sequence[int], n_layers: int) -> list[Cell | None]:
    """What each setting chooses with all filters; KL is computed until every one of these passes."""
    rules = Rules(options.max_layer_share, options.max_kl, options.last_position_rule)
    while True:
        grids = {m: np.full((len(scorer.settings), len(positions), n_layers), np.nan) for m in COSMIC_MEASURES}
        for layer, position, measure in scorer.products or {}:
            values = _product(scorer, (layer, position), measure)
            grids[measure][:, positions.index(position), layer] = values.numpy()
        chosen: list[Cell | None] = []
        for r, setting in enumerate(scorer.settings):
            last = slice(len(positions) - setting.n_positions, None)
            some = {measure: grid[r : r + 1, last] for measure, grid in grids.items()}
            places = tuple(positions[last])
            score = some["s_comply"] + some["s_refuse"]
            found, _, _ = winners(Resampled(some, score, places), rules, np.isnan(score[0]))
            index = int(found[0])
            chosen.append(None if index == -1 else (index % n_layers, places[index // n_layers]))
        unknown = {cell for cell in chosen if cell is not None and (*cell, KL) not in scorer.scores}
        if not unknown:
            return chosen
        scorer.compute(KL, sorted(unknown))


def _product(scorer: _Scorer, cell: Cell, measure: str) -> Tensor:
    assert scorer.products is not None
    return scorer.products[(*cell, measure)].double()
