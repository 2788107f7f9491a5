"""How sure a choice is: against scores of prompts that are really drawn again, plain filters, and planted truth."""

from collections import Counter
from dataclasses import replace
from itertools import product
from math import nan

import numpy as np
import pytest
import torch

from cosmic_tl import (
    CosmicOptions,
    RefusalTokenOptions,
    Run,
    RunSettings,
    Selection,
    run,
    score_directions,
    select_by_refusal_tokens,
    select_cosmic,
)
from cosmic_tl.activations import class_means
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.errors import NoCandidateError
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.selection.cosmic_scores import CosmicScorer, shared_by_both
from cosmic_tl.selection.cosmic_table import cosmic_table
from cosmic_tl.selection.filters import choose
from cosmic_tl.selection.redrawn import Resamples
from cosmic_tl.selection.resampling import Resampled, Rules, draw_weights, weighted_lengths, weighted_scores, winners
from cosmic_tl.selection.scores import KL, parts
from cosmic_tl.selection.stability import _tied, interval

OPTIONS = CosmicOptions(n_train=24, n_val=12, max_kl=0.5, n_resamples=200)


def grids(comply, refuse, kl, positions):
    return Resampled({"s_comply": comply, "s_refuse": refuse, "kl": kl}, comply + refuse, positions)


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return select_cosmic(demo, prompts, OPTIONS)


@pytest.mark.parametrize("target", ["mean", "concatenated", "per-prompt", "centred"])
@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_scores_equal_those_of_prompts_that_are_really_drawn_again(demo, prompts, mode, target):
    options = replace(OPTIONS, mode=mode, target=target)
    positions = post_instruction_positions(demo, None, None)
    means = class_means(demo, prompts.sides("train", 24), positions=positions)
    candidates = difference_in_means(*means)
    positive, negative = (tokenize(demo, side, None) for side in prompts.sides("val", 7))
    cells, layers = [(2, -1), (4, -3)], (5, 6)
    centre = shared_by_both(means, layers) if target == "centred" else None

    def scorer(rows, products=None):
        made = CosmicScorer(demo, rows[0], rows[1], candidates, layers, options, None, {}, products, centre)
        for measure in made.measures:
            made.compute(measure, cells)
        return made

    kept = scorer((positive, negative[:6]), {})
    weights = draw_weights(7, 6, n_resamples=3)
    found = Resamples(kept, weights, positions.indices, 8).found()
    for r in range(4):
        drawn = [
            [row for row, w in zip(rows, side[r].tolist(), strict=True) for _ in range(round(w * len(rows)))]
            for rows, side in ((positive, weights.positive), (negative[:6], weights.negative))
        ]
        again = scorer(drawn).scores
        for layer, position in cells:
            at = (r, positions.indices.index(position), layer)
            for measure, grid in found.measures.items():
                assert grid[at] == pytest.approx(again[layer, position, measure], abs=1e-6)


@pytest.mark.parametrize("rule", [True, False])
def test_winners_are_those_of_the_filters(rule):
    """Also among ties, and where nothing is left."""
    rng = np.random.default_rng(0)
    n_layers, positions = 7, (-3, -2, -1)
    shape = (300, len(positions), n_layers)
    comply, refuse = (rng.integers(0, 12, shape) / 12 for _ in range(2))
    kl = rng.exponential(0.2, shape)
    undefined = rng.random(shape[1:]) < 0.1
    comply[:, undefined] = refuse[:, undefined] = kl[:, undefined] = np.nan
    options = CosmicOptions(max_kl=0.1, max_layer_share=0.8, last_position_rule=rule)
    found, free, kept = winners(grids(comply, refuse, kl, positions), Rules(0.8, 0.1, rule), undefined)
    strict = grids(comply, refuse, kl + 0.5, positions)
    assert rule == bool((found != free).any()) and -1 in winners(strict, Rules(0.8, 0.1, rule), undefined)[0]
    cells = [(layer, position) for layer in range(n_layers) for position in positions]
    for r in range(shape[0]):
        scores = {}
        for layer, position in cells:
            at = (r, positions.index(position), layer)
            scores |= {(layer, position, "s_comply"): comply[at], (layer, position, "s_refuse"): refuse[at]}
            scores |= {(layer, position, name): kl[at] for name in parts(KL)[:3]} | {(layer, position, parts(KL)[3]): 0}
        table, filters = cosmic_table(scores, cells, 0.5, n_layers, options)
        if r == 0:
            assert kept.ravel().tolist() == table.kept.tolist()
        try:
            row = choose(table, filters)
            expected = positions.index(row.position) * n_layers + row.layer
        except NoCandidateError:
            expected = -1
        assert found[r] == expected


def test_the_choice_and_its_scores_are_those_of_the_selection(selection):
    stability = selection.stability
    d, row = selection.direction, stability._row
    assert stability.chosen == (d.layer, d.position) and row.kept and not row.tied and row.behind == 0
    winner = selection.winner
    assert (row.score, row.s_comply, row.s_refuse, row.kl) == pytest.approx(
        (winner.score, winner.s_comply, winner.s_refuse, winner.kl), abs=1e-6
    )
    assert stability.table.wins.sum() == pytest.approx(1) and stability.wins > 0
    assert (stability.table.score_low <= stability.table.score_high).all()


