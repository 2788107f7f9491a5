"""Erasers on the demo model's activations: LEACE's guarantee, the package's own results, optimal transport."""

import sys
from dataclasses import replace

import pytest
import torch
from concept_erasure import LeaceEraser, optimal_linear_shrinkage
from sklearn.linear_model import LogisticRegression

from cosmic_tl import (
    AffineEdit,
    CosmicError,
    cache_activations,
    complete,
    difference_in_means,
    mean_activations,
    steering,
)
from cosmic_tl.interventions.edits import MapEdit
from cosmic_tl.interventions.erasers import fit_eraser, fit_quadratic_editor, fit_scrubber
from cosmic_tl.judges.substring import refusal_rate

LAYERS = (2, 3, 4)


@pytest.fixture(scope="module")
def sides(prompts):
    return [prompts.side(side, "train") for side in ("positive", "negative")]


@pytest.fixture(scope="module")
def stream(demo, sides):
    """Activations `[prompt, layer, position, d_model]` of either side, read by another path than the fit's."""
    return [cache_activations(demo, side).double() for side in sides]


@pytest.fixture(scope="module")
def erasers(demo, sides):
    """By method, with and without shrinkage, and layer."""
    return {
        (method, shrinkage): fit_eraser(demo, sides, layers=LAYERS, method=method, shrinkage=shrinkage)
        for method in ("leace", "orth")
        for shrinkage in (True, False)
    }


@pytest.fixture(scope="module")
def labelled(stream):
    """Samples and labels at the last position of layer 4."""
    positive, negative = (some[:, 4, -1] for some in stream)
    return torch.cat([positive, negative]), torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])


def class_means(x, z):
    return x[z == 1].mean(0), x[z == 0].mean(0)


def covariance(x):
    return torch.cov(x.T)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", ["leace", "orth"])
def test_class_means_become_equal(erasers, stream, method):
    for layer, eraser in erasers[method, True].items():
        means = [some[:, layer, -1].mean(0) for some in stream]
        assert relative(eraser.reference + eraser.vector, means[0]) < 1e-6
        assert relative(eraser.reference, means[1]) < 1e-6
        positive, negative = (eraser.map()(some[:, layer, -1]).mean(0) for some in stream)
        assert relative(positive, negative) < 1e-6
        assert relative(*means) > 1e-2
        # Erasure keeps the mean of all; an edit puts both classes where the negative or the positive mean reads.
        assert relative((positive + negative) / 2, (means[0] + means[1]) / 2) < 1e-6
        for alpha, mean in ((0.0, means[1]), (1.0, means[0])):
            found = eraser.map(alpha)(stream[0][:, layer, -1])
            size = float((stream[0][:, layer, -1] @ eraser.right[0]).abs().max())
            assert float(((found - mean) @ eraser.right[0]).abs().max()) < 1e-6 * size


@pytest.mark.parametrize("method", ["leace", "orth"])
@pytest.mark.parametrize("shrinkage", [True, False])
def test_equal_to_the_package(erasers, labelled, method, shrinkage):
    x, z = labelled
    expected = LeaceEraser.fit(x, z, method=method, shrinkage=shrinkage)(x)
    found = erasers[method, shrinkage][4].map()(x)
    assert found.dtype == torch.float64
    assert relative(found, expected) < 1e-6


def test_a_linear_probe_falls_to_chance(demo, erasers, prompts, labelled):
    eraser = erasers["leace", True][4]
    x, z = labelled
    probe = LogisticRegression(max_iter=5000)
    held_out = [prompts.side(side, "test") for side in ("positive", "negative")]
    unseen = torch.cat([cache_activations(demo, side)[:, 4, -1].double() for side in held_out])
    truth = torch.cat([torch.ones(len(held_out[0])), torch.zeros(len(held_out[1]))])
    assert probe.fit(x, z).score(unseen, truth) > 0.95
    erased = eraser.map()(x)
    # The guarantee is about the samples that the eraser was fit on; what was never seen comes near.
    assert abs(probe.fit(erased, z).score(erased, z) - 0.5) < 0.02
    assert abs(probe.score(eraser.map()(unseen), truth) - 0.5) < 0.1


def test_leace_changes_least(erasers, labelled):
    x, _ = labelled
    leace, orth = (erasers[method, False][4] for method in ("leace", "orth"))

    def change(eraser):
        return float((eraser.map()(x) - x).pow(2).sum(-1).mean())

    assert 0 < change(leace) < change(orth)
    # Any other map that erases reads along another vector with the same product with `r`; each changes more.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 128, generator=generator, dtype=torch.float64) * leace.right.norm() / 10
    unit = leace.vector / leace.vector.norm()
    for row in noise - (noise @ unit)[:, None] * unit:
        other = replace(leace, right=leace.right + row)
        assert relative(other.map()(leace.reference + leace.vector), other.map()(leace.reference)) < 1e-6
        assert change(other) > change(leace)


def test_the_orthogonal_eraser_is_affine_concept_editing(demo, erasers, sides):
    means = [mean_activations(demo, side) for side in sides]
    direction = difference_in_means(*means).direction(4, -1, demo)
    eraser = erasers["orth", True][4]
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    for alpha in (0.0, 0.5, 1.0):
        assert relative(eraser.map(alpha)(x), AffineEdit(direction, alpha).map(x)) < 1e-5


def test_several_positions_are_samples_of_their_own(demo, sides, stream):
    eraser = fit_eraser(demo, sides, layers=[4], positions=[-3, -1])[4]
    x = torch.cat([some[:, 4, [-3, -1]].flatten(0, 1) for some in stream])
    z = torch.cat([torch.ones(2 * len(stream[0])), torch.zeros(2 * len(stream[1]))])
    positive, negative = class_means(eraser.map()(x), z)
    assert relative(positive, negative) < 1e-6
    assert relative(eraser.mean, x.mean(0)) < 1e-6


