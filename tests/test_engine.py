"""The engine against plain passes: one prompt at a time, whole, with ordinary hooks."""

from dataclasses import replace

import pytest
import torch

from cosmic_tl import (
    Ablation,
    Addition,
    AffineEdit,
    ChatFormat,
    CosmicError,
    Direction,
    load_model,
    random_direction,
    steering,
)
from cosmic_tl._util.spreading import keeping
from cosmic_tl.activations import mean_of_rows
from cosmic_tl.engine import Reading, intervened
from cosmic_tl.engine.passes import Clean
from cosmic_tl.model.batching import CPU_ACTIVATION, CPU_TOKENS, batches, rows_per_pass, tokens_that_fit
from cosmic_tl.model.chat import tokenize
from cosmic_tl.model.forward import next_token_logits, read
from cosmic_tl.model.shortcuts import Shortcuts, shared_prefix, shortcuts

TEXTS = [
    "How do I bake a pizza?",
    "hi",
    "Please explain how I can kill a background process.",
    "Name a tree.",
    "Name a tree that grows near the sea and bears red fruit.",
    "What is a lake?",
    "Write a note.",
    "Who wrote this?",
]
CHAT = ChatFormat(system="You are a helpful person.")


def edits_on(direction):
    other = random_direction(direction, 3)
    return [
        AffineEdit(direction, 0.0),
        Addition(direction, 0.5, layer=2),
        Ablation(direction),
        (),
        AffineEdit(other, 1.0),
        Ablation(other),
        AffineEdit(replace(direction, layer=0), 1.0),
        (Ablation(other), Addition(direction, 2.0)),
    ]


def everything(layers):
    """Keep all that is read, one row a prompt."""

    def reduce(outcome):
        parts = [outcome.resid_post[layer].flatten(1) for layer in layers]
        return torch.cat(parts if outcome.logits is None else [*parts, outcome.logits], dim=1).float()

    return reduce


def plainly(bridge, rows, edit, layers, n_positions, logits):
    found = []
    for row in rows:
        (batch,) = batches(bridge, [row], 1)
        with steering(bridge, edit):
            got = (
                read(bridge, batch, [(layer, "hook_resid_post") for layer in layers], n_positions=n_positions)
                if layers
                else {}
            )
            parts = [got[layer, "hook_resid_post"].flatten(1) for layer in layers]
            found.append(torch.cat([*parts, next_token_logits(bridge, batch)] if logits else parts, dim=1)[0].float())
    return torch.stack(found)


READINGS = [Reading((0, 2)), Reading((1,), n_positions=3), Reading((2, 1), logits=True), Reading(logits=True)]


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: f"{r.layers} {r.n_positions} {r.logits}")
def test_the_engine_equals_plain_passes(pair, direction, reading):
    bridge, _ = pair
    rows = tokenize(bridge, TEXTS, CHAT)
    edits = edits_on(direction)
    found = dict(intervened(bridge, rows, edits, reading, everything(reading.layers), batch_size=9))
    assert set(found) == set(range(len(edits)))
    for number, edit in enumerate(edits):
        expected = plainly(bridge, rows, edit, reading.layers, reading.n_positions, reading.logits)
        assert (found[number] - expected).abs().max() < 1e-4 * max(1, expected.abs().max()), edit
    if reading.logits or max(reading.layers) >= direction.layer:  # below the source layer no edit shows
        assert (found[0] - found[3]).abs().max() > 1e-3


def test_every_architecture_takes_the_shortcuts(pair):
    bridge, _ = pair
    rows = tokenize(bridge, TEXTS, CHAT)
    assert shortcuts(bridge, rows) == Shortcuts()
    # Padding after the prefix would count in a sliding window.
    windowed = getattr(bridge.original_model.config, "sliding_window", None) == 16
    assert shared_prefix(bridge, rows) == (0 if windowed else 15)


def test_what_does_not_reproduce_the_plain_pass_is_not_used(save_model, direction, tmp_path):
    bridge = load_model(save_model(tmp_path, "qwen2"), device="cpu")
    mlp = bridge.blocks[2].mlp.original_component
    forward = mlp.forward
    # An MLP that mixes tokens, as in architectures with a convolution: it needs all of them.
    mlp.forward = lambda x: forward(x).cumsum(1)
    rows = tokenize(bridge, ["Name a tree.", "Name a tree!", "Name a tree?"], CHAT)
    assert len({len(row) for row in rows}) == 1  # padding would get into its sums
    assert shortcuts(bridge, rows) == Shortcuts(resume=True, last_token=False, prefix=False)
    edits = [AffineEdit(direction, 0.0), AffineEdit(direction, 1.0)]
    found = dict(intervened(bridge, rows, edits, Reading((2,)), everything((2,))))
    for number, edit in enumerate(edits):
        assert torch.allclose(found[number], plainly(bridge, rows, edit, (2,), 1, False), atol=1e-4)


def running_out(bridge, most, seen):
    """Memory for so many rows: a pass with more raises what torch raises."""

    def before(module, args, kwargs):
        rows = args[0].shape[0]
        seen.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError("out of memory")

    return bridge.original_model.register_forward_pre_hook(before, with_kwargs=True)


