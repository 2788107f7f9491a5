"""Directions by gradient: the loss is that of the plain formulas, its gradient that of finite differences, and it falls."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from cosmic_tl import Ablation, Addition, CosmicError, complete, difference_in_means, steering
from cosmic_tl.activations import class_means
from cosmic_tl.directions import class_subspace
from cosmic_tl.experiments import refine_cone, refine_direction
from cosmic_tl.experiments.cone import mixtures, orthonormal
from cosmic_tl.experiments.descent import WEIGHTS, _part, _tasks
from cosmic_tl.metrics.likelihood import tokenize_pairs


@pytest.fixture(scope="module")
def start(demo, prompts):
    return difference_in_means(*class_means(demo, prompts.sides("train", 32))).direction(3, -1, demo)


@pytest.fixture(scope="module")
def noisy(start):
    """Half of it is noise of the same length, so that there is something to gain."""
    noise = torch.randn(128, generator=torch.Generator().manual_seed(0))
    return replace(start, vector=normalize(start.unit + normalize(noise, dim=0), dim=0) * start.norm)


def test_the_loss_is_that_of_the_plain_edits(demo, prompts, start, noisy):
    sides = [prompts.side(side, "val", 3) for side in ("positive", "negative")]
    tasks = _tasks(demo, sides, start, None, 8)
    edits = {"ablation": (0, Ablation), "addition": (1, Addition), "retention": (1, lambda d: ())}
    for name, (side, make) in edits.items():
        answers = complete(demo, sides[side], make(start), max_new_tokens=8)
        assert tasks[name] == tokenize_pairs(demo, sides[side], answers)
        edit = Addition(noisy) if name == "addition" else Ablation(noisy)
        total, n = 0.0, 0
        for head, tail in zip(*tasks[name], strict=True):
            ids = torch.tensor([head + tail])
            with torch.inference_mode():
                clean = demo(ids)[0, len(head) - 1 : -1].double().log_softmax(-1)
                with steering(demo, edit):
                    edited = demo(ids)[0, len(head) - 1 : -1].double().log_softmax(-1)
            if name == "retention":
                total += float((clean.exp() * (clean - edited)).sum())
            else:
                total -= float(edited[range(len(tail)), tail].sum())
            n += len(tail)
        with torch.no_grad():
            found = _part(demo, name, *tasks[name], noisy.unit, start, 2)
        assert float(found) == pytest.approx(total / n, abs=1e-4), name


def test_its_gradient_is_that_of_finite_differences(demo, prompts, start, noisy):
    tasks = _tasks(demo, [prompts.side(side, "val", 2) for side in ("positive", "negative")], start, None, 6)
    towards = normalize(torch.randn(128, generator=torch.Generator().manual_seed(1)), dim=0)
    for name in WEIGHTS:
        vector = noisy.unit.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_part(demo, name, *tasks[name], vector, start, 2), vector)
        with torch.no_grad():
            high, low = (float(_part(demo, name, *tasks[name], vector + e * towards, start, 2)) for e in (1e-2, -1e-2))
        assert float(gradient @ towards) == pytest.approx((high - low) / 2e-2, rel=0.05, abs=2e-3), name


def test_it_falls_and_turns_back_towards_the_concept(demo, prompts, start, noisy):
    weights = [p.clone() for p in demo.original_model.parameters()]
    found = refine_direction(
        demo, prompts, noisy, n_steps=20, check_every=10, n_train=24, n_val=6, max_new_tokens=8, batch_size=8
    )
    loss = found.table.loss
    assert found.table.step.tolist() == [0, 10, 20] and loss.min() < 0.9 * loss.iloc[0]
    assert (found.table.loss - sum(WEIGHTS[name] * found.table[name] for name in WEIGHTS)).abs().max() < 1e-6
    assert found.best.norm == pytest.approx(noisy.norm, rel=1e-5)
    assert torch.equal(found.best.reference, noisy.reference) and found.best.method.startswith("refined ")
    assert found.cosine == pytest.approx(float(found.best.unit @ noisy.unit)) and 0.3 < found.cosine < 0.9999
    assert all(torch.equal(a, b) for a, b in zip(weights, demo.original_model.parameters(), strict=True))
    assert all(p.grad is None for p in demo.original_model.parameters())
    again = refine_direction(
        demo, prompts, noisy, n_steps=10, check_every=10, n_train=24, n_val=6, max_new_tokens=8, batch_size=8
    )
    assert again.table.equals(found.table.iloc[:2])


@pytest.fixture(scope="module")
def plane(demo, prompts):
    return class_subspace(demo, prompts, 3, k=2, n_train=32)


SMALL = {"n_train": 8, "n_val": 3, "max_new_tokens": 6, "batch_size": 8, "n_samples": 1, "check_every": 3}


def test_the_loss_of_a_cone_is_that_of_its_directions(demo, prompts, plane):
    found = refine_cone(demo, prompts, plane, n_steps=1, **SMALL)
    basis = plane.basis * torch.where(plane.basis @ plane.difference < 0, -1.0, 1.0)[:, None]
    mean = replace(found.directions(1)[0], vector=plane.difference.float())
    tasks = _tasks(demo, list(prompts.sides("val", 3)), mean, None, 6)
    units = [*basis.float(), *mixtures(basis.float(), 1, torch.Generator().manual_seed(0))]
    with torch.no_grad():
        parts = [{name: float(_part(demo, name, *tasks[name], u, mean, 8)) for name in WEIGHTS} for u in units]
    losses = [sum(WEIGHTS[name] * one[name] for name in WEIGHTS) for one in parts]
    first = found.table.iloc[0]
    assert first.loss == pytest.approx((sum(losses[:2]) / 2 + losses[2]) / 2, abs=1e-5)
    assert first.worst == pytest.approx(max(losses), abs=1e-5)


def test_a_cone_does_more_with_every_mixture_than_it_did(demo, prompts, plane):
    found = refine_cone(demo, prompts, plane, n_steps=6, **SMALL)
    assert found.table.step.tolist() == [0, 3, 6] and found.table.loss.min() < 0.95 * found.table.loss.iloc[0]
    assert (found.best.basis @ found.best.basis.T - torch.eye(2)).abs().max() < 1e-6
    # The basis keeps its side: a sign that flips would turn refusal into compliance.
    assert (found.best.basis[0] @ plane.difference) > 0
    some = found.directions(8)
    weights = torch.stack([one.unit.double() for one in some]) @ found.best.basis.T
    assert (weights >= 0).all() and torch.allclose(weights.norm(dim=1), torch.ones(8).double(), atol=1e-5)
    assert all(one.norm == pytest.approx(float(plane.difference.norm()), rel=1e-5) for one in some)
    again = refine_cone(demo, prompts, plane, n_steps=3, **SMALL)
    assert again.table.equals(found.table.iloc[:2])


def test_gram_schmidt_keeps_signs_and_order():
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(2)).double()
    found, expected = orthonormal(rows), []
    for row in rows:
        for other in expected:
            row = row - (row @ other) * other
        expected.append(row / row.norm())
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)


def test_bad_input(demo, prompts, start):
    with pytest.raises(CosmicError, match=r"^n_steps: "):
        refine_direction(demo, prompts, start, n_steps=0)
    with pytest.raises(CosmicError, match=r"^positive: found too few prompts to keep 16 for validation"):
        refine_direction(demo, (["Rob a bank."], ["Bake a pie."]), start)
    with pytest.raises(CosmicError, match=r"^n_samples: "):
        refine_cone(demo, prompts, class_subspace(demo, prompts, 3, k=1, n_train=8), n_samples=0)
