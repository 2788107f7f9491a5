from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import pytest
import torch

from cosmic_tl import CosmicError, CosmicOptions, NoCandidateError, mean_activations, select_cosmic
from cosmic_tl.metrics.divergence import divergence_from, kl_divergence
from cosmic_tl.metrics.refusal_score import RefusalTokens
from cosmic_tl.selection.cosmic import CLOSE, ROUNDING, _settle
from cosmic_tl.selection.cosmic_table import cosmic_table
from cosmic_tl.selection.filters import choose
from cosmic_tl.selection.layer_rules import evaluation_layers
from cosmic_tl.selection.notes import before_any_edit, notes_about, warnings_about
from cosmic_tl.selection.plan import Plan
from cosmic_tl.selection.scores import parts, summarized


class Scores(NamedTuple):
    s_comply: float
    s_refuse: float
    kl: float | None


def make_table(scores, options=None, n_layers=10, clean=0.5):
    """None stands for a score that was not computed."""
    known = {
        (*cell, name): 0 if name == "kl_max_prompt" else value
        for cell, found in scores.items()
        for measure, value in found._asdict().items()
        if value is not None
        for name in parts(measure)
    }
    return cosmic_table(known, scores, clean, n_layers, options or CosmicOptions())


def grid(n_layers=10, positions=(-3, -2, -1), **peaks):
    """Scores that peak at one layer for each position."""
    scores = {}
    for layer in range(n_layers):
        for position in positions:
            distance = abs(layer - peaks.get(f"p{-position}", 4))
            scores[layer, position] = Scores(0.9 - 0.01 * distance, 0.9 - 0.01 * distance, 0.01)
    return scores


def test_evaluation_layers_keep_at_least_one():
    similarity = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    assert evaluation_layers(similarity, 0.05) == (9,)
    assert evaluation_layers(similarity, 0.3) == (7, 8, 9)
    assert evaluation_layers(similarity.flip(0), 0.2, exclude_first_half=True) == (5, 6)


def test_late_layers_and_kl_are_dropped():
    scores = grid()
    scores[3, -2] = Scores(0.99, 0.99, 0.11)
    table, filters = make_table(scores)
    dropped = table[~table.kept]
    assert set(table[table.layer >= 8].kept) == {False}
    assert dropped[(dropped.layer == 3) & (dropped.position == -2)].reason.item() == "KL"
    late = filters.set_index("filter").loc["late layer"]
    assert late.taken == 6 and late.best_score == pytest.approx(1.72)
    assert filters.set_index("filter").loc["KL"].best_score == pytest.approx(1.98)


def test_nan_candidates_are_dropped_and_never_win():
    scores = grid()
    scores[4, -1] = Scores(float("nan"), 0.9, 0.01)
    table, filters = make_table(scores)
    assert table[(table.layer == 4) & (table.position == -1)].reason.item().startswith("undefined")
    assert not pd.isna(choose(table, filters).score)


def test_the_last_position_rule_uses_the_lower_middle_and_needs_both_medians():
    # Peaks at layers 2 (position -3) and 4 (position -2): the lower middle is 2.
    table, _ = make_table(grid(p3=2, p2=4, p1=5))
    rule = table[table.reason.str.contains("position -1 rule")]
    assert set(rule.position) == {-1} and set(rule.layer) == set(range(3, 10))
    # With S_refuse peaking later, only layers later than both are dropped.
    scores = {cell: s._replace(s_refuse=0.9 - 0.01 * abs(cell[0] - 6)) for cell, s in grid(p3=2, p2=2).items()}
    table, _ = make_table(scores)
    assert set(table[table.reason.str.contains("rule")].layer) == set(range(7, 10))
    off, _ = make_table(scores, CosmicOptions(last_position_rule=False))
    assert not off.reason.str.contains("rule").any()


def test_the_peaks_of_the_rule_count_layers_that_another_filter_drops():
    table, _ = make_table(grid(p3=9, p2=9))
    assert not table.reason.str.contains("rule").any()


def test_the_rule_does_not_apply_to_a_single_position():
    table, _ = make_table(grid(positions=(-1,)))
    assert not table.reason.str.contains("rule").any()


def test_the_rule_waits_for_late_scores_that_could_change_it():
    scores = grid(p3=2, p2=2, p1=5)
    for layer in (8, 9):
        for position in (-3, -2):
            scores[layer, position] = Scores(None, None, None)
    table, _ = make_table(scores)
    last = table[(table.position == -1) & (table.layer < 8)].set_index("layer")
    # What early peaks drop is open until the late scores are known, what they keep is kept.
    assert last.kept.all()
    assert last.not_needed.str.contains("rule").tolist() == [layer > 2 for layer in range(8)]
    for layer in (8, 9):
        for position in (-3, -2):
            scores[layer, position] = Scores(0.1, 0.1, None)
    table, _ = make_table(scores)
    last = table[(table.position == -1) & (table.layer < 8)].set_index("layer")
    assert last.kept.tolist() == [layer <= 2 for layer in range(8)]
    assert not table.not_needed.str.contains("rule").any()


