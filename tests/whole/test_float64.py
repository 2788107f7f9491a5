"""Nothing asks a device for float64, which Apple's GPUs do not have: a kind of tensor stands in for such a device."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    CosmicOptions,
    Direction,
    complete,
    mean_activations,
    pca_of_classes,
    select_cosmic,
    steering,
)
from cosmic_tl.data.behaviours import AnswerPair
from cosmic_tl.experiments.harness import BridgeLM
from cosmic_tl.metrics.answers import answer_log_odds
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.model.load import has_float64
from cosmic_tl.selection import scores
from cosmic_tl.suffixes.groups import suffix_groups
from cosmic_tl.suffixes.heads import contributions_along, head_attention


class There(Tensor):
    """A tensor on the device that stands for one without float64: all that is computed with it is there too, or on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        # A copy into a tensor on the CPU is a move to it.
        seen = [found] if func in (Tensor.__setitem__, Tensor.copy_) else [found, *tree_leaves((args, kwargs))]
        with torch._C.DisableTorchFunctionSubclass():
            if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in seen):
                raise TypeError("this device has no float64")
        return found


@contextmanager
def there(model):
    handle = model.original_model.get_input_embeddings().register_forward_hook(lambda *a: a[-1].as_subclass(There))
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def direction():
    generator = torch.Generator().manual_seed(0)
    return Direction(torch.randn(128, generator=generator), torch.randn(128, generator=generator), layer=3, position=-1)


def test_edits(demo, direction):
    (batch,) = batches(demo, tokenize(demo, ["hello", "How do I bake a pizza?"]), 2)
    for edit in (
        Addition(direction, 0.5),
        Ablation(direction),
        AffineEdit(direction),
        AffineEdit(direction, part="block"),
    ):
        with steering(demo, edit):
            plain = next_token_logits(demo, batch)
            with there(demo):
                found = next_token_logits(demo, batch)
        assert isinstance(found, There) and torch.allclose(found.as_subclass(Tensor), plain, atol=1e-4)
        moved = edit.map(torch.zeros(2, 128, device="meta"))
        assert moved.device.type == "meta" and moved.dtype == torch.float32
        with there(demo):
            assert complete(demo, ["hello"], edit, max_new_tokens=4)


def test_measurements(demo, direction, prompts):
    harmful, harmless = (prompts.side(side, "train", 3) for side in ("positive", "negative"))
    pairs = [AnswerPair("Is it okay to bake a pizza?", "Yes", "No")]
    groups = suffix_groups(demo, harmful, harmless, " x x")

    def everything():
        means = mean_activations(demo, harmful)
        plane = pca_of_classes(demo, (harmful, harmless), {"one": AffineEdit(direction)})
        odds = answer_log_odds(demo, pairs, AffineEdit(direction, 0.0))
        heads, bias = contributions_along(demo, harmful, direction)
        told = BridgeLM(demo, (), 4, ChatFormat())._loglikelihood_tokens([(None, [5, 6, 7], [8, 9])])
        return [
            means.resid_pre,
            torch.tensor(plane.points[["pc1", "pc2"]].to_numpy()),
            torch.tensor(odds.log_odds.to_numpy()),
            heads,
            bias,
            torch.tensor(head_attention(demo, groups, [(4, 0)])["mean"].to_numpy()),
            torch.tensor([told[0][0]], dtype=torch.float64),
        ]

    plain = everything()
    with there(demo):
        found = everything()
    for one, other in zip(found, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_a_selection(demo, prompts, monkeypatch):
    options = CosmicOptions(n_train=8, n_val=4)
    plain = select_cosmic(demo, prompts, options)
    monkeypatch.setattr(scores, "has_float64", lambda device: False)
    with there(demo):
        found = select_cosmic(demo, prompts, options)
    assert found.table.s_comply.tolist() == pytest.approx(plain.table.s_comply.tolist(), abs=1e-4, nan_ok=True)
    assert found.table.kl.tolist() == pytest.approx(plain.table.kl.tolist(), abs=1e-3, nan_ok=True)


def test_a_device_is_tried():
    assert has_float64(torch.device("cpu"))
    assert not has_float64(torch.device("meta"))  # nothing comes back from it
