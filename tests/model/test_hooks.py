"""Hooks that the library attaches do what TransformerLens's own context does, and are gone afterwards."""

import pytest
import torch

from cosmic_tl.model.forward import next_token_logits, tiny_batch
from cosmic_tl.model.hooks import hooked, hooks_around

NAMES = [
    "blocks.2.hook_in",
    "blocks.3.hook_resid_mid",
    "blocks.5.attn.o.hook_in",
    "blocks.5.mlp.hook_out",
    "blocks.7.hook_out",
]


def double(x, hook):
    return 2 * x


@torch.inference_mode()
def test_a_pass_is_the_same_as_in_its_own_context(demo):
    hooks = [(name, double) for name in NAMES]
    with hooked(demo, hooks):
        found = next_token_logits(demo, tiny_batch(demo))
    with demo.hooks(fwd_hooks=hooks):
        expected = next_token_logits(demo, tiny_batch(demo))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, next_token_logits(demo, tiny_batch(demo)))


def stopped(model):
    with hooked(model, [(name, double) for name in NAMES]):
        assert len(hooks_around(model)) == len(NAMES) + 1
        raise KeyboardInterrupt


def test_only_its_own_hooks_are_taken_off(demo):
    level = demo.context_level
    with demo.hooks(fwd_hooks=[(NAMES[0], double)]):
        with pytest.raises(KeyboardInterrupt):
            stopped(demo)
        assert hooks_around(demo) == [double]
        assert not demo.get_hook_point(NAMES[1])._forward_hooks
        with hooked(demo, [(NAMES[0], double)]):
            demo.reset_hooks()  # which the user may do
        assert hooks_around(demo) == []
    assert demo.context_level == level


@pytest.mark.parametrize("name", ["blocks.99.hook_in", "blocks.2", ""])
def test_an_unknown_name_is_refused_and_nothing_stays(demo, name):
    with pytest.raises(KeyError, match="no hook point"), hooked(demo, [(NAMES[0], double), (name, double)]):
        pass
    assert hooks_around(demo) == []
    assert demo.context_level == 0
