"""Inside other hooks: the engine gives what plain passes give there, and what is tried of a model is tried without them."""

import pytest
import torch

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    CosmicError,
    CosmicOptions,
    Direction,
    load_model,
    random_direction,
    select_cosmic,
    steering,
)
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.model.batching import batches, masks_padding
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.components import check_additive
from cosmic_tl.model.forward import next_token_logits, read
from cosmic_tl.model.hooks import probed
from cosmic_tl.model.shortcuts import Shortcuts, shared_prefix, shortcuts

BASE = Direction(torch.randn(128, generator=torch.Generator().manual_seed(1)), torch.ones(128), 3, -1)
MASK = torch.zeros(1, 40, dtype=torch.bool)
MASK[0, [1, 2, 5, 11, 14]] = True
EDITS = [AffineEdit(BASE, 0.0), Addition(random_direction(BASE, 2), 2.0, layer=5), Ablation(BASE), ()]
SCOPES = ["all", "prompt", "completion", MASK]


def plainly(model, row, edit, reading):
    (batch,) = batches(model, [row], 1)
    with steering(model, edit):
        found = read(model, batch, [(at, "hook_resid_post") for at in reading.layers])
        return torch.cat(
            [*(found[at, "hook_resid_post"][0, -1] for at in reading.layers), next_token_logits(model, batch)[0]]
        )


def keep(outcome):
    return torch.cat([*(x[:, -1] for x in outcome.resid_post.values()), outcome.logits], dim=1)


@pytest.fixture(scope="module")
def rows(demo, prompts):
    found = tokenize(demo, prompts.side("positive", "val", 30))
    assert shared_prefix(demo, found) > 0 and len({len(row) for row in found}) > 1
    return found


@pytest.mark.parametrize("tokens", SCOPES, ids=["all", "prompt", "completion", "mask"])
@pytest.mark.parametrize("make", [AffineEdit, Addition, lambda d, alpha, tokens: Ablation(d, tokens)])
def test_the_engine_equals_plain_passes_inside_steering(demo, rows, tokens, make):
    around = make(random_direction(BASE, 7), 3.0, tokens=tokens)
    reading = Reading((4, 7), logits=True)
    clean = plainly(demo, rows[0], (), reading)
    with steering(demo, around):
        found = dict(intervened(demo, rows, EDITS, reading, keep))
        for number, edit in enumerate(EDITS):
            for row in (0, 11, 29):
                expected = plainly(demo, rows[row], edit, reading)
                assert torch.allclose(found[number][row], expected, atol=1e-3, rtol=1e-4)
        moved = (plainly(demo, rows[0], (), reading) - clean).abs().max()
    assert moved == 0 if tokens == "completion" else moved > 1e-3


def test_the_users_own_hooks_are_seen_where_they_were(demo, rows):
    """A hook on one place of the sequence, which the beginning that all prompts share would hide from it."""

    def on_the_sixth(x, hook):
        x = x.clone()
        x[:, 5] += 3 * BASE.unit
        return x

    reading = Reading((4, 7), logits=True)
    same_length = [row for row in rows if len(row) == len(rows[0])]
    with demo.hooks(fwd_hooks=[("blocks.2.hook_in", on_the_sixth)]):
        found = dict(intervened(demo, same_length, EDITS, reading, keep))
        for number, edit in enumerate(EDITS):
            assert torch.allclose(found[number][0], plainly(demo, same_length[0], edit, reading), atol=1e-3, rtol=1e-4)


def test_shortcuts_are_taken_where_every_token_is_edited_alike(demo, rows):
    with steering(demo, AffineEdit(BASE, 0.0)):
        assert shortcuts(demo, rows) == Shortcuts()
    with steering(demo, AffineEdit(BASE, 0.0, tokens="prompt")):
        assert shortcuts(demo, rows) == Shortcuts(last_token=False, prefix=False)
        assert shared_prefix(demo, rows) == 0
    assert shortcuts(demo, rows) == Shortcuts()


def test_a_selection_inside_a_scope_is_one_inside_its_plain_equal(demo, prompts):
    """On prompts alone, scope "prompt" is all tokens."""
    options, around = CosmicOptions(n_train=8, n_val=4, n_positions=2, max_kl=50.0), random_direction(BASE, 7)
    tables = []
    for tokens in ("prompt", "all"):
        with steering(demo, AffineEdit(around, 3.0, tokens=tokens)):
            tables.append(select_cosmic(demo, prompts, options).table.score)
    assert torch.allclose(*(torch.tensor(scores.to_numpy()) for scores in tables), atol=1e-4, equal_nan=True)


def test_a_mask_of_several_rows_around_is_refused(demo, rows):
    with steering(demo, AffineEdit(BASE, 0.0, tokens=MASK.repeat(2, 1))), pytest.raises(CosmicError, match="one row"):
        dict(intervened(demo, rows[:2], EDITS, Reading((7,)), keep))


def test_padding_does_not_move_tokens_under_a_mask(demo):
    rows = [[5, 6, 7], [5, 6, 7, 8, 9, 10]]
    with steering(demo, AffineEdit(BASE, 3.0, tokens=MASK)):
        assert [batch.rows for batch in batches(demo, rows, 2)] == [(0,), (1,)]
        assert not masks_padding(demo)
    assert [batch.rows for batch in batches(demo, rows, 2)] == [(0, 1)]


def test_ablation_is_tried_without_the_hooks_around():
    """An edit of what a block adds makes its output another sum; that is the user's doing, and not the model's."""
    model = load_model("demo", device="cpu")
    seen = []
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode(), steering(model, AffineEdit(BASE, 3.0, part="block")):
        around = model(ids)
        with model.hooks(fwd_hooks=[("blocks.4.hook_in", lambda x, hook: seen.append(hook.name))]):
            check_additive(model)
            assert not seen  # nor does a hook that only looks see what is tried
            with steering(model, Ablation(random_direction(BASE, 4))):
                assert not torch.allclose(model(ids), around)
            assert torch.equal(model(ids), around)  # they were all put back
        assert seen
    with torch.inference_mode():
        assert not torch.allclose(model(ids), around)


def test_what_was_tried_is_tried_again_with_other_weights_and_in_another_dtype(demo):
    model, tried = load_model("demo", device="cpu"), []

    def times():
        return len([probed(model, "an example", lambda: tried.append(model.cfg.dtype)), tried][1])

    assert (times(), times()) == (1, 1)
    with torch.no_grad():
        model.original_model.model.norm.weight.mul_(1.1)
    assert (times(), times()) == (2, 2)
    model.to(torch.bfloat16)
    assert (times(), times()) == (3, 3)
    probed(demo, "an example", lambda: tried.append(demo.cfg.dtype))
    assert len(tried) == 4
