import pandas as pd
import pytest
import torch

from cosmic_tl import CosmicError, CosmicOptions, NoCandidateError, select_cosmic
from cosmic_tl.selection.cosmic import Scores, _table, evaluation_layers, kl_divergence
from cosmic_tl.selection.table import choose, explain


def make_table(scores, options=None, n_layers=10, clean=0.5):
    return _table(scores, clean, n_layers, options or CosmicOptions())


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


def test_shares_measure_the_way_from_clean_to_target():
    table, _ = make_table({(0, -1): Scores(0.75, 1.0, 0.0)}, clean=0.5)
    assert table.share_comply.item() == pytest.approx(0.5)
    assert table.share_refuse.item() == pytest.approx(1.0)


def test_nothing_left_says_which_filter_took_how_many():
    scores = {cell: s._replace(kl=1.0) for cell, s in grid().items()}
    with pytest.raises(NoCandidateError, match=r"all 30 candidates.*late layer took 6.*KL took 30 .*--max-kl"):
        choose(*make_table(scores))


def test_a_better_filtered_candidate_and_a_feeble_winner_are_warned_about():
    scores = {cell: Scores(0.55, 0.55, 0.01) for cell in grid()}
    scores[5, -2] = Scores(0.99, 0.99, 0.3)
    table, filters = make_table(scores)
    found = explain(table, filters, choose(table, filters))
    assert "layer 5, position -2" in found[0] and "--max-kl" in found[0]
    assert "Removal" in found[1] and "Induction" in found[2]


def test_a_good_winner_is_not_warned_about():
    table, filters = make_table(grid())
    assert explain(table, filters, choose(table, filters)) == ()


def test_kl_matches_torch_where_nothing_is_tiny():
    p, q = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 7)
    exact = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert kl_divergence(p, q).float() == pytest.approx(exact, abs=1e-4)


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


def test_evaluation_layers_outside_the_model(demo, prompts):
    with pytest.raises(CosmicError, match="layers 0 to 7"):
        select_cosmic(demo, prompts, CosmicOptions(evaluation_layers=(9,)))
