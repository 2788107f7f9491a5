"""Choose a direction by the probability of refusal's first tokens (Arditi et al. 2024, section 2.3 and appendix C)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.activations import MeanActivations
from cosmic_tl.data.contrast_set import ContrastSet
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.errors import NoCandidateError
from cosmic_tl.metrics.refusal_score import log_odds
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.among import best_of
from cosmic_tl.selection.filters import (
    Filter,
    apply_filters,
    choose,
    common_filters,
    score_table,
    settle,
)
from cosmic_tl.selection.layer_rules import layer_similarity
from cosmic_tl.selection.notes import (
    before_any_edit,
    notes_about,
    repeatability_notes,
    stability_notes,
    warnings_about,
    why_not_resampled,
)
from cosmic_tl.selection.options import PLACEBOS, Cell, RefusalTokenOptions
from cosmic_tl.selection.prepared import Prepared, prepare
from cosmic_tl.selection.redrawn import redrawn_stability
from cosmic_tl.selection.resampling import Grid, Rules
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Products, ScoreKey, Scorer, Scores

MEASURES = ("bypass", "induce", "kl")
LABELS = {"bypass": "bypass (log-odds)", "induce": "induce (log-odds)", "kl": "KL (nats)"}
CLOSE, ROUNDING = 0.1, 0.05
"""Scores that lie this close are noted: always, and where half precision may be off by as much."""
NEAREST = 8
"""Of so many candidates it is found out what would admit them, if none passes."""
STRONGER = 2.0
"""By how much stronger induction is tried for that, once and again."""


class RefusalTokenScorer(Scorer):
    """Refusal scores: "bypass" with the direction removed from positive prompts, "induce" with it put into negative ones."""

    measures = MEASURES

    def __init__(
        self,
        model: TransformerBridge,
        positive: Sequence[Sequence[int]],
        negative: Sequence[Sequence[int]],
        candidates: Candidates,
        options: RefusalTokenOptions,
        ids: Sequence[int],
        batch_size: int | None,
        scores: Scores,
        products: Products | None = None,
    ) -> None:
        reading = Reading(logits=True)
        super().__init__(model, positive, negative, candidates, options.edits, reading, batch_size, scores, products)
        self.ids = ids

    def reduce(self, outcome: Outcome) -> Float64[Tensor, " prompt"]:
        """Refusal scores."""
        assert outcome.logits is not None
        return log_odds(outcome.logits.cpu(), self.ids)

    def value(self, measure: str, reached: Tensor) -> float:
        """Their mean."""
        return float(reached.mean())

    def score(self, measures: Mapping[str, Grid]) -> Grid:
        """The lower the refusal score with the direction removed, the better."""
        return -measures[MEASURES[0]]


def _table(
    scores: Mapping[ScoreKey, float], cells: Iterable[Cell], n_layers: int, options: RefusalTokenOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The score table with its filters applied as far as scores are known."""
    table = score_table(scores, cells, MEASURES)
    table.insert(table.columns.get_loc("kl"), "score", -table.bypass)
    filters = common_filters(table, MEASURES, n_layers, options.max_layer_share, options.max_kl)
    feeble = table.induce <= options.min_induce
    option = "a lower min_induce (--min-induce)"
    filters.append(Filter("induce", feeble, option, table.induce, options.min_induce))
    return apply_filters(table, filters)


def _nothing_left(
    table_of: Callable[[], tuple[pd.DataFrame, pd.DataFrame]],
    scorer: RefusalTokenScorer,
    scorer_at: Callable[[float, Scores], RefusalTokenScorer],
    options: RefusalTokenOptions,
) -> NoCandidateError:
    """What would admit a candidate: the divergence of those that missed the induction least, and stronger induction."""
    table, _ = table_of()
    near = table[table.reason == "induce"].nlargest(NEAREST, "induce")
    cells = list(zip(near.layer, near.position, strict=True))
    scorer.compute("kl", cells)
    table, filters = table_of()
    left = table[table.reason == "induce"].set_index(["layer", "position"])
    passed = [cell for cell in cells if cell in left.index]
    try:
        choose(table, filters)
    except NoCandidateError as error:
        said = str(error)
    if cells:
        said += f"; of the {len(cells)} that induction brings furthest, {len(passed)} pass the KL filter"
    for alpha in (STRONGER * options.alpha, STRONGER**2 * options.alpha) if passed else ():
        stronger: Scores = {}
        scorer_at(alpha, stronger).compute("induce", passed)
        admitted = sum(value > options.min_induce for value in stronger.values())
        said += f"; of these alpha={alpha:g} (--alpha {alpha:g}) alone would admit {admitted}"
        if admitted:
            break
    return NoCandidateError(said)


