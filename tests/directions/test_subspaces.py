"""Subspaces: what they span, what edits of them do, and how scores depend on their rank."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import (
    Ablation,
    AffineEdit,
    CosmicError,
    Direction,
    cache_activations,
    difference_in_means,
    mean_activations,
    steering,
)
from cosmic_tl.activations import class_means
from cosmic_tl.directions import Subspace, class_subspace, principal_angles, stacked_subspace
from cosmic_tl.directions.som import RATE, ROUNDS, SEED, SIGMA, som_neurons
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.experiments import measure_ranks
from cosmic_tl.interventions import SubspaceAblation, SubspaceEdit
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.chat import tokenize

LAYER, K = 4, 3


@pytest.fixture(scope="module")
def sides(prompts):
    return prompts.sides("train", 24)


@pytest.fixture(scope="module")
def plane(demo, sides):
    return class_subspace(demo, sides, LAYER, k=K)


@pytest.fixture(scope="module")
def rows(demo, sides):
    return [cache_activations(demo, side)[:, LAYER, -1].double() for side in sides]


def test_pca_is_that_of_the_class_differences(plane, rows):
    reference = rows[1].mean(0)
    _, _, right = np.linalg.svd((rows[0] - reference).numpy(), full_matrices=False)
    assert np.allclose(np.abs((plane.basis.numpy() * right[:K]).sum(1)), 1, atol=1e-5)
    assert torch.allclose(plane.reference, reference, atol=1e-5)
    assert torch.allclose(plane.difference, rows[0].mean(0) - reference, atol=1e-5)
    assert float(plane.basis[0] @ plane.difference) > 0.9 * float(plane.difference.norm())


def test_one_direction_is_the_edits_of_one_direction(demo, plane):
    one = plane.first(1)
    d = Direction(one.basis[0] * (one.basis[0] @ one.difference), one.reference.float(), LAYER, -1)
    x = torch.randn(5, 128)
    for alpha in (0.0, 1.0, 2.0):
        assert torch.allclose(SubspaceEdit(one, alpha).map(x), AffineEdit(d, alpha).map(x), atol=1e-4)
    assert torch.allclose(SubspaceAblation(one).map(x), Ablation(d).map(x), atol=1e-5)


def test_nothing_is_left_of_it(demo, plane):
    with steering(demo, SubspaceAblation(plane)):
        left = cache_activations(demo, ["Rob a bank clerk.", "Bake a pie."], site="hook_resid_post").double()
    along = torch.einsum("nlpd,kd->nlpk", left, plane.basis)
    assert along.abs().max() < 1e-4 * left.norm(dim=-1).max()
    with steering(demo, SubspaceEdit(plane, 1.0)):
        at = cache_activations(demo, ["Rob a bank clerk.", "Bake a pie."])[:, LAYER].double()
    expected = plane.basis @ (plane.reference + plane.difference)
    assert (torch.einsum("npd,kd->npk", at, plane.basis) - expected).abs().max() < 1e-3


def test_ranks_are_batched_as_if_each_were_alone(demo, plane, prompts):
    edits = [SubspaceEdit(plane.first(k), 1.0) for k in (1, 2, 3)] + [SubspaceAblation(plane.first(k)) for k in (1, 3)]
    asked = tokenize(demo, prompts.side("negative", "val", 5))
    found = dict(intervened(demo, asked, edits, Reading((6,)), lambda outcome: outcome.resid_post[6][:, -1].cpu()))
    for i, edit in enumerate(edits):
        with steering(demo, edit):
            expected = cache_activations(demo, prompts.side("negative", "val", 5), site="hook_resid_post")[:, 6, -1]
        assert torch.allclose(found[i], expected, atol=1e-4), i


@pytest.mark.parametrize("mode", ["affine", "linear"])
def test_scores_by_rank_are_those_of_plain_passes(demo, plane, prompts, mode):
    val, low = prompts.sides("val", 6), [5, 6]
    found = measure_ranks(demo, val, plane, low, ranks=(1, 3), mode=mode, n_placebos=1)

    def mean(side, edit=()):
        with steering(demo, edit):
            return mean_activations(demo, side).resid_post[low, -1].mean(0)

    def logits(edit=()):
        with steering(demo, edit), torch.inference_mode():
            return torch.cat([demo(torch.tensor([row]))[:, -1] for row in tokenize(demo, val[1])])

    t_pos, t_neg = mean(val[0]), mean(val[1])
    assert found.clean == pytest.approx(float(cosine_similarity(t_pos, t_neg, dim=0)), abs=1e-5)
    assert found.table[["rank", "kind"]].values.tolist() == [
        [k, kind] for k in (1, 3) for kind in ("subspace", "random")
    ]
    for row in found.table.itertuples():
        some = plane.first(row.rank) if row.seed < 0 else plane.first(row.rank).random(row.seed)
        removal = SubspaceEdit(some, 0.0) if mode == "affine" else SubspaceAblation(some)
        assert row.s_comply == pytest.approx(float(cosine_similarity(mean(val[0], removal), t_neg, dim=0)), abs=1e-4)
        assert row.kl == pytest.approx(float(kl_divergence(logits(), logits(removal)).mean()), abs=1e-4)
        if mode == "affine":
            reached = mean(val[1], SubspaceEdit(some, 1.0))
            assert row.s_refuse == pytest.approx(float(cosine_similarity(reached, t_pos, dim=0)), abs=1e-4)
        else:
            assert np.isnan(row.s_refuse)
    real, random = (found.table[found.table.kind == kind].s_comply for kind in ("subspace", "random"))
    assert real.min() > random.max()


def test_angles(plane, demo, sides):
    other = class_subspace(demo, sides, LAYER + 1, k=2)
    cosines = np.linalg.svd(plane.basis.numpy() @ other.basis.numpy().T, compute_uv=False)
    assert np.allclose(np.cos(np.deg2rad(principal_angles(plane, other))), cosines, atol=1e-6)
    assert np.allclose(principal_angles(plane, plane), 0, atol=1e-4)


def test_stacked_cells_span_their_directions(demo, sides):
    candidates = difference_in_means(*class_means(demo, sides))
    found = stacked_subspace(candidates, [(4, -1), (6, -2)])
    for cell in ((4, -1), (6, -2)):
        vector = candidates.vectors[cell]
        assert torch.allclose(found.basis.T @ (found.basis @ vector), vector, atol=1e-5)
    assert found.layer == 4 and torch.allclose(found.difference, candidates.vectors[4, -1], atol=1e-5)
    with pytest.raises(CosmicError, match=r"^vectors: of 2 one lies in the span"):
        stacked_subspace(candidates, [(4, -1), (4, -1)])


def test_som_against_a_plain_loop(rows):
    """Distances on the grid and updates written out for every neuron."""
    apart = (rows[0] - rows[1].mean(0))[:9]
    generator = torch.Generator().manual_seed(SEED)
    neurons = apart[torch.randint(len(apart), (16,), generator=generator)].numpy().copy()
    data = apart.numpy()
    for _ in range(ROUNDS):
        for i in torch.randperm(len(data), generator=generator).tolist():
            best = int(((neurons - data[i]) ** 2).sum(1).argmin())
            for n in range(16):
                steps = (n // 4 - best // 4) ** 2 + (n % 4 - best % 4) ** 2
                neurons[n] += RATE * np.exp(-steps / (2 * SIGMA**2)) * (data[i] - neurons[n])
    nearest = ((data[:, None] - neurons) ** 2).sum(-1).argmin(1)
    hits = np.bincount(nearest, minlength=16)
    expected = neurons[np.argsort(-hits, kind="stable")[:3]]
    assert np.allclose(som_neurons(apart, 3).numpy(), expected, atol=1e-9)


def test_som_subspace(demo, sides):
    found = class_subspace(demo, sides, LAYER, k=3, method="som")
    assert found.rank == 3 and found.method == "som"
    assert float(found.basis[0] @ found.difference) > 0.5 * float(found.difference.norm())


def test_random_is_as_large_and_elsewhere(plane):
    found = plane.random(3)
    assert found.rank == K and principal_angles(plane, found).min() > 45
    assert torch.equal(found.basis, plane.random(3).basis) and not torch.equal(found.basis, plane.random(4).basis)


def test_bad_input(demo, sides, plane):
    zero = torch.zeros(4, dtype=torch.float64)
    for call, said in (
        (lambda: class_subspace(demo, sides, LAYER, k=2, method="ica"), "method: found 'ica'"),
        (lambda: class_subspace(demo, sides, 8, k=2), "layer, position: found 8 and -1"),
        (lambda: class_subspace(demo, sides, LAYER, k=25), "k: found 25, and pca gives 24 directions"),
        (lambda: class_subspace(demo, sides, LAYER, k=17, method="som"), "k: found 17, and som gives"),
        (lambda: plane.first(4), "k: found 4, and the subspace has rank 3"),
        (
            lambda: Subspace(torch.ones(2, 4, dtype=torch.float64), zero, zero, 1, "x"),
            "subspace: its rows are not orthonormal",
        ),
        (lambda: Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 1, "x"), "subspace: the basis has width 3"),
        (lambda: measure_ranks(demo, sides, plane, ()), "evaluation_layers: found"),
        (lambda: measure_ranks(demo, sides, plane, (8,)), "evaluation_layers: found"),
    ):
        with pytest.raises(CosmicError, match=f"^{said}"):
            call()