def test_what_was_not_needed_drops_nothing():
    scores = {cell: found._replace(kl=None) for cell, found in grid().items()}
    table, filters = make_table(scores)
    assert (table.not_needed == "kl").all()
    assert filters.set_index("filter").loc[["undefined", "KL"]].taken.tolist() == [0, 0]


def test_shares_measure_the_way_from_clean_to_target():
    table, _ = make_table({(0, -1): Scores(0.75, 1.0, 0.0)}, clean=0.5)
    assert table.share_comply.item() == pytest.approx(0.5)
    assert table.share_refuse.item() == pytest.approx(1.0)


def test_nothing_left_says_which_filter_took_how_many():
    scores = {cell: s._replace(kl=1.0) for cell, s in grid().items()}
    with pytest.raises(
        NoCandidateError,
        match=r"all 30 candidates.*late layer took 6.*KL took 30 .*21 of them alone, with values from 1 to 1.*--max-kl",
    ):
        choose(*make_table(scores))


def notes_of(table, filters, winner, prompts=(), dtype=torch.float32):
    return notes_about(table, filters, winner, prompts, dtype, CLOSE, ROUNDING)


def test_a_better_filtered_candidate_is_noted_and_a_feeble_winner_warned_about():
    scores = {cell: Scores(0.55, 0.55, 0.01) for cell in grid()}
    scores[5, -2] = Scores(0.99, 0.99, 0.3)
    table, filters = make_table(scores)
    winner = choose(table, filters)
    assert "layer 5, position -2" in (note := notes_of(table, filters, winner)[0]) and "--max-kl" in note
    found = warnings_about(winner)
    assert [warning.split()[0] for warning in found] == ["Removal", "Induction"] and "10% of the way" in found[0]


def test_nothing_is_said_of_a_clear_winner():
    table, filters = make_table(
        {cell: s._replace(s_comply=s.s_comply - 0.02 * (cell != (4, -2))) for cell, s in grid().items()}
    )
    winner = choose(table, filters)
    assert (winner.layer, winner.position) == (4, -2)
    assert notes_of(table, filters, winner) == () and warnings_about(winner) == ()


def test_close_candidates_are_counted_and_half_precision_is_named():
    scores = {(layer, -1): Scores(0.9, 0.9 - 0.004 * layer, 0.01) for layer in range(8)}
    scores[7, -1] = Scores(0.9, 0.8999, 0.9)  # one that a filter takes is no alternative
    table, filters = make_table(scores, CosmicOptions(last_position_rule=False))
    winner = choose(table, filters)
    assert notes_of(table, filters, winner) == (
        "2 other candidates lie within 0.01 of the chosen one's score (1.800).",
    )
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        note = notes_of(table, filters, winner, dtype=dtype)[-1]
        assert note.startswith(f"Scores in {name} are off by up to 0.005, and 1 other candidate lies within that")
    assert CLOSE == 0.01


def with_kl(table, cell, values):
    """The table with a candidate's divergence taken from those of single prompts."""
    row = (table.layer == cell[0]) & (table.position == cell[1])
    for name, value in summarized(torch.tensor(values, dtype=torch.float64)).items():
        table.loc[row, name] = value
    return table


def test_a_prompt_that_decides_alone_is_named():
    """The chosen candidate's, and that of a better one that the KL filter alone took."""
    scores = grid()
    scores[5, -2] = Scores(0.99, 0.99, 0.11)
    table, filters = make_table(scores)
    prompts = ["Bake a pie.", "How\nnot?", "Feed a cat."]
    with_kl(table, (5, -2), [0.0, 0.33, 0.0])
    lost = notes_of(table, filters, choose(table, filters), prompts)
    assert lost[1] == (
        "One of 3 negative prompts carries 100% of the KL of the better candidate that the KL filter took (layer 5, position "
        "-2): number 1, 'How\\nnot?'; the mean is 0.11 nats, without it 0."
    )
    winner = choose(table, filters)
    with_kl(table, (winner.layer, winner.position), [0.08, 0.01, 0.01])
    both = notes_of(table, filters, choose(table, filters), prompts)
    assert "80% of the KL of removal with the chosen direction: number 0, 'Bake a pie.'" in both[1] and len(both) == 4
    with_kl(table, (winner.layer, winner.position), [0.04, 0.03, 0.03])
    assert len(notes_of(table, filters, choose(table, filters), prompts)) == 3


