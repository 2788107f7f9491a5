"""COSMIC: choose a direction by cosine similarity, without looking at outputs (Siu et al. 2025, section 3)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isnan

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl.activations import MeanActivations
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.metrics.refusal_score import telling_tokens
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.among import best_of
from cosmic_tl.selection.cosmic_scores import CosmicScorer, shared_by_both
from cosmic_tl.selection.cosmic_table import cosmic_table
from cosmic_tl.selection.filters import check_places, choose, settle
from cosmic_tl.selection.forecast import forecast_of
from cosmic_tl.selection.layer_rules import layer_similarity, layers_by_rule
from cosmic_tl.selection.notes import (
    before_any_edit,
    notes_about,
    repeatability_notes,
    stability_notes,
    warnings_about,
    why_not_resampled,
)
from cosmic_tl.selection.options import PLACEBOS, Cell, CosmicOptions
from cosmic_tl.selection.plan import COSMIC_MEASURES, Plan, plan_cosmic
from cosmic_tl.selection.prepared import Prepared, prepare
from cosmic_tl.selection.redrawn import redrawn_stability
from cosmic_tl.selection.resampling import Rules
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Products, ScoreKey, Scores, undefined

HALVING_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the validation prompts on which successive halving looks at what is left."""
CLOSE, ROUNDING = 0.01, 0.005
"""Scores that lie this close are noted: always, and where half precision may be off by as much."""
LABELS = {"s_comply": "S<sub>comply</sub>", "s_refuse": "S<sub>refuse</sub>", "score": "sum", "kl": "KL (nats)"}
CAPTION = (
    "Every candidate direction. S_comply: how close positive prompts come to the negative class when the direction is "
    "removed. S_refuse: how close negative prompts come to the positive class when it is induced. The kept candidate with the "
    "highest sum is chosen. KL: how much removal changes the next-token distribution on negative prompts."
)
FINALISTS = 4
"""Candidates that halving leaves, at least."""