def test_no_score_is_computed_for_it_where_the_rule_does_not_hang_on_one(demo, prompts, selection):
    plain, resampled = {}, {}
    options = replace(OPTIONS, last_position_rule=False)
    without = select_cosmic(demo, prompts, replace(options, n_resamples=0), scores=plain)
    found = select_cosmic(demo, prompts, options, scores=resampled)
    assert without.stability is None and without.table.equals(found.table)
    more = set(resampled) - set(plain)
    assert {key[2] for key in more} <= set(parts(KL))
    assert found.stability.passes == {"s_comply": 0, "s_refuse": 0, "kl": len({key[:2] for key in more})}


def test_a_prompt_that_decides_alone_is_named(demo, prompts):
    """The demo's 32 validation prompts: without one of them another candidate is chosen."""
    options = CosmicOptions(n_val=32)
    found = select_cosmic(demo, prompts, options)
    stability = found.stability
    assert stability.wins < 0.5 and any(note.startswith("Another draw of prompts might") for note in found.notes)
    (row,) = stability.without.to_dict("records")
    positive, negative = prompts.sides("val", 32)
    assert row["side"] == "negative" and negative[row["number"]] == row["prompt"]
    rest = [text for text in negative if text != row["prompt"]]
    changed = replace(
        prompts,
        negative={**prompts.negative, "val": tuple(rest)},
        positive={**prompts.positive, "val": tuple(positive)},
    )
    other = select_cosmic(demo, changed, options).direction
    assert (other.layer, other.position) == (row["layer"], row["position"]) != stability.chosen


def test_intervals_cover_planted_truth():
    """Cosines between means of 100 prompts per side; from quantile to quantile would miss them, since they are biased."""
    generator = torch.Generator().manual_seed(0)
    n, width, trials = 100, 64, 200
    covered = percentile = 0
    for seed in range(trials):
        truth = torch.randn(2, width, generator=generator, dtype=torch.float64)
        truth[1] += truth[0]
        steered, clean = (mean + 2 * torch.randn(n, width, generator=generator, dtype=torch.float64) for mean in truth)
        weights = draw_weights(n, n, n_resamples=400, seed=seed)
        products = steered @ torch.cat([clean, steered]).T
        lengths = weighted_lengths(clean @ clean.T, weights.negative)
        scores = weighted_scores(products, weights.positive, weights.negative, lengths, "mean").numpy()
        low, high = interval(scores[weights.drawn, None, None], scores[:1, None])
        exact = float(torch.cosine_similarity(truth[0], truth[1], dim=0))
        covered += bool(low <= exact <= high)
        low, high = np.quantile(scores[weights.drawn], [0.025, 0.975])
        percentile += bool(low <= exact <= high)
    assert 0.90 <= covered / trials <= 0.98
    assert percentile / trials < 0.8


def test_scores_that_are_truly_equal_are_tied():
    """Whichever is the best of the sample: all cells have the same truth, and at most a few are told apart in error."""
    generator = torch.Generator().manual_seed(0)
    n, cells, trials = 60, 12, 60
    wrong = 0
    for seed in range(trials):
        shared = torch.randn(n, generator=generator, dtype=torch.float64)
        values = shared[:, None] + torch.randn(n, cells, generator=generator, dtype=torch.float64)
        weights = draw_weights(n, n, n_resamples=200, seed=seed)
        score = (weights.positive @ values).reshape(-1, 1, cells).numpy()
        best = (0, int(score[0].argmax()))
        tied = _tied(score, weights, np.ones((1, cells), dtype=bool), best)
        wrong += tied.sum() < cells - 1
    assert wrong / trials <= 0.15  # of 5 %, and what the bootstrap lacks in small samples