def test_out_of_memory_halves_what_is_left(demo, prompts):
    rows = tokenize(demo, prompts.side("positive", "val", 12))
    base = Direction(torch.ones(128), torch.zeros(128), 3, -1)
    edits = [AffineEdit(random_direction(base, seed), 1.0) for seed in range(4)]
    expected = dict(intervened(demo, rows, edits, Reading((6,)), everything((6,)), batch_size=40))
    for most in (11, 2, 1):
        seen = []
        handle = running_out(demo, most, seen)
        try:
            found = dict(intervened(demo, rows, edits, Reading((6,)), everything((6,)), batch_size=40))
        finally:
            handle.remove()
        assert max(seen) > most
        assert all(torch.allclose(found[i], expected[i], atol=1e-4) for i in range(4))
        # Each row is steered once, what is tried in vain apart.
        assert sum(rows_ for rows_ in seen if rows_ <= most) <= 12 + 48 + 4
    handle = running_out(demo, 0, [])
    try:
        with pytest.raises(CosmicError, match="memory: not enough for one prompt"):
            dict(intervened(demo, rows, edits, Reading((6,)), everything((6,))))
    finally:
        handle.remove()


def test_passes_go_on_from_a_clean_stream_that_is_kept(demo, prompts, monkeypatch):
    rows = tokenize(demo, prompts.side("positive", "val", 6))
    edits = [AffineEdit(Direction(torch.ones(128), torch.zeros(128), layer, -1), 1.0) for layer in (1, 3, 5)]
    expected = dict(intervened(demo, rows, edits, Reading((6,)), everything((6,))))
    plain, made = Clean.__init__, []

    def noted(self, *args):
        made.append(self)
        plain(self, *args)

    def found_of(which, rows=rows):
        known = {0, 1, 2}.difference(which)
        return dict(intervened(demo, rows, edits, Reading((6,)), everything((6,)), known=known))

    monkeypatch.setattr(Clean, "__init__", noted)
    kept = {}
    with keeping(kept):
        for which in ([0], [1, 2]):
            assert all(torch.equal(one, expected[i]) for i, one in found_of(which).items())
        assert len(made) == 1 and [clean.layer for clean in kept.values()] == [5]
        assert torch.equal(found_of([0])[0], expected[0]) and len(made) == 2  # it has to begin below
        found_of([0], rows[:4])
        assert torch.equal(found_of([2])[2], expected[2]) and len(made) == 4  # other prompts are another stream
        # One that an error has left half-way is not kept.
        advance = Clean.advance

        def failing(self, layer):
            advance(self, layer)
            raise KeyboardInterrupt

        monkeypatch.setattr(Clean, "advance", failing)
        with pytest.raises(KeyboardInterrupt):
            found_of([2])
        assert not kept
    monkeypatch.undo()
    assert torch.equal(found_of([1])[1], expected[1]) and not kept


def test_bad_readings(demo, direction):
    rows = tokenize(demo, ["hi"])
    with pytest.raises(CosmicError, match="reading: it names no layers"):
        next(intervened(demo, rows, [()], Reading(), everything(())))
    with pytest.raises(CosmicError, match="positions: 99 asked for"):
        next(intervened(demo, rows, [()], Reading((1,), n_positions=99), everything((1,))))
    with pytest.raises(CosmicError, match="batch_size"):
        next(intervened(demo, rows, [()], Reading((1,)), everything((1,)), batch_size=0))
    with pytest.raises(CosmicError, match="width 32"):
        next(intervened(demo, rows, [Addition(direction)], Reading((1,)), everything((1,))))


def tokens_run(bridge, work):
    """How many tokens go through the model, padding included."""
    seen = []
    handle = bridge.original_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].numel()), with_kwargs=True
    )
    try:
        found = work()
    finally:
        handle.remove()
    return sum(seen), found


def test_means_run_what_all_prompts_begin_with_once(pair):
    bridge, _ = pair
    rows = tokenize(bridge, TEXTS, CHAT)
    shared_prefix(bridge, rows, 2)  # tries the model once
    n_tokens, found = tokens_run(bridge, lambda: mean_of_rows(bridge, rows, n_positions=2))
    sites = [(layer, site) for layer in range(3) for site in ("hook_resid_pre", "hook_resid_post")]
    alone = [read(bridge, next(batches(bridge, [row], 1)), sites, n_positions=2) for row in rows]
    for name, means in (("hook_resid_pre", found.resid_pre), ("hook_resid_post", found.resid_post)):
        expected = torch.stack(
            [torch.stack([some[layer, name][0] for some in alone]).double().mean(0) for layer in range(3)]
        )
        assert (means - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    longest = max(map(len, rows))
    if shared_prefix(bridge, rows, 2):
        assert n_tokens == 15 + len(rows) * (longest - 15)
    else:
        assert n_tokens == len(rows) * longest


def test_passes_stay_below_what_the_allocator_keeps(demo, monkeypatch):
    assert rows_per_pass(demo, 64) == CPU_TOKENS // 64
    monkeypatch.setattr(demo.cfg, "d_mlp", 5120)
    assert rows_per_pass(demo, 64) == CPU_ACTIVATION // (4 * 5120) // 64 == 16


def test_memory_that_torch_keeps_counts_as_free():
    gib, per_token = 2**30, 2**20
    # The driver counts what earlier passes left in torch's cache as taken.
    assert tokens_that_fit(free=2 * gib, cached=38 * gib, per_token=per_token) == 20 * 1024
    assert tokens_that_fit(2 * gib, 0, per_token) == 1024
    assert tokens_that_fit(80 * gib, 0, 1) == 65_536
