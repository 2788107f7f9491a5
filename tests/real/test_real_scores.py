"""Scores, divergences and the choice against the formulas on a plain model, and in bfloat16 against float32."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import (
    CosmicOptions,
    Direction,
    difference_in_means,
    load_model,
    mean_activations,
    random_direction,
    select_cosmic,
)
from cosmic_tl.model.chat import tokenize
from cosmic_tl.selection import measure_null
from cosmic_tl.selection.cosmic_scores import CosmicScorer
from cosmic_tl.selection.null import _halved
from cosmic_tl.selection.redrawn import Resamples
from cosmic_tl.selection.resampling import draw_weights
from real.conftest import options_of
from real.plain import ablate, ace, add, kl

FEW = 4
"""Prompts per side for the grid, whose every cell takes three full passes of the plain model."""

NEAR = 0.02
"""Candidates whose score lies within this of the winner's are compared in bfloat16."""


def edits(mode, layer, r, nu):
    """Removal and induction as keywords of `PlainModel.run`."""
    if mode == "linear":
        return {"everywhere": ablate(r)}, {"pre": (layer, add(r))}
    return {"pre": (layer, ace(r, nu, 0.0))}, {"pre": (layer, ace(r, nu, 1.0))}


class Formulas:
    """S_comply, S_refuse and KL of a candidate (Siu et al. 2025, section 3)."""

    def __init__(self, plain, positive, negative, low):
        self.plain, self.positive, self.negative, self.low = plain, positive, negative, list(low)
        self.t_pos = self.at_low(plain.run(positive))
        clean = plain.run(negative)
        self.t_neg, self.logits = self.at_low(clean), clean[2]

    def at_low(self, found):
        return found[1][:, self.low, -1].mean((0, 1))

    def scores(self, removal, induction):
        comply = cosine_similarity(self.at_low(self.plain.run(self.positive, **removal)), self.t_neg, dim=0)
        refuse = cosine_similarity(self.at_low(self.plain.run(self.negative, **induction)), self.t_pos, dim=0)
        return float(comply), float(refuse), kl(self.logits, self.plain.run(self.negative, **removal)[2])


@pytest.fixture(scope="module")
def few(real_prompts):
    """Training and validation prompts, each by side."""
    return [[real_prompts.side(side, split)[:FEW] for side in ("positive", "negative")] for split in ("train", "val")]


@pytest.fixture(scope="module")
def candidates(real_model, few):
    return difference_in_means(*(mean_activations(real_model, texts) for texts in few[0]))


@pytest.fixture(scope="module")
def plain_means(plain, few, candidates):
    """Means of `x` and `y` of each side's training prompts on the plain model."""
    return [[x.mean(0) for x in plain.run(texts, candidates.vectors.shape[1])[:2]] for texts in few[0]]


