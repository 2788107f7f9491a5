"""Other generators and strengths at equal cost against formulas on the plain model."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import AffineEdit, complete, difference_in_means, make_candidates, mean_activations
from cosmic_tl.directions.generators import generator
from cosmic_tl.metrics.likelihood import tokenize_pairs
from cosmic_tl.metrics.token_divergence import token_divergences
from real.plain import ace

FEW = 6


def test_generators_get_the_plain_models_activations(real_model, plain, real_prompts):
    """Layer by layer here, each layer going on from the one before; whole passes without padding there."""
    train = [real_prompts.side(side, "train")[:FEW] for side in ("positive", "negative")]
    found = make_candidates(real_model, tuple(train), ["dim", "pca", "projected"])
    n_layers, n_positions, _ = found["dim"].vectors.shape
    before = [plain.run(texts, n_positions)[0] for texts in train]
    mu, nu = (x.mean(0) for x in before)
    assert (found["dim"].references - nu).norm(dim=-1).div(nu.norm(dim=-1)).max() < 1e-4
    r = mu - nu
    later = r.norm(dim=-1) > 1e-3 * nu.norm(dim=-1)  # where the classes differ by more than rounding
    assert (found["dim"].vectors - r).norm(dim=-1).div(r.norm(dim=-1))[later].max() < 2e-3
    for name in ("pca", "projected"):
        for cell in ((n_layers // 2, -1), (n_layers - 2, -n_positions)):
            expected = generator(name)(*(x[:, cell[0], cell[1]] for x in before))
            ours = found[name].vectors[cell]
            assert abs(float(cosine_similarity(ours, expected, dim=0))) > 1 - 1e-5, (name, cell)
            assert float(ours.norm()) == pytest.approx(abs(float(r[cell] @ expected / expected.norm())), rel=1e-3)


@pytest.mark.slow
def test_the_cost_of_a_strength_is_the_plain_models(real_model, plain, real_prompts):
    """KL per token of the unedited model's own completions, one row at a time on the plain model."""
    train = [real_prompts.side(side, "train")[:FEW] for side in ("positive", "negative")]
    layer = len(plain.blocks) // 2
    d = difference_in_means(*(mean_activations(real_model, side) for side in train)).direction(layer, -1, real_model)
    asked = real_prompts.side("negative", "test")[:3]
    heads, tails = tokenize_pairs(real_model, asked, complete(real_model, asked, max_new_tokens=8))
    (found,) = token_divergences(real_model, heads, tails, [AffineEdit(d, 0.5)])
    r, nu = (x.to(plain.model.device) for x in (d.vector, d.reference))
    edit = ace(r, nu, 0.5)
    for head, tail, ours in zip(heads, tails, found, strict=True):
        ids = torch.tensor([head + tail], device=plain.model.device)
        logs = []
        for change in (None, edit):
            handles = (
                []
                if change is None
                else [
                    plain.blocks[layer].register_forward_pre_hook(
                        lambda m, a, k, change=change: ((change(a[0]), *a[1:]), k), with_kwargs=True
                    )
                ]
            )
            with torch.inference_mode():
                logs.append(plain.model(ids).logits[0, len(head) - 1 : -1].double().log_softmax(-1).cpu())
            for handle in handles:
                handle.remove()
        clean, edited = logs
        assert torch.allclose(ours, (edited.exp() * (edited - clean)).sum(-1), atol=1e-3)
