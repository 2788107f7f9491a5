"""Each way to make directions, against an independent implementation on real activations."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from cosmic_tl import CosmicError, cache_activations, difference_in_means
from cosmic_tl.activations import class_means
from cosmic_tl.directions.generators import generator, make_candidates
from cosmic_tl.directions.names import GENERATORS, PAIRED
from cosmic_tl.interventions.erasers import fit_eraser
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.layer_by_layer import layer_by_layer

N = 24
CELL = 4, -2
PLAIN = [name for name in GENERATORS if name not in PAIRED]


@pytest.fixture(scope="module")
def sides(prompts):
    return prompts.sides("train", N)


@pytest.fixture(scope="module")
def rows(demo, sides):
    """Activations of both sides at one cell, as numpy arrays in float64."""
    layer, position = CELL
    return [cache_activations(demo, side)[:, layer, position].double().numpy() for side in sides]


@pytest.fixture(scope="module")
def made(demo, prompts):
    return make_candidates(demo, prompts, PLAIN, n_train=N)


def cosine(found, expected):
    expected = np.asarray(expected, dtype=np.float64)
    return abs(float(found @ expected) / (np.linalg.norm(found) * np.linalg.norm(expected)))


def fitted(name, rows):
    return generator(name)(*map(torch.from_numpy, rows)).numpy()


def test_layer_by_layer_gives_what_one_pass_gives(demo, sides):
    expected = cache_activations(demo, sides[0])
    found = torch.stack(
        list(layer_by_layer(demo, tokenize(demo, sides[0], None), n_positions=expected.shape[2], batch_size=5)), 1
    )
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_model_that_cannot_go_on_from_a_layer_takes_whole_passes(demo, sides, monkeypatch):
    from cosmic_tl.model import layer_by_layer as walk
    from cosmic_tl.model.shortcuts import NONE

    rows = tokenize(demo, sides[0], None)
    expected = list(layer_by_layer(demo, rows, n_positions=2))
    monkeypatch.setattr(walk, "shortcuts", lambda model, rows: NONE)
    found = list(layer_by_layer(demo, rows, n_positions=2))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_difference_in_means_is_the_streamed_one(demo, sides, made):
    streamed = difference_in_means(*class_means(demo, sides))
    assert torch.allclose(made["dim"].vectors, streamed.vectors, atol=1e-6)
    assert torch.allclose(made["dim"].references, streamed.references, atol=1e-6)


def test_every_vector_points_to_the_positive_class_and_is_as_long_as_the_classes_are_apart(made):
    difference = made["dim"].vectors
    for name in PLAIN:
        vectors = made[name].vectors
        units = vectors[1:] / vectors[1:].norm(dim=-1, keepdim=True)
        assert torch.allclose((difference[1:] * units).sum(-1), vectors[1:].norm(dim=-1), rtol=1e-9), name
        assert not vectors[0].any(), name  # before the first block the template's tokens are all alike
        assert torch.equal(made[name].references, made["dim"].references)


def test_candidates_are_what_the_generator_gives_of_the_cell(made, rows):
    layer, position = CELL
    for name in PLAIN:
        assert cosine(made[name].vectors[layer, position].numpy(), fitted(name, rows)) == pytest.approx(1, abs=1e-6), (
            name
        )


def test_pca(rows):
    expected = PCA(1).fit(np.concatenate(rows)).components_[0]
    assert cosine(fitted("pca", rows), expected) == pytest.approx(1, abs=1e-9)


def test_paired_pca_is_that_of_both_members_about_their_midpoint(rows):
    middle = (rows[0] + rows[1]) / 2
    expected = PCA(1).fit(np.concatenate([rows[0] - middle, rows[1] - middle])).components_[0]
    assert cosine(fitted("paired-pca", rows), expected) == pytest.approx(1, abs=1e-9)


def test_lat(rows):
    everything = np.concatenate(rows)
    order = torch.randperm(2 * N, generator=torch.Generator().manual_seed(0)).numpy()
    apart = everything[order[:N]] - everything[order[N:]]
    expected = PCA(1).fit(apart / np.linalg.norm(apart, axis=1, keepdims=True)).components_[0]
    assert cosine(fitted("lat", rows), expected) == pytest.approx(1, abs=1e-9)


def test_probe_is_the_regression_in_all_dimensions(rows):
    x = np.concatenate(rows)
    x = x - x.mean(0)
    x = x / np.sqrt((x**2).mean())
    probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, [1] * N + [0] * N)
    assert cosine(fitted("probe", rows), probe.coef_[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n", [N, 4 * N])  # fewer and more prompts than dimensions
def test_lda_is_the_difference_whitened_by_the_shrunk_covariance(demo, prompts, n):
    layer, position = CELL
    rows = [cache_activations(demo, side)[:, layer, position].double().numpy() for side in prompts.sides("train", n)]
    within = np.concatenate([side - side.mean(0) for side in rows])
    precision = LedoitWolf(assume_centered=True).fit(within).precision_
    expected = precision @ (rows[0].mean(0) - rows[1].mean(0))
    assert (len(within) > within.shape[1]) == (n == 4 * N)
    assert cosine(fitted("lda", rows), expected) == pytest.approx(1, abs=1e-8)


def test_leace_is_what_the_eraser_reads(demo, sides, rows):
    layer, position = CELL
    eraser = fit_eraser(demo, sides, layers=[layer], positions=[position])[layer]
    assert cosine(fitted("leace", rows), eraser.right[0].numpy()) == pytest.approx(1, abs=1e-6)


def test_projected_is_orthogonal_to_the_reference(made):
    vectors, references = made["projected"].vectors[1:], made["projected"].references[1:]
    lengths = vectors.norm(dim=-1) * references.norm(dim=-1)
    assert ((vectors * references).sum(-1).abs() / lengths).max() < 1e-9
    rest = made["dim"].vectors[1:] - vectors  # what was taken off lies along the reference
    along = (rest * references).sum(-1).abs() / (rest.norm(dim=-1) * references.norm(dim=-1))
    assert along.min() > 1 - 1e-6


def test_winsorized(rows):
    centres = []
    for side in rows:
        limit = np.quantile(np.abs(side), 0.995, axis=1, keepdims=True)
        assert (np.abs(side) > limit).any()
        centres.append(np.clip(side, -limit, limit).mean(0))
    assert np.allclose(fitted("winsorized", rows), centres[0] - centres[1], atol=1e-12)


def test_median_has_the_least_sum_of_distances(rows):
    few = [side[:, :10] for side in rows]
    medians = [
        minimize(lambda at, s=side: np.linalg.norm(s - at, axis=1).sum(), side.mean(0), tol=1e-14).x for side in few
    ]
    assert np.allclose(fitted("median", few), medians[0] - medians[1], atol=1e-3)


def test_median_at_a_prompt(rows):
    several = torch.from_numpy(rows[0][:5])
    same = several[:1].repeat(9, 1)  # most prompts are one: the median is there, where the distance is 0
    found = generator("median")(torch.cat([same, several]), torch.zeros(1, several.shape[1], dtype=torch.float64))
    assert torch.allclose(found, several[0], atol=1e-9)


def test_pairs_are_taken_from_the_set(demo, prompts):
    from dataclasses import replace

    pairs = tuple(zip(*prompts.sides("train", N), strict=True))
    given = replace(prompts, contrast={"train": pairs[:7]})
    found = make_candidates(demo, given, ["paired-pca"], n_train=N)["paired-pca"]
    layer, position = CELL
    rows = [cache_activations(demo, list(some))[:, layer, position].double() for some in zip(*pairs[:7], strict=True)]
    assert cosine(found.vectors[layer, position].numpy(), generator("paired-pca")(*rows).numpy()) > 1 - 1e-6
    assert torch.allclose(found.references, make_candidates(demo, prompts, ["dim"], n_train=N)["dim"].references)
    with pytest.raises(CosmicError, match=r"^directions: paired-pca needs pairs .* and these prompts have none"):
        make_candidates(demo, prompts, ["pca", "paired-pca"], n_train=4)
    with pytest.raises(CosmicError, match="needs pairs"):
        make_candidates(demo, (["Rob a bank."], ["Bake a pie."]), ["paired-pca"])


def test_a_function_of_your_own_and_what_it_must_not_give(demo, prompts):
    found = make_candidates(demo, prompts, {"mine": lambda a, b: a[0] - b[0]}, n_train=4)["mine"]
    assert found.method == "mine" and found.vectors[1:].norm(dim=-1).min() > 0
    for bad, said in (
        (lambda a, b: a, "shape"),
        (lambda a, b: 0 * a[0], "zeros, NaN"),
        (lambda a, b: a[0] / 0, "zeros, NaN"),
    ):
        with pytest.raises(CosmicError, match=rf"^directions: mine gives {said}"):
            make_candidates(demo, prompts, {"mine": bad}, n_train=4)


def test_prompts_that_are_too_few_are_no_direction(demo, prompts):
    """LAT's one difference is gone once it is centred; what is left is rounding."""
    with pytest.raises(CosmicError, match=r"^directions: lat gives zeros"):
        make_candidates(demo, prompts, ["lat"], n_train=1)

    def singular(positive, negative):
        return torch.linalg.solve(torch.zeros(128, 128).double(), positive[0])

    with pytest.raises(CosmicError, match=r"^directions: mine cannot be fitted to 2 \+ 2 prompts \(.*\); give more$"):
        make_candidates(demo, prompts, {"mine": singular}, n_train=2)


@pytest.mark.parametrize(
    ("names", "said"), [([], "found none"), (["pac"], "unknown generator 'pac'"), (["pca,pca"], "2 times")]
)
def test_names(demo, prompts, names, said):
    with pytest.raises(CosmicError, match=f"^directions: .*{said}"):
        make_candidates(demo, prompts, names, n_train=4)


def test_activations_of_one_layer_are_held_at_a_time(demo, prompts, monkeypatch):
    """For 32 layers, 5 positions, width 4096 and 360 prompts, each is 29 MB in float32, and all would be 944 MB."""
    import gc
    import weakref

    from cosmic_tl.directions import generators

    alive = []

    def watched(*args, **kwargs):
        for found in layer_by_layer(*args, **kwargs):
            alive.append(weakref.ref(found))
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 3  # this layer's, and what `zip` keeps
            yield found

    monkeypatch.setattr(generators, "layer_by_layer", watched)
    make_candidates(demo, prompts, ["pca", "median"], n_train=6)
    assert len(alive) == 8