@pytest.fixture(scope="module")
def formulas(plain, few, plain_means):
    """On the evaluation layers that the plain model's means give."""
    (_, mu_y), (_, nu_y) = plain_means
    similarity = cosine_similarity(mu_y[:, -1], nu_y[:, -1], dim=-1)
    low = similarity.argsort()[: max(1, len(similarity) // 10)].tolist()
    return Formulas(plain, *few[1], low)


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_a_grid_of_candidates_equals_plain_torch_hooks(real_model, plain, few, candidates, plain_means, formulas, mode):
    # The engine's own way from prompts to scores …
    n_layers, n_positions, _ = candidates.vectors.shape
    layers = sorted({max(1, round(share * n_layers)) for share in (0.1, 0.4, 0.6, 0.75)})
    cells = [(layer, -1 - 2 * i % n_positions) for i, layer in enumerate(layers)]
    (mu_x, _), (nu_x, _) = plain_means
    found = {}
    rows = [tokenize(real_model, texts) for texts in few[1]]
    low = sorted(formulas.low)
    scorer = CosmicScorer(real_model, *rows, candidates, low, CosmicOptions(mode=mode), None, found)
    for measure in ("s_comply", "s_refuse", "kl"):
        scorer.compute(measure, cells)
    # … and the formulas, from the plain model's own means on.
    for layer, position in cells:
        r, nu = ((x[layer, position]).float().to(plain.model.device) for x in (mu_x - nu_x, nu_x))
        expected = formulas.scores(*edits(mode, layer, r, nu))
        ours = tuple(found[layer, position, measure] for measure in ("s_comply", "s_refuse", "kl"))
        assert ours == pytest.approx(expected, abs=1e-4), (layer, position)


def test_scores_without_a_prompt_are_those_of_the_rest(real_model, plain, few, candidates):
    """What stability rests on: scores for other weights of the prompts, from the passes that there were."""
    val = few[1]
    n_layers, n_positions, _ = candidates.vectors.shape
    cell, low = (n_layers // 2, -1), [n_layers - 3, n_layers - 2]
    rows = [tokenize(real_model, texts) for texts in val]
    scorer = CosmicScorer(real_model, *rows, candidates, low, CosmicOptions(), None, {}, {})
    for measure in ("s_comply", "s_refuse", "kl"):
        scorer.compute(measure, [cell])
    weights = draw_weights(FEW, FEW, n_resamples=2)
    found = Resamples(scorer, weights, range(-n_positions, 0), n_layers).found()
    # The first row after those that were drawn is without the first positive prompt.
    ours = [grid[weights.drawn.stop, -1, cell[0]] for grid in found.measures.values()]
    d = candidates.direction(*cell)
    r, nu = (x.to(plain.model.device) for x in (d.vector, d.reference))
    expected = Formulas(plain, val[0][1:], val[1], low).scores(*edits("affine", cell[0], r, nu))
    assert ours == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["affine", pytest.param("linear", marks=pytest.mark.slow)])
def test_the_chosen_candidate_scores_what_the_formulas_give(request, plain, real_prompts, mode):
    selection = request.getfixturevalue(f"{mode}_selection")
    val = [real_prompts.side(side, "val") for side in ("positive", "negative")]
    d, row = selection.direction, selection.winner
    r, nu = (x.to(plain.model.device) for x in (d.vector, d.reference))
    expected = Formulas(plain, *val, selection.evaluation_layers).scores(*edits(mode, d.layer, r, nu))
    assert (row.s_comply, row.s_refuse, row.kl) == pytest.approx(expected, abs=1e-4)
    kept = selection.table[selection.table.kept]
    assert row.score == kept.score.max()
    assert row.kl <= 0.1 and d.layer < 0.8 * len(plain.blocks)
    assert selection.stability.chosen == (d.layer, d.position) and selection.stability.wins > 0


@pytest.mark.slow
def test_the_null_scores_what_the_formulas_give(real_model, plain, real_prompts, real_n):
    """What half of the prompts choose, with the direction of the other half, and a random one of its norm."""
    null = measure_null(real_model, real_prompts, options_of("affine", real_n), n=1)
    train, val = (_halved(real_prompts, split, real_n) for split in ("train", "val"))
    chosen_on = replace(
        real_prompts,
        positive={**real_prompts.positive, "train": train[0][0], "val": val[0][0]},
        negative={**real_prompts.negative, "train": train[0][1], "val": val[0][1]},
    )
    layers = select_cosmic(real_model, chosen_on, options_of("affine", real_n)).evaluation_layers
    means = [mean_activations(real_model, side).resid_pre[null.layer, null.position] for side in train[1]]
    chosen = Direction((means[0] - means[1]).float(), means[1].float(), null.layer, null.position)
    other = random_direction(chosen, 0)
    other = replace(other, reference=chosen.reference + (chosen.vector - other.vector) / 2)
    formulas = Formulas(plain, *val[1], layers)
    observed = null.table.groupby("measure")["observed"].first()
    one = null.values[null.values.null == "random"].set_index("measure").value
    for direction, found in ((chosen, observed), (other, one)):
        r, nu = (x.to(plain.model.device) for x in (direction.vector, direction.reference))
        comply, refuse, _ = formulas.scores(*edits("affine", null.layer, r, nu))
        assert (found.s_comply, found.s_refuse) == pytest.approx((comply, refuse), abs=1e-4)


@pytest.mark.slow
def test_bfloat16_scores_lie_close_to_those_in_float32(real_model_path, affine_selection, real_prompts, real_n):
    model = load_model(real_model_path, dtype="bfloat16")
    half = select_cosmic(model, real_prompts, options_of("affine", real_n))
    assert half.evaluation_layers == affine_selection.evaluation_layers
    # Candidates that can win. Elsewhere, as in early layers, a difference of means is smaller than what bfloat16 can hold.
    top = affine_selection.table.score >= affine_selection.winner.score - NEAR
    assert top.sum() >= 3
    for measure in ("s_comply", "s_refuse"):
        apart = (half.table[measure] - affine_selection.table[measure]).abs()[top]
        assert apart.max() < 0.005, measure
    # It says by how much its scores may be off, and how many candidates lie within that.
    behind = half.winner.score - half.table[half.table.kept].score
    close = int((behind <= 0.005).sum()) - 1
    said = [note for note in half.notes if note.startswith("Scores in bfloat16 are off by up to 0.005")]
    assert len(said) == (close > 0)
    assert all(f"{close} other candidate" in note for note in said)
    # Either the same is chosen, or the two lie so close that the numbers' precision decides.
    assert half.winner.score - affine_selection.winner.score == pytest.approx(0, abs=0.01)
    assert torch.isfinite(half.direction.vector).all()