def _halve(cells: Sequence[Cell], scorer_on: Callable[[float, Scores], CosmicScorer], rough: Scores) -> list[Cell]:
    """Drop the worse half of the candidates on more and more prompts; `rough` gets each one's last scores."""

    def order(cell: Cell) -> float:
        score = rough[(*cell, "s_comply")] + rough[(*cell, "s_refuse")]
        return inf if isnan(score) else -score

    left = list(cells)
    for share in HALVING_SHARES:
        if len(left) > FINALISTS:
            scorer = scorer_on(share, {})
            for measure in ("s_comply", "s_refuse"):
                scorer.compute(measure, left)
            rough.update(scorer.scores)
            left = sorted(left, key=order)[: max(FINALISTS, len(left) // 2)]
    return left


def _settle(
    compute: Callable[[str, Iterable[Cell]], None],
    plan: Plan,
    scores: Mapping[ScoreKey, float],
    table_of: Callable[[], tuple[pd.DataFrame, pd.DataFrame]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute what the choice still depends on: KL until one candidate passes, then what decides the rule."""

    def decide_rule() -> None:
        # Late induction first: it is cheap, and one median at the candidate's layer or above is enough to keep it.
        open_ = [m for m in ("s_refuse", "s_comply") if any((*cell, m) not in scores for cell in plan.of(m, "lazy"))]
        compute(open_[0], plan.of(open_[0], "lazy"))

    return settle(table_of, compute, ("kl",), decide_rule)


@checked
def plan_selection(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | None = None,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    probe: bool = False,
) -> Plan:
    """The passes that `select_cosmic` would make, without making them, and the memory and time that they take.

    Which evaluation layers the ranking will choose is not known before; unless the options name them, the last layer is
    assumed, which is the most expensive.

    Args:
        model: A `TransformerBridge`; also one on paper (`load_on_paper`).
        prompts: The concept's contrast set.
        options: Thresholds and numbers. Default the paper's.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.
        probe: Whether to time some of the model's own passes, about ten seconds, and predict seconds from them
            (`Plan.forecast`). Default False.

    Raises:
        CosmicError: As `select_cosmic`; or if a probe is asked for of a model without weights, or with offloaded ones.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> plan = plan_selection(load_model("demo", device="cpu"), load_prompts("demo"))
        >>> plan.macs < plan.released_macs / 4
        True
    """
    options = options or CosmicOptions()
    positions = post_instruction_positions(model, chat, options.n_positions)
    check_places(int(model.cfg.n_layers), len(positions), options)
    rows = [tokenize(model, prompts.side(side, "val", options.n_val), chat) for side in ("positive", "negative")]
    layers = options.named_layers or (int(model.cfg.n_layers) - 1,)
    plan = plan_cosmic(model, rows[0], rows[1], len(positions), layers, options)
    train = None
    if prompts.positive.get("train") and prompts.negative.get("train"):  # else means are given
        some = prompts.sides("train", options.n_train)
        train = tokenize(model, some[0], chat), tokenize(model, some[1], chat)
    found = forecast_of(
        model,
        (rows[0], rows[1]),
        train,
        plan.cells,
        len(positions),
        layers,
        options,
        batch_size=batch_size,
        probe=probe,
    )
    return replace(plan, n_generators=len(options.directions), forecast=found)


@checked
def select_cosmic(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | None = None,
    *,
    candidates: Candidates | Mapping[str, Candidates] | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    scores: Scores | None = None,
    products: Products | None = None,
    means: tuple[MeanActivations, MeanActivations] | None = None,
    seeds: Sequence[int] = range(PLACEBOS),
) -> Selection:
    """Choose the direction whose removal and induction bring one class's activations closest to the other's.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set; train makes the candidates, val scores them.
        options: Thresholds and numbers. Default the paper's.
        candidates: Directions to choose among, or several generators' by name. Default those of the training prompts that
            `options.directions` names, at every layer and position.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.
        scores: What is already known, by layer, position and measure ("s_comply", "s_refuse", "kl" with its
            details "kl_median", "kl_max" and "kl_max_prompt"); new scores are put
            in as they come, so that a mapping that writes them down makes the selection resumable. Measures of other
            generators than "dim" have its name before theirs, as in "pca/s_comply".
        products: The same of what scores follow from for other validation prompts (`Selection.stability`). Where that is asked
            for, a score counts as known only with it; with known scores and no products, stability is not said.
        means: Training means of the positive and the negative side, if already taken; the training prompts are then not
            filtered, and `seeds` play no part.
        seeds: Of the random labels that make placebo directions of the training prompts, in the same passes. Default 0 to 4.

    Returns:
        The choice. With several generators the filters apply within each, and the highest score of all is chosen; the choices of
        the others are its `rivals`.

    Raises:
        NoCandidateError: If the filters leave nothing.
        CosmicError: If a split is empty, a layer does not exist, or the architecture does not allow the intervention.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> len(selection.table)
        8
    """
    options = options or CosmicOptions()
    prepared = prepare(
        model,
        prompts,
        options,
        candidates,
        find_tokens=options.evaluation_layers == "causal",
        chat=chat,
        batch_size=batch_size,
        means=means,
        seeds=seeds,
    )
    train = prepared.train
    if train is None and options.evaluation_layers in ("causal", "resampled"):  # though means were given
        train = prompts.sides("train", options.n_train)
    ranked = layers_by_rule(model, options, prepared.means, train, prepared.tokens, chat=chat, batch_size=batch_size)
    one = partial(_select, model, options, prepared, ranked, batch_size)
    return best_of(prepared.candidates, one, scores, products)


def _select(
    model: TransformerBridge,
    options: CosmicOptions,
    prepared: Prepared,
    ranked: tuple[tuple[int, ...], tuple[str, ...]],
    batch_size: int | None,
    candidates: Candidates,
    scores: Scores | None,
    products: Products | None,
) -> Selection:
    """The choice among one generator's candidates."""
    n_layers, positions, rows = int(model.cfg.n_layers), prepared.positions, prepared.rows
    layers, doubts = ranked
    similarity = layer_similarity(*prepared.means)
    centre = shared_by_both(prepared.means, layers) if options.target == "centred" else None
    resamples = options.n_resamples and options.cell is None and not options.successive_halving
    unsaid = why_not_resampled([len(side) for side in rows], bool(scores) and products is None) if resamples else ()
    if products is None:
        products = {}
    scores = {} if scores is None else scores
    cells = [(layer, position) for layer in range(n_layers) for position in positions.indices]
    plan = plan_cosmic(
        model, rows[0], rows[1], len(positions), layers, options, [c for c in cells if undefined(candidates, c)]
    )

    def scorer_on(share: float, known: Scores, products: Products | None = None) -> CosmicScorer:
        some = [side[: max(1, round(share * len(side)))] for side in rows]
        return CosmicScorer(model, some[0], some[1], candidates, layers, options, batch_size, known, products, centre)

    wanted = {measure: plan.of(measure, "pass", "known") for measure in COSMIC_MEASURES}
    finalists: list[Cell] | None = None
    rough: Scores = {}
    if options.successive_halving:
        finalists = _halve(wanted["s_comply"], scorer_on, rough)
        # What is known without a pass is not left out: the position -1 rule may look at it.
        wanted = {m: [c for c in found if c in finalists or c in plan.of(m, "known")] for m, found in wanted.items()}
    scorer = scorer_on(1.0, scores, products if resamples and not unsaid else None)
    scorer.compute_all(wanted)
    clean = scorer.clean_similarity

    def table_of() -> tuple[pd.DataFrame, pd.DataFrame]:
        return cosmic_table({**rough, **scorer.scores}, cells, clean, n_layers, options, finalists)

    # A candidate that is asked for leaves nothing to settle.
    table, filters = table_of() if options.cell else _settle(scorer.compute, plan, scorer.scores, table_of)
    winner = choose(table, filters, options.cell)
    chosen = (int(winner.layer), int(winner.position))
    notes = [*prepared.left_out]
    notes += notes_about(table, filters, winner, prepared.val[1], model.cfg.dtype, CLOSE, ROUNDING)
    notes += [*repeatability_notes(candidates, chosen), *unsaid]
    if not options.filter_prompts:
        firsts = [side.argmax(-1).tolist() for side in scorer.clean_logits]
        notes += before_any_edit(scorer.clean_logits, prepared.tokens or telling_tokens(model, firsts[0], firsts[1]))
    stability = None
    if scorer.products is not None:
        stability = redrawn_stability(
            scorer,
            Rules(options.max_layer_share, options.max_kl, options.last_position_rule),
            table,
            chosen,
            options,
            prepared.val,
            lazy=("kl",),
            # Induction first, which is cheap: one median at a candidate's layer or above is enough to keep it.
            late={measure: plan.of(measure, "lazy") for measure in ("s_refuse", "s_comply")},
        )
        notes += stability_notes(stability)
    zero = f"no intervention {clean:.3f}"
    return Selection(
        candidates.direction(*chosen, model),
        table,
        filters,
        tuple(notes),
        (*doubts, *warnings_about(winner)),
        tuple(layers),
        similarity,
        positions,
        candidates,
        method="COSMIC",
        measures=LABELS,
        basis=f"S_comply {winner.s_comply:.3f} ({winner.share_comply:.0%} of the way to its target), S_refuse "
        f"{winner.s_refuse:.3f} ({winner.share_refuse:.0%}), {zero}; KL {winner.kl:.3g}",
        caption=CAPTION,
        edits=options.edits,
        clean={"similarity": clean},
        plan=plan,
        stability=stability,
        centre=centre,
    )
