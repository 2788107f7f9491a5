"""Patches by resumed passes are those of whole passes under raw hooks, one prompt and one place at a time."""

import pytest
import torch
from torch.nn.functional import normalize

from cosmic_tl import Ablation, CosmicError, Direction, load_model, steering
from cosmic_tl.engine import Reading
from cosmic_tl.model.chat import tokenize
from cosmic_tl.patching import Change, Patch, patched
from cosmic_tl.patching.change_hooks import _of_block
from tests.plain_patch import plain_patch
from tests.tiny import save


def _patches(d_model, n_layers, positions=(-1, -2, -4)):
    generator = torch.Generator().manual_seed(0)
    unit, other = normalize(torch.randn(2, d_model, generator=generator), dim=1)
    target = 3 * torch.randn(d_model, generator=generator)
    found = []
    for position in positions:
        for part in ("stream", "attention", "mlp", "block"):
            for layer in (0, n_layers // 2, n_layers - 1):
                found.append(Patch(position, (Change(layer, part, target, unit),)))
                found.append(Patch(position, (Change(layer, part, target, unit, other),)))
                found.append(Patch(position, (Change(layer, part, target),)))
            found.append(
                Patch(position, tuple(Change(layer, part, (layer + 1) * target, unit) for layer in range(n_layers)))
            )
    several = [(layer, part, at) for layer, at in ((1, -4), (1, -1), (n_layers - 1, -2)) for part in ("block", "mlp")]
    found.append(Patch(-4, tuple(Change(layer, part, target, unit, None, at) for layer, part, at in several)))
    return found


def _worst(model, rows, patches, layers, **options):
    """The largest difference from whole passes of any patch, relative to what these give."""

    def keep(outcome):
        return torch.cat(
            [*(outcome.resid_post[layer][:, -1].double() for layer in layers), outcome.logits.double()], dim=1
        )

    found = dict(patched(model, rows, patches, Reading(layers, logits=True), keep, **options))
    assert sorted(found) == list(range(len(patches)))
    worst = 0.0
    for i, patch in enumerate(patches):
        expected = torch.stack(
            [plain_patch(model.original_model, row, patch, layers, number) for number, row in enumerate(rows)]
        )
        worst = max(worst, float((found[i] - expected).abs().max() / expected.abs().max()))
    return worst


def test_they_are_what_whole_passes_give(demo, prompts):
    rows = tokenize(demo, [*prompts.side("positive", "val", 3), *prompts.side("negative", "val", 2)])
    assert len({len(row) for row in rows}) > 1
    assert _worst(demo, rows, _patches(128, 8), (4, 7), batch_size=8) < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mistral"])
def test_on_other_architectures(architecture, tmp_path):
    model = load_model(save(tmp_path, architecture), device="cpu")
    long = "hello there, how are you this morning? What would you like to eat, and who is to cook it for us?"
    rows = tokenize(model, ["hi", long])
    assert len(rows[1]) > 2 * 16  # longer than a sliding window
    assert _worst(model, rows, _patches(32, 3, (-1, -3)), (1, 2)) < 1e-4


def _parts(d_model, n_layers, n_neurons, n_prompts):
    generator = torch.Generator().manual_seed(1)
    unit, other = normalize(torch.randn(2, d_model, generator=generator), dim=1)
    target = 3 * torch.randn(d_model, generator=generator)
    each = 3 * torch.randn(n_prompts, d_model, generator=generator)
    found = []
    for position in (-1, -3):
        for layer in (0, n_layers - 1):
            for part, indices in (("attention", (0, 3)), ("mlp", (0, n_neurons - 1))):
                for index in indices:
                    found.append(Patch(position, (Change(layer, part, target, unit, index=index),)))
                    found.append(Patch(position, (Change(layer, part, target, unit, other, index=index),)))
                found.append(Patch(position, (Change(layer, part, each, index=indices[1]),)))
                found.append(Patch(position, (Change(layer, part, each, unit),)))
        found.append(Patch(position, (Change(1, "stream", each),)))
        found.append(Patch(position, (Change(1, "block", each, unit), Change(2, "attention", target, unit, index=1))))
    return found


def test_single_heads_and_neurons_and_a_target_for_each_prompt(demo, prompts, tmp_path):
    rows = tokenize(demo, [*prompts.side("positive", "val", 3), *prompts.side("negative", "val", 2)])
    assert _worst(demo, rows, _parts(128, 8, int(demo.cfg.d_mlp), 5), (4, 7), batch_size=8) < 1e-4
    model = load_model(save(tmp_path, "mistral"), device="cpu")  # grouped queries, heads wider than d_model / n_heads
    assert _worst(model, tokenize(model, ["hi", "hello there"]), _parts(32, 3, 64, 2), (1, 2)) < 1e-4


def test_groups_of_prompts_share_a_target(demo, prompts):
    rows = tokenize(demo, [*prompts.side("positive", "val", 3), *prompts.side("negative", "val", 2)])
    unit = torch.eye(128)[5]
    two, groups = torch.randn(2, 128, generator=torch.Generator().manual_seed(2)), [0, 1, 1, 0, 1]
    keep = lambda outcome: outcome.resid_post[7][:, -1]  # noqa: E731
    options = {"reading": Reading((7,)), "reduce": keep, "batch_size": 3}
    found = dict(patched(demo, rows, [Patch(-2, (Change(3, "mlp", two, unit),))], groups=groups, **options))[0]
    each = dict(patched(demo, rows, [Patch(-2, (Change(3, "mlp", one, unit),)) for one in two], **options))
    assert torch.allclose(found, torch.stack([each[group][i] for i, group in enumerate(groups)]), atol=1e-5)
    assert (each[0] - each[1]).abs().max() > 1e-2
    with pytest.raises(CosmicError, match=r"^groups: found 4, and there are 5 prompts"):
        dict(patched(demo, rows, [Patch(-2, (Change(3, "mlp", two, unit),))], groups=groups[:4], **options))


def test_heads_behind_a_norm_are_refused(tmp_path):
    model = load_model(save(tmp_path, "gemma3_text"), device="cpu")
    patch = Patch(-1, (Change(1, "attention", torch.zeros(32), index=0),))
    with pytest.raises(CosmicError, match=r"^part: block 1's attention of .* passes a norm before the stream"):
        list(patched(model, tokenize(model, ["hi"]), [patch], Reading((2,)), lambda outcome: outcome.resid_post[2]))


def test_under_an_edit_of_all_tokens(demo, prompts):
    rows = tokenize(demo, prompts.side("positive", "val", 2))
    direction = Direction(torch.randn(128, generator=torch.Generator().manual_seed(3)), None, 3, -1)
    unit = torch.eye(128)[0]
    patches = [Patch(-2, (Change(4, "mlp", torch.ones(128), unit),))]
    with steering(demo, Ablation(direction)):
        ((_, found),) = patched(demo, rows, patches, Reading((7,)), lambda outcome: outcome.resid_post[7][:, -1])
        with demo.hooks(fwd_hooks=[("blocks.4.hook_mlp_out", _set_first)]):
            expected = [_last(demo, row) for row in rows]
    assert (found - torch.stack(expected)).abs().max() < 1e-4
    with (
        steering(demo, Ablation(direction, tokens="prompt")),
        pytest.raises(CosmicError, match=r"^model: an active intervention"),
    ):
        list(patched(demo, rows, patches, Reading((7,)), lambda outcome: outcome.resid_post[7]))


def _set_first(x, hook):
    x = x.clone()
    x[:, -2, 0] = 1.0
    return x


def _last(model, row):
    kept = []
    with (
        torch.inference_mode(),
        model.hooks(fwd_hooks=[("blocks.7.hook_resid_post", lambda x, hook: kept.append(x[0, -1]))]),
    ):
        model(torch.tensor([row]))
    return kept[0]


def test_what_is_not_reached_is_clean_and_costs_nothing(demo, prompts):
    rows = tokenize(demo, prompts.side("positive", "val", 2))
    patch = Patch(-1, (Change(6, "mlp", torch.zeros(128)),))
    ((_, found),) = patched(demo, rows, [patch], Reading((3,)), lambda outcome: outcome.resid_post[3][:, -1])
    empty = Patch(-1, (Change(0, "mlp", torch.zeros(128), torch.zeros(128)),))
    ((_, expected),) = patched(demo, rows, [empty], Reading((3,)), lambda outcome: outcome.resid_post[3][:, -1])
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_batch_size_bounds_the_rows_of_every_pass(demo, prompts, monkeypatch):
    rows, seen = tokenize(demo, prompts.side("positive", "val", 12)), []
    forward = demo.original_model.forward

    def watched(ids, *args, **kwargs):
        seen.append(len(ids))
        return forward(ids, *args, **kwargs)

    patches = [Patch(-1, (Change(layer, "mlp", torch.zeros(128)),)) for layer in (2, 2, 2)]
    keep = lambda outcome: outcome.resid_post[7][:, -1]  # noqa: E731
    expected = dict(patched(demo, rows, patches, Reading((7,)), keep))
    monkeypatch.setattr(demo.original_model, "forward", watched)
    found = dict(patched(demo, rows, patches, Reading((7,)), keep, batch_size=5))
    assert seen and max(seen) <= 5
    assert all(torch.allclose(found[i], expected[i], atol=1e-4) for i in expected)


def test_half_precision_changes_the_patched_token_alone():
    """x + (y - x) is not y in bfloat16."""
    x, y = torch.randn(2, 4, 3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert not torch.equal(x + (y - x), y)
    entering, leaving = _of_block(lambda added: added + 1, 2)
    entering(x, None)
    found = leaving(y, None)
    assert torch.equal(found[:, [0, 2]], y[:, [0, 2]])
    assert torch.equal(found[:, 1], (y[:, 1].float() + 1).bfloat16())


def test_bad_input(demo):
    rows, zero = tokenize(demo, ["hi"]), torch.zeros(128)
    with pytest.raises(CosmicError, match=r"^position: found 0; positions count from the end"):
        Patch(0, (Change(0, "mlp", zero),))
    with pytest.raises(CosmicError, match=r"^changes: found none"):
        Patch(-1, ())
    with pytest.raises(CosmicError, match=r"^position: found a change at -3, before the patch's -2"):
        Patch(-2, (Change(0, "mlp", zero, position=-3),))
    with pytest.raises(CosmicError, match=r"^part: "):
        Change(0, "head", zero)
    with pytest.raises(CosmicError, match=r"^index: found 2, and only attention has heads"):
        Change(0, "block", zero, index=2)
    for patch, message in (
        (Patch(-99, (Change(0, "mlp", zero),)), r"^position: found -99, and a prompt has only"),
        (Patch(-1, (Change(9, "mlp", zero),)), r"^layer: found 9"),
        (Patch(-1, (Change(0, "mlp", torch.zeros(4)),)), r"^target: it has width 4"),
        (Patch(-1, (Change(0, "mlp", torch.zeros(0, 128)),)), r"^target: it has shape \(0, 128\), and prompts are in"),
        (
            Patch(-1, (Change(0, "attention", zero, index=4),)),
            r"^index: found 4, and block 0 has 4; give one of 0 to 3",
        ),
    ):
        with pytest.raises(CosmicError, match=message):
            list(patched(demo, rows, [patch], Reading((3,)), lambda outcome: outcome.resid_post[3]))
    with pytest.raises(CosmicError, match=r"^reading: it names no layers"):
        list(patched(demo, rows, [Patch(-1, (Change(0, "mlp", zero),))], Reading(), lambda outcome: zero))