@checked
def select_by_refusal_tokens(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: RefusalTokenOptions | None = None,
    *,
    candidates: Candidates | Mapping[str, Candidates] | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    scores: Scores | None = None,
    products: Products | None = None,
    means: tuple[MeanActivations, MeanActivations] | None = None,
    seeds: Sequence[int] = range(PLACEBOS),
) -> Selection:
    """Choose the direction whose removal makes refusal's first tokens least likely on positive prompts.

    Bypass scores are computed for every candidate that may be chosen; whether induction and KL let it pass, only for the
    best ones until one does.

    Args:
        model: A `TransformerBridge`.
        prompts: The concept's contrast set; train makes the candidates, val scores them.
        options: Thresholds and numbers. Default the paper's.
        candidates: Directions to choose among, or several generators' by name. Default those of the training prompts that
            `options.directions` names, at every layer and position.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times candidates) per forward pass. Default: by available memory.
        scores: What is already known, by layer, position and measure ("bypass", "induce", "kl" with its details
            "kl_median", "kl_max" and "kl_max_prompt"); new ones are put in as they come. Measures of other generators than
            "dim" have its name before theirs, as in "pca/bypass".
        products: The same of each prompt's own values (`Selection.stability`). Where that is asked for, a score counts as known
            only with them; with known scores and no products, stability is not said.
        means: Training means of the positive and the negative side, if already taken; the prompts are then not filtered
            for them.
        seeds: Of the random labels that make placebo directions of the training prompts, in the same passes. Default 0 to 4.

    Raises:
        NoCandidateError: If the filters leave nothing; it says by how much, and whether stronger induction would help.
        CosmicError: If no token tells refusals, a side has no prompt left, or the architecture does not allow the
            intervention.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = RefusalTokenOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_by_refusal_tokens(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> selection.method, selection.tokens.texts
        ('refusal tokens', ('I',))
    """
    options = options or RefusalTokenOptions()
    prepared = prepare(
        model,
        prompts,
        options,
        candidates,
        find_tokens=True,
        chat=chat,
        batch_size=batch_size,
        means=means,
        seeds=seeds,
    )
    return best_of(prepared.candidates, partial(_select, model, options, prepared, batch_size), scores, products)


def _select(
    model: TransformerBridge,
    options: RefusalTokenOptions,
    prepared: Prepared,
    batch_size: int | None,
    candidates: Candidates,
    scores: Scores | None,
    products: Products | None,
) -> Selection:
    """The choice among one generator's candidates."""
    positions, rows, tokens = prepared.positions, prepared.rows, prepared.tokens
    assert tokens is not None
    resamples = options.n_resamples and options.cell is None
    unsaid = why_not_resampled([len(side) for side in rows], bool(scores) and products is None) if resamples else ()
    scores = {} if scores is None else scores
    products = {} if products is None else products

    def scorer_at(alpha: float, known: Scores, products: Products | None = None) -> RefusalTokenScorer:
        settings = replace(options, alpha=alpha)
        return RefusalTokenScorer(
            model, rows[0], rows[1], candidates, settings, tokens.ids, batch_size, known, products
        )

    scorer = scorer_at(options.alpha, scores, products if resamples and not unsaid else None)
    n_layers = int(model.cfg.n_layers)
    cells = [(layer, position) for position in positions.indices for layer in range(n_layers)]
    wanted = [cell for cell in cells if cell[0] < options.max_layer_share * n_layers]
    if options.cell is not None:
        wanted = [options.cell]
    at_once = MEASURES if options.full_table or options.cell else MEASURES[:1]
    scorer.compute_all(dict.fromkeys(at_once, cells if options.full_table else wanted))
    # Induction is the cheaper of the two.

    def table_of() -> tuple[pd.DataFrame, pd.DataFrame]:
        return _table(scorer.scores, cells, n_layers, options)

    table, filters = table_of() if options.cell else settle(table_of, scorer.compute, MEASURES[1:])
    if not table.kept.any() and options.cell is None:
        raise _nothing_left(table_of, scorer, scorer_at, options)
    winner = choose(table, filters, options.cell)
    clean = {"bypass": float(scorer.clean_positive.mean()), "induce": float(scorer.clean_negative.mean())}
    notes = [*prepared.left_out]
    notes += notes_about(table, filters, winner, prepared.val[1], model.cfg.dtype, CLOSE, ROUNDING)
    chosen = (int(winner.layer), int(winner.position))
    notes += [*repeatability_notes(candidates, chosen), *unsaid]
    if not options.filter_prompts:
        notes += before_any_edit(scorer.clean_logits, tokens)
    stability = None
    if scorer.products is not None:
        rules = Rules(options.max_layer_share, options.max_kl, min_induce=options.min_induce)
        stability = redrawn_stability(scorer, rules, table, chosen, options, prepared.val, lazy=MEASURES[1:])
        notes += stability_notes(stability)
    removed, induced = f"{clean['bypass']:+.2f}", f"{clean['induce']:+.2f}"
    return Selection(
        candidates.direction(*chosen, model),
        table,
        filters,
        tuple(notes),
        warnings_about(winner, clean),
        (),
        layer_similarity(*prepared.means),
        positions,
        candidates,
        method="refusal tokens",
        measures=LABELS,
        basis=f"refusal score of positive prompts {removed}, {winner.bypass:+.2f} with the direction removed; of negative ones "
        f"{induced}, {winner.induce:+.2f} with it induced; KL {winner.kl:.3g}; tokens {tokens}",
        caption="Every candidate direction. Bypass: the mean refusal score of positive prompts when the direction is removed, "
        f"{removed} without intervention; the kept candidate with the lowest is chosen. Induce: that of negative prompts when "
        f"it is induced, {induced} without intervention. The refusal score is the log-odds that the answer begins with a "
        f"refusal token, here {tokens}. KL: how much removal changes the next-token distribution on negative prompts.",
        edits=options.edits,
        clean=clean,
        tokens=tokens,
        stability=stability,
    )
