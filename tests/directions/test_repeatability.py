"""How alike the directions of fresh samples are, against fresh samples."""

import pytest
import torch

from cosmic_tl import difference_in_means, mean_activations
from cosmic_tl.activations import class_means
from cosmic_tl.directions.candidates import Candidates


def test_it_is_the_cosine_between_fresh_samples(demo, prompts):
    n, samples = 15, 8
    train = [prompts.side(side, "train", n * samples) for side in ("positive", "negative")]
    found = [
        difference_in_means(*class_means(demo, tuple(side[k * n : (k + 1) * n] for side in train)))
        for k in range(samples)
    ]
    vectors = torch.stack([one.vectors for one in found])
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    cosines = torch.einsum("alpd,blpd->ablp", unit, unit)
    pairs = cosines[torch.triu_indices(samples, samples, 1).unbind()]
    seen, expected = pairs.mean(0), torch.stack([one.repeatability for one in found]).mean(0)
    assert seen[1:].min() < 0.8 < seen[1:].max()  # there is something to tell apart
    assert (seen - expected)[2:].abs().max() < 0.02  # the first layer knows nothing but the prompts' last tokens
    assert (seen - expected)[1].abs().max() < 0.12  # where noise prevails


def test_more_prompts_make_it_what_they_are_said_to(demo, prompts):
    found = [difference_in_means(*class_means(demo, prompts.sides("train", n))) for n in (20, 160)]
    few, many = found
    cells = few.repeatability[1:] < 0.9
    assert cells.any() and (many.repeatability[1:][cells] > few.repeatability[1:][cells]).all()
    needed = many.prompts_needed(0.8)
    enough = needed <= 160
    assert ((many.repeatability >= 0.8) == enough)[1:].all()


def test_variances_are_those_of_the_prompts(demo, prompts):
    some = prompts.side("positive", "train", 9)
    every = torch.stack([mean_activations(demo, [text]).resid_pre for text in some])
    expected = every.var(0, correction=1).sum(-1)
    assert torch.allclose(mean_activations(demo, some).variance, expected, rtol=1e-4)


def test_unknown_where_it_cannot_be_known(demo):
    ones = torch.ones(2, 1, 4, dtype=torch.float64)
    given = Candidates(ones, ones, "given")
    assert given.repeatability is None and given.prompts_needed() is None
    alone = [mean_activations(demo, [text]) for text in ("Rob a bank.", "Bake a pie.")]
    assert difference_in_means(*alone).repeatability is None
    nothing = Candidates(ones, ones, "noise", noise=5 * ones[..., 0], spread=9 * ones[..., 0])
    assert nothing.repeatability.tolist() == [[0], [0]] and nothing.prompts_needed().isinf().all()
    with pytest.raises(ValueError, match="cosine: expected a number between 0 and 1, found 1"):
        nothing.prompts_needed(1.0)
