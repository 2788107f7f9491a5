"""Matrix products by oneDNN: torch's own results up to rounding, and only where they are wanted."""

import pytest
import torch
from torch.nn.functional import linear

from cosmic_tl.model.matmul import ONEDNN, WORTH_ONEDNN, FastLinear


def by_onednn(work):
    """Whether a call goes to oneDNN, and its result."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = work()
    return any("mkldnn" in event.key for event in profile.key_averages()), found


def chance(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(**options)


@pytest.mark.parametrize("bias", [None, chance(48)], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x[:, -1:], lambda x: x.transpose(0, 1)], ids=["", "last", "turned"]
)
def test_products_are_equal_up_to_rounding(view, bias):
    x, weight = view(chance(20, 30, 64)), chance(48, 64)
    expected = linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.inference_mode(), FastLinear():
        used, found = by_onednn(lambda: linear(x, weight, bias))
    assert used == ONEDNN
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_does_not_fit_stays_as_it_was():
    weight = chance(48, 64)
    few, many = chance(WORTH_ONEDNN - 1, 64), chance(WORTH_ONEDNN, 64)
    with FastLinear():
        assert not by_onednn(lambda: linear(many, weight))[0]  # a gradient may be asked for
        with torch.inference_mode():
            assert by_onednn(lambda: linear(many, weight))[0] == ONEDNN
            used, found = by_onednn(lambda: linear(few, weight))
            double = linear(many.double(), weight.double())
    assert not used
    assert torch.equal(found, linear(few, weight))
    assert torch.equal(double, linear(many.double(), weight.double()))
    trained = torch.nn.Linear(64, 48)
    with FastLinear():
        trained(many).sum().backward()
    assert trained.weight.grad.abs().sum() > 0