def test_a_better_score_is_told_apart_and_the_same_direction_is_not():
    values = torch.randn(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.cat([values, values, values - 3 + 0.1 * values.square()], dim=1)
    weights = draw_weights(60, 60, n_resamples=200)
    score = (weights.positive @ values).reshape(-1, 1, 3).numpy()
    assert _tied(score, weights, np.ones((1, 3), dtype=bool), (0, 0)).tolist() == [[False, True, False]]


def test_a_divergence_that_is_no_number_wins_nothing(demo, prompts):
    positions = (-2, -1)
    one = np.full((1, 2, 3), 0.5)
    kl = np.array([[[0.01, 0.01, 0.01], [np.inf, 0.01, 0.01]]])
    comply = one + np.array([[[0, 0, 0], [0.4, 0, 0.3]]])
    found, _, kept = winners(grids(comply, one, kl, positions), Rules(1.0, 0.1), np.zeros((2, 3), dtype=bool))
    assert found.tolist() == [5] and not kept[1, 0]
    rows = [tokenize(demo, side, None) for side in prompts.sides("val", 2)]
    candidates = difference_in_means(*class_means(demo, prompts.sides("train", 8)))
    scorer = CosmicScorer(demo, *rows, candidates, (6,), OPTIONS, None, {}, {(4, -1, "kl"): torch.tensor([nan, 0.1])})
    scorer.scores[4, -1, "kl"] = nan
    assert np.isinf(Resamples(scorer, draw_weights(2, 2, 3), range(-5, 0), 8).found().measures["kl"][0, -1, 4])


def test_where_it_is_not_said_a_note_says_why(demo, prompts):
    found = select_cosmic(demo, prompts, replace(OPTIONS, n_val=1, max_kl=50.0))
    assert found.stability is None
    assert any(note.startswith("How sure the choice is, is not said: that takes 2 to 300") for note in found.notes)


def test_unknown_where_it_cannot_be(demo, prompts, selection):
    scores = {}
    select_cosmic(demo, prompts, replace(OPTIONS, n_resamples=0), scores=scores)
    alone = select_cosmic(demo, prompts, OPTIONS, scores=scores)
    assert alone.stability is None and any("given without products" in note for note in alone.notes)
    products = {}
    assert select_cosmic(demo, prompts, OPTIONS, scores=scores, products=products).stability.table.equals(
        selection.stability.table
    )
    assert products
    cell = (selection.direction.layer, selection.direction.position)
    assert select_cosmic(demo, prompts, replace(OPTIONS, cell=cell)).stability is None
    assert select_cosmic(demo, prompts, replace(OPTIONS, successive_halving=True)).stability is None


def test_directions_that_were_given_are_called_by_their_names(demo, prompts, selection):
    given = {"mine": selection.direction, "other": torch.randn(128, generator=torch.Generator().manual_seed(0))}
    found = score_directions(demo, prompts, given, replace(OPTIONS, max_kl=10.0))
    assert found.stability.said().startswith(f"Layer {found.direction.layer}, {found.column} wins ")
    assert found.stability.plot().data[0].y[0].startswith("layer ")


def test_it_is_saved_with_selections_and_runs(demo, prompts, selection, tmp_path):
    selection.save(tmp_path / "selection.safetensors")
    again = Selection.load(tmp_path / "selection.safetensors").stability
    assert again.table.equals(selection.stability.table) and again.chosen == selection.stability.chosen
    done = run(demo, prompts, tmp_path / "run", RunSettings(OPTIONS, n_test=2, max_new_tokens=4, n_placebos=1))
    loaded = Run.load(tmp_path / "run")
    assert loaded.selection.stability.table.equals(done.selection.stability.table)
    said = loaded.summary["stability"]
    assert said["wins"] == done.selection.stability.wins and said["n_resamples"] == 200


def test_refusal_tokens_say_it_too(demo, prompts):
    """Every resample's winner is what the plain filters choose among plain weighted means of each prompt's own values."""
    options = RefusalTokenOptions(n_train=24, n_val=8, max_kl=0.5, n_resamples=200, full_table=True)
    products = {}
    found = select_by_refusal_tokens(demo, prompts, options, products=products)
    stability, positions = found.stability, found.positions.indices
    sizes = [next(len(p) for key, p in products.items() if key[2] == name) for name in ("bypass", "kl")]
    weights = draw_weights(*sizes, 200)
    wins, none = Counter(), 0
    for w, v in zip(weights.positive[weights.drawn], weights.negative[weights.drawn], strict=True):
        best = None
        for layer, position in product(range(7), positions):  # below .8 of 8 layers
            if (layer, position, "bypass") not in products:
                continue
            bypass, induce, kl = (
                float(side @ products[layer, position, name].double())
                for side, name in ((w, "bypass"), (v, "induce"), (v, "kl"))
            )
            if induce > 0 and kl <= 0.5 and (best is None or -bypass > best[0]):
                best = (-bypass, layer, position)
        if best is None:
            none += 1
        else:
            wins[best[1:]] += 1 / 200
    table = stability.table.set_index(["layer", "position"])
    assert stability.none == none / 200
    for cell, row in table.iterrows():
        assert row.wins == pytest.approx(wins[cell])
    winner = found.winner
    row = table.loc[stability.chosen]
    assert (row.score, row.induce, row.kl) == pytest.approx((-winner.bypass, winner.induce, winner.kl), abs=1e-5)
    assert row.bypass_low <= row.bypass <= row.bypass_high
    assert [note.text for note in stability.plot().layout.annotations if note.text.startswith(("−b", "ind"))] == [
        "−bypass (log-odds)",
        "induce (log-odds)",
    ]


def test_refusal_tokens_compute_only_what_further_winners_hang_on(demo, prompts):
    """And the same as with the full table."""
    options = RefusalTokenOptions(n_train=24, n_val=8, max_kl=0.5, n_resamples=200)
    lazy = select_by_refusal_tokens(demo, prompts, options).stability
    full = select_by_refusal_tokens(demo, prompts, replace(options, full_table=True)).stability
    assert lazy.passes["bypass"] == 0 and set(full.passes.values()) == {0}
    assert lazy.wins == full.wins and lazy.none == full.none
    assert lazy.table.kl.isna().any()