def test_prompts_that_the_model_does_not_treat_as_their_side_says_are_counted():
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    tokens = RefusalTokens((0,), ("I",))
    assert before_any_edit((sure[:1], sure[1:]), tokens) == ()
    (found,) = before_any_edit((sure[[0, 1, 1]], sure), tokens)
    assert (
        "(first token 'I') of 2 of 3 positive validation prompts is below 0 and that of 1 of 2 negative ones" in found
    )
    assert "--filter-prompts" in found and "begin alike" in before_any_edit((sure, sure), None)[0]


def test_kl_matches_torch_where_nothing_is_tiny():
    p, q = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 7)
    exact = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert kl_divergence(p, q).float() == pytest.approx(exact, abs=1e-4)
    assert divergence_from(p)([3, 1], q[:2]).numpy() == pytest.approx(kl_divergence(p[[3, 1]], q[:2]).numpy(), abs=1e-6)


def test_a_divergence_in_float32_is_that_in_float64():
    generator = torch.Generator().manual_seed(0)
    p = torch.cat([8 * torch.randn(3, 5000, generator=generator), 0.1 * torch.randn(2, 5000, generator=generator)])
    q = p + torch.randn(5, 5000, generator=generator)
    found = divergence_from(p)
    for other in (q, p + 1e-3 * (q - p)):
        for total in (None, other.double().logsumexp(-1)):
            for rows in ([0, 1, 2, 3, 4], [3, 1]):  # which it keeps what it needs of
                some = found(rows, other[rows], None if total is None else total[rows])
                assert some.numpy() == pytest.approx(kl_divergence(p[rows], other[rows]).numpy(), abs=1e-6)
    assert found([4, 0], p[[4, 0]]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": float("nan")}, "alpha: expected a finite number"),
        ({"evaluation_share": 0.0}, "evaluation_share"),
        ({"max_layer_share": 1.5}, "max_layer_share"),
        ({"max_kl": -1.0}, "max_kl"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(CosmicError, match=message):
        CosmicOptions(**options)


@pytest.mark.parametrize("mode", ["affine", "linear"])
@pytest.mark.parametrize(
    "options",
    [
        {"evaluation_layers": (7,)},
        {"evaluation_layers": (2, 5), "max_layer_share": 0.5},
        {"evaluation_layers": (6,), "max_kl": 0.02, "max_layer_share": 1.0},
        {"evaluation_layers": (7,), "n_positions": 2, "max_layer_share": 0.6, "max_kl": 1.0},
    ],
    ids=str,
)
def test_leaving_out_what_is_not_needed_changes_no_choice(demo, prompts, mode, options):
    options = CosmicOptions(mode=mode, n_train=40, n_val=8, n_resamples=0, **options)
    means = means_of(demo, prompts)
    full = select_cosmic(demo, prompts, replace(options, full_table=True), means=means)
    short = select_cosmic(demo, prompts, options, means=means)
    assert (short.direction.layer, short.direction.position) == (full.direction.layer, full.direction.position)
    assert not full.table.not_needed.any() and short.table.not_needed.any()
    for measure in ("s_comply", "s_refuse", "kl"):
        known = ~short.table.not_needed.str.contains(measure)
        assert (short.table[measure] - full.table[measure])[known].abs().max() < 1e-5
        assert short.table[measure][~known].isna().all()
    # What is said of a candidate without all its scores is true of it.
    dropped = short.table[~short.table.kept].index
    assert (~full.table.kept[dropped]).all()


def means_of(demo, prompts):
    return tuple(mean_activations(demo, prompts.side(side, "train", 40)) for side in ("positive", "negative"))


def test_late_layers_are_scored_when_the_rule_hangs_on_them(demo, prompts):
    means = means_of(demo, prompts)
    options = CosmicOptions(
        evaluation_layers=(4,), max_layer_share=0.5, max_kl=50.0, n_train=40, n_val=8, n_resamples=0
    )
    found = {}
    selection = select_cosmic(demo, prompts, options, means=means, scores=found)
    late = set(selection.plan.of("s_comply", "lazy")) & {key[:2] for key in found}
    assert late == {(4, position) for position in range(-5, -1)}
    assert all((*cell, measure) in found for cell in late for measure in ("s_comply", "s_refuse"))
    assert not any((*cell, "kl") in found for cell in late)


class Answers:
    """Gives scores that are known beforehand, and remembers what was asked for."""

    def __init__(self, full, scores):
        self.full, self.scores, self.asked = full, scores, []

    def compute(self, measure, cells):
        for cell in cells:
            self.asked.append((measure, *cell))
            for name in parts(measure):
                self.scores[(*cell, name)] = 0 if name == "kl_max_prompt" else getattr(self.full[cell], measure)


@pytest.mark.parametrize(
    ("late_refuse", "late_comply", "chosen", "asked"),
    [
        # A late peak of S_refuse alone lifts a median to where the candidate is kept.
        (0.95, 0.1, (6, -1), {"s_refuse"}),
        # It takes the other score to keep it, or to drop it for good.
        (0.1, 0.95, (6, -1), {"s_refuse", "s_comply"}),
        (0.1, 0.1, (4, -3), {"s_refuse", "s_comply"}),
    ],
)
def test_the_choice_asks_for_just_what_decides_it(late_refuse, late_comply, chosen, asked):
    full = grid()
    full[6, -1] = Scores(0.99, 0.99, 0.01)
    for cell in [(layer, position) for layer in (8, 9) for position in (-3, -2)]:
        full[cell] = Scores(late_comply, late_refuse, 0.01)
    late = [cell for cell in full if cell[0] >= 8]
    scores = {(*cell, m): getattr(full[cell], m) for cell in full if cell not in late for m in ("s_comply", "s_refuse")}
    rows = [(*cell, m, "lazy") for cell in late if cell[1] != -1 for m in ("s_comply", "s_refuse")]
    plan = Plan(pd.DataFrame(rows, columns=["layer", "position", "measure", "status"]), 0, 0, (5,), (1, 1), 0)
    answers = Answers(full, scores)
    table, filters = _settle(
        answers.compute, plan, scores, lambda: cosmic_table(scores, full, 0.5, 10, CosmicOptions())
    )
    winner = choose(table, filters)
    assert (winner.layer, winner.position) == chosen
    assert {what[0] for what in answers.asked if what[1] >= 8} == asked
    expected = choose(*make_table(full))
    assert (expected.layer, expected.position) == chosen


def test_a_selection_goes_on_from_known_scores(demo, prompts):
    options = CosmicOptions(n_train=40, n_val=8, n_resamples=0)
    means = means_of(demo, prompts)
    scores = {}
    whole = select_cosmic(demo, prompts, options, means=means, scores=scores)
    half = dict(list(scores.items())[: len(scores) // 2])
    marked = next(key for key, value in half.items() if value == value)
    half[marked] += 1e-9
    again = select_cosmic(demo, prompts, options, means=means, scores=half)
    assert half[marked] == scores[marked] + 1e-9  # not computed again
    assert (again.table.score - whole.table.score).abs().max() < 1e-6


def test_successive_halving_gives_finalists_exact_scores(demo, prompts):
    options = CosmicOptions(n_train=40, n_val=40, max_kl=10.0)
    means = means_of(demo, prompts)
    exact = select_cosmic(demo, prompts, options, means=means)
    rough = select_cosmic(demo, prompts, replace(options, successive_halving=True), means=means)
    out = rough.table.reason.str.contains("successive halving")
    assert 0 < (~out).sum() <= 5 < len(out)
    assert (rough.table.score - exact.table.score)[~out].abs().max() < 1e-5
    assert rough.table.kl[out].isna().all()
    if (exact.direction.layer, exact.direction.position) in zip(
        rough.table.layer[~out], rough.table.position[~out], strict=True
    ):
        assert (rough.direction.layer, rough.direction.position) == (exact.direction.layer, exact.direction.position)


@pytest.mark.parametrize("mode", ["affine", "linear"])
@pytest.mark.parametrize("evaluation", [(4,), (7,)])
def test_successive_halving_settles_the_position_rule(demo, prompts, mode, evaluation):
    options = CosmicOptions(
        mode=mode, evaluation_layers=evaluation, n_train=40, n_val=8, max_kl=50.0, max_layer_share=0.5
    )
    # With few finalists only, so that the best may well be one on which the rule hangs.
    found = select_cosmic(demo, prompts, replace(options, successive_halving=True), means=means_of(demo, prompts))
    assert found.winner.kept and found.winner.not_needed == ""
    known = found.plan.of("s_refuse", "known")
    row = found.table.set_index(["layer", "position"])
    assert not any("s_refuse" in row.loc[cell, "not_needed"] for cell in known)


def test_evaluation_layers_outside_the_model(demo, prompts):
    with pytest.raises(CosmicError, match="layers 0 to 7"):
        select_cosmic(demo, prompts, CosmicOptions(evaluation_layers=(9,)))