def test_batches_change_nothing(demo, sides):
    one, other = (fit_eraser(demo, [side[:60] for side in sides], layers=[4], batch_size=size)[4] for size in (120, 7))
    for name in ("left", "right", "mean", "vector", "reference"):
        assert relative(getattr(one, name), getattr(other, name)) < 1e-4  # the activations are float32


def test_an_eraser_steers(demo, erasers, prompts):
    leace = erasers["leace", True][3]
    harmful, harmless = (prompts.side(side, "test", 25) for side in ("positive", "negative"))
    assert refusal_rate(complete(demo, harmful, max_new_tokens=16)).value > 0.9
    assert refusal_rate(complete(demo, harmful, MapEdit(leace.map(0.0), 3), max_new_tokens=16)).value < 0.1
    assert refusal_rate(complete(demo, harmless, max_new_tokens=16)).value < 0.1
    assert refusal_rate(complete(demo, harmless, MapEdit(leace.map(1.0), 3), max_new_tokens=16)).value > 0.9


def test_scrubbing_takes_out_what_later_layers_compute_anew(demo, sides):
    few = [side[:100] for side in sides]
    scrubber = fit_scrubber(demo, few)
    assert list(scrubber) == list(range(1, 8))
    apart = {}
    for name, erasers in (("scrubbed", scrubber), ("erased", fit_eraser(demo, few, layers=list(scrubber)))):
        edits = [MapEdit(eraser.map(), layer) for layer, eraser in erasers.items()]
        with steering(demo, edits):
            means = [mean_activations(demo, side).resid_pre[1:, -1] for side in few]
        apart[name] = (means[0] - means[1]).norm(dim=-1) / means[1].norm(dim=-1)
    assert apart["scrubbed"].max() < 1e-4  # the activations are float32
    assert apart["erased"][0] < 1e-4 and apart["erased"][1:].min() > 1e-2


def test_scrubbing_to_the_negative_class_removes_refusal(demo, sides, prompts):
    scrubber = fit_scrubber(demo, [side[:100] for side in sides], layers=[4, 2, 3], method="orth")
    assert list(scrubber) == [2, 3, 4]
    edits = [MapEdit(eraser.map(0.0), layer) for layer, eraser in scrubber.items()]
    harmful = prompts.side("positive", "test", 25)
    assert refusal_rate(complete(demo, harmful, edits, max_new_tokens=16)).value < 0.1


@pytest.mark.parametrize("source", ["positive", "negative"])
def test_the_quadratic_editor_gives_the_targets_mean_and_covariance(demo, sides, stream, source):
    start, end = (some[:, 4, -1] for some in (stream if source == "positive" else reversed(stream)))
    edit = fit_quadratic_editor(demo, sides, layers=[4], source=source, shrinkage=False)[4]
    found = edit(start)
    assert relative(found.mean(0), end.mean(0)) < 1e-6
    assert relative(covariance(found), covariance(end)) < 1e-4
    assert relative(covariance(start), covariance(end)) > 0.1
    # Optimal transport's matrix is symmetric and positive definite.
    matrix = torch.eye(128, dtype=torch.float64) - edit.right
    assert relative(matrix, matrix.T) < 1e-6
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_shrinkage_lets_few_samples_do(demo, sides, stream):
    few = [side[:60] for side in sides]
    message = r"60 samples a side leave the covariance at layer 4 singular.*shrinkage=True"
    with pytest.raises(CosmicError, match=message):
        fit_quadratic_editor(demo, few, layers=[4], shrinkage=False)
    edit = fit_quadratic_editor(demo, few, layers=[4])[4]
    # The map takes one shrunk estimate to the other.
    samples = [some[:60, 4, -1] for some in stream]
    source, target = (optimal_linear_shrinkage(torch.cov(x.T, correction=0), 60) for x in samples)
    matrix = torch.eye(128, dtype=torch.float64) - edit.right
    assert relative(matrix @ source @ matrix, target) < 1e-4
    unseen = [some[60:, 4, -1].mean(0) for some in stream]
    assert relative(edit(unseen[0]), unseen[1]) < 0.1 * relative(*unseen)


def test_the_quadratic_editor_steers(demo, sides, prompts):
    harmful, harmless = (prompts.side(side, "test", 25) for side in ("positive", "negative"))
    comply, refuse = (
        fit_quadratic_editor(demo, sides, layers=[2], source=side)[2] for side in ("positive", "negative")
    )
    assert refusal_rate(complete(demo, harmful, MapEdit(comply, 2), max_new_tokens=16)).value < 0.1
    assert refusal_rate(complete(demo, harmless, MapEdit(refuse, 2), max_new_tokens=16)).value > 0.9


def test_bad_input_is_named(demo, sides, monkeypatch):
    with pytest.raises(CosmicError, match="negative: found no prompts"):
        fit_eraser(demo, (["a"], []), layers=[4])
    with pytest.raises(CosmicError, match="counted from the end"):
        fit_eraser(demo, (["a"], ["b"]), layers=[4], positions=[0])
    with pytest.raises(CosmicError, match="at layer 4 the two sides' activations cannot be made equal"):
        fit_eraser(demo, (sides[0][:5], sides[0][:5]), layers=[4])
    with pytest.raises(CosmicError, match="layers 0 to 7"):
        fit_eraser(demo, (["a"], ["b"]), layers=[8])
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(CosmicError, match=r"pip install 'cosmic_tl\[erasure\]'"):
        fit_eraser(demo, (["a"], ["b"]), layers=[4])
