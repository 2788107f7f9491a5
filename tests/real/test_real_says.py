"""What heads and neurons write adds up to the plain model's stream, and the Jacobian lens is a finite difference of it."""

import torch
from torch.nn.functional import normalize

from cosmic_tl.activations import cache_activations
from cosmic_tl.metrics import find_readers, find_writers
from cosmic_tl.metrics.jacobian import carried
from cosmic_tl.model.chat import tokenize


def test_heads_and_neurons_add_up_to_the_stream(real_model, real_prompts, affine_selection):
    sides = [real_prompts.side(side, "val", 3) for side in ("positive", "negative")]
    direction, n_layers = affine_selection.direction, int(real_model.cfg.n_layers)
    found = find_writers(real_model, sides, direction, n=5)
    for site, layer, rows in (
        ("hook_resid_post", n_layers - 1, found.table),
        ("hook_resid_pre", direction.layer, found.table[found.table.layer < direction.layer]),
    ):
        sums = rows.groupby("position")[["positive", "negative"]].sum()
        for name, side in zip(("positive", "negative"), sides, strict=True):
            stream = cache_activations(real_model, side, site=site)[:, layer].double()
            expected = (stream @ direction.unit.double()).mean(0).numpy()
            assert abs(sums[name].to_numpy() - expected).max() < 1e-4 * max(1, abs(expected).max())
    assert found.strongest(1).weight_z.abs()[0] > 2
    assert find_readers(real_model, direction, n=5).table.z.notna().all()


def test_the_jacobian_is_a_finite_difference(real_model, real_prompts):
    rows = tokenize(real_model, real_prompts.side("positive", "val", 1))
    layer, last, d_model = (
        int(real_model.cfg.n_layers) // 2,
        int(real_model.cfg.n_layers) - 1,
        int(real_model.cfg.d_model),
    )
    vectors = normalize(torch.randn(1, d_model, generator=torch.Generator().manual_seed(0)), dim=1)
    (found,) = carried(real_model, rows, vectors, layer, n_positions=2)
    ends = []
    for sign in (1, -1):
        kept = []

        def push(x, hook, sign=sign):
            x = x.clone()
            x[:, -2:] += sign * 0.05 * vectors[0].to(x)
            return x

        def keep(y, hook, kept=kept):
            kept.append(y[0, -2:].double().cpu().sum(0) / 2)

        hooks = [(f"blocks.{layer}.hook_resid_pre", push), (f"blocks.{last}.hook_resid_post", keep)]
        with torch.inference_mode(), real_model.hooks(fwd_hooks=hooks):
            real_model(torch.tensor(rows, device=real_model.cfg.device))
        ends.append(kept[0])
    expected = (ends[0] - ends[1]) / 0.1
    assert (found - expected).norm() < 1e-2 * expected.norm()
