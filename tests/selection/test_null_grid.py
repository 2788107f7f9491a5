"""Scores above the null equal plain passes, and are high where the concept is."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import (
    CosmicError,
    CosmicOptions,
    Direction,
    RefusalTokenOptions,
    cache_activations,
    select_by_refusal_tokens,
    select_cosmic,
    steering,
)
from cosmic_tl.selection import measure_null_grid

OPTIONS = CosmicOptions(n_train=24, n_val=6, n_positions=2, max_kl=0.5, n_resamples=0)


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return select_cosmic(demo, prompts, OPTIONS)


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_it_is_what_plain_passes_give(demo, prompts, mode):
    options = replace(OPTIONS, mode=mode)
    selection = select_cosmic(demo, prompts, options)
    grid = measure_null_grid(demo, prompts, selection, options, n=2)
    positive, negative = prompts.sides("val", 6)
    layers, candidates = list(selection.evaluation_layers), selection.candidates

    def mean(texts, edit=()):
        with steering(demo, edit):
            found = cache_activations(demo, texts, site="hook_resid_post")
        return found[:, layers, -1].double().mean((0, 1))

    cell = (3, -2)
    real, nu = candidates.vectors[cell], candidates.references[cell]
    scores = []
    for seed in list(candidates.shuffled)[:2]:
        null = candidates.shuffled[seed][cell]
        null = null * real.norm() / null.norm()
        direction = Direction(null, nu + (real - null) / 2, *cell)
        removed = mean(positive, options.edits.removal(direction))
        induced = mean(negative, options.edits.induction(direction))
        scores.append(
            [
                float(cosine_similarity(removed, mean(negative), dim=0)),
                float(cosine_similarity(induced, mean(positive), dim=0)),
            ]
        )
    at = grid.table[(grid.table.layer == 3) & (grid.table.position == -2)].set_index("measure")
    expected = torch.tensor(scores, dtype=torch.float64)
    assert at.null.tolist() == pytest.approx([*expected.mean(0).tolist(), float(expected.sum(1).mean())], abs=1e-5)
    assert at.sd.tolist() == pytest.approx([*expected.std(0).tolist(), float(expected.sum(1).std())], abs=1e-5)
    table = selection.table.set_index(["layer", "position"]).loc[(3, -2)]
    assert at.above.tolist() == pytest.approx(
        [table[name] - value for name, value in zip(("s_comply", "s_refuse", "score"), at.null, strict=True)], abs=1e-9
    )


def test_the_choice_stands_out_and_what_is_not_read_does_not(demo, prompts, selection):
    grid = measure_null_grid(demo, prompts, selection, OPTIONS)
    score = grid.table[grid.table.measure == "score"].set_index(["layer", "position"])
    chosen = score.loc[(grid.layer, grid.position)]
    assert grid.n == 5 and chosen.above > 3 * chosen.sd
    late = score[score.index.get_level_values("layer") > max(selection.evaluation_layers)]
    assert (late.above.dropna().abs() < 1e-9).all()


def test_bad_input(demo, prompts, selection):
    with pytest.raises(CosmicError, match=r"^n: found 6, and the selection has 5"):
        measure_null_grid(demo, prompts, selection, OPTIONS, n=6)
    with pytest.raises(CosmicError, match=r"^options: they are not those of the selection"):
        measure_null_grid(demo, prompts, selection, replace(OPTIONS, alpha=2.0))
    for changed in ({"n_val": 3}, {"target": "per-prompt"}):
        with pytest.raises(CosmicError, match=r"^options: without an edit the classes' similarity is not that"):
            measure_null_grid(demo, prompts, selection, replace(OPTIONS, **changed), n=1)
    for name in ("filter_prompts", "successive_halving"):
        with pytest.raises(CosmicError, match=f"^{name}: the null is scored"):
            measure_null_grid(demo, prompts, selection, replace(OPTIONS, **{name: True}))
    with pytest.raises(CosmicError, match=r"^n: found 1, and the selection has 0"):
        measure_null_grid(
            demo, prompts, replace(selection, candidates=replace(selection.candidates, shuffled={})), OPTIONS
        )
    other = RefusalTokenOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0, min_induce=-50)
    with pytest.raises(CosmicError, match=r"^selection: it was made by "):
        measure_null_grid(demo, prompts, select_by_refusal_tokens(demo, prompts, other))
