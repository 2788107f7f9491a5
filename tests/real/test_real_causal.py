"""Patches against whole passes of the plain model, and what a causal map says of it."""

import torch
from torch.nn.functional import normalize

from cosmic_tl.engine import Reading
from cosmic_tl.experiments import causal_map
from cosmic_tl.model.chat import tokenize
from cosmic_tl.patching import Change, Patch, patched
from tests.plain_patch import plain_patch


def test_patches_equal_whole_passes_of_the_plain_model(real_model, plain, real_prompts, affine_selection):
    rows = tokenize(real_model, [real_prompts.side(side, "val")[0] for side in ("positive", "negative")])
    unit, n_layers = affine_selection.direction.unit, int(real_model.cfg.n_layers)
    other = normalize(torch.randn(unit.shape, generator=torch.Generator().manual_seed(0)), dim=0)
    target = affine_selection.direction.norm * unit
    middle = n_layers // 2
    patches = [
        Patch(-1, (Change(middle, "block", target, unit),)),
        Patch(-2, (Change(middle, "attention", target, unit, other),)),
        Patch(-2, (Change(n_layers - 2, "mlp", target, unit),)),
        Patch(-1, (Change(1, "stream", target),)),
        Patch(-1, tuple(Change(layer, "mlp", target, unit) for layer in range(middle, n_layers))),
    ]
    layers = (n_layers - 3, n_layers - 1)

    def keep(outcome):
        streams = [outcome.resid_post[layer][:, -1].double().cpu() for layer in layers]
        return torch.cat([*streams, outcome.logits.double().cpu()], dim=1)

    for i, found in patched(real_model, rows, patches, Reading(layers, logits=True), keep):
        expected = torch.stack([plain_patch(plain.model, row, patches[i], layers).cpu() for row in rows])
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), patches[i]


def test_the_direction_acts_somewhere_and_more_than_its_placebo(real_model, real_prompts, affine_selection):
    n = min(6, len(real_prompts.side("positive", "val")))
    found = causal_map(real_model, real_prompts, affine_selection, n_train=n, n_val=n, n_positions=1, whole=False)
    for side in ("positive", "negative"):
        best = found.strongest(side, "cosine", n=1).iloc[0]
        assert best.effect > abs(best.placebo)
