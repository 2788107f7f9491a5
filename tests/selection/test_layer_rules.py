"""Rules for evaluation layers: each against its plain formula, and what a selection makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cosmic_tl import (
    CosmicError,
    CosmicOptions,
    RunSettings,
    load_model,
    load_prompts,
    plan_selection,
    post_instruction_positions,
    select_cosmic,
)
from cosmic_tl.activations import class_means
from cosmic_tl.metrics import RefusalTokens, find_refusal_tokens
from cosmic_tl.metrics.refusal_score import log_odds
from cosmic_tl.model.chat import tokenize
from cosmic_tl.selection.layer_rules import layer_effects, layer_wins, layers_apart, layers_by_rule
from cosmic_tl.selection.resampling import draw_weights
from tests.tiny import save

OPTIONS = CosmicOptions(n_train=24, n_val=8, n_positions=2, n_resamples=0)


@pytest.fixture(scope="module")
def sides(prompts):
    return prompts.sides("train", 24)


@pytest.fixture(scope="module")
def means(demo, sides):
    return class_means(demo, sides)


@pytest.fixture(scope="module")
def tokens(demo, sides):
    return find_refusal_tokens(demo, sides)


def _streams(model, prompts):
    """`y[l, -1]` of every prompt, by whole passes of the plain model."""
    found = []
    for row in tokenize(model, prompts):
        kept = []

        def keep(_, args, out, kept=kept):
            kept.append((out[0] if isinstance(out, tuple) else out)[0, -1].double())

        handles = [block.register_forward_hook(keep) for block in model.original_model.model.layers]
        with torch.inference_mode():
            model.original_model(torch.tensor([row]))
        for handle in handles:
            handle.remove()
        found.append(torch.stack(kept))
    return torch.stack(found)


def test_effects_are_those_of_plain_hooks(demo, sides, means, tokens):
    found = layer_effects(demo, sides, means, tokens)
    assert found[-1].isnan() and found[:-1].isfinite().all()
    layer, changes = 4, []
    averages = [_streams(demo, side)[:, layer].mean(0) for side in sides]
    unit = averages[0] - averages[1]
    unit = unit / unit.norm()
    block = demo.original_model.model.layers[layer]
    for side, target, sign in ((sides[0], averages[1], -1), (sides[1], averages[0], 1)):

        def exchange(_, args, out, target=target):
            y = (out[0] if isinstance(out, tuple) else out).clone()
            y[0, -1] += (((target - y[0, -1].double()) @ unit) * unit).float()
            return (y, *out[1:]) if isinstance(out, tuple) else y

        scores = []
        for row in tokenize(demo, side):
            with torch.inference_mode():
                before = demo.original_model(torch.tensor([row])).logits[:, -1]
                handle = block.register_forward_hook(exchange)
                after = demo.original_model(torch.tensor([row])).logits[:, -1]
                handle.remove()
            scores.append(sign * float(log_odds(after, tokens.ids) - log_odds(before, tokens.ids)))
        changes.append(np.mean(scores))
    assert float(found[layer]) == pytest.approx(np.mean(changes), abs=1e-4)


def test_the_origin_lies_between_the_classes_where_their_means_have_opposite_signs(means):
    found = layers_apart(*means)
    for layer, value in enumerate(found.tolist()):
        mu, nu = (side.resid_post[layer, -1] for side in means)
        unit = (mu - nu) / (mu - nu).norm()
        assert (value > 0) == (float(mu @ unit) > 0 > float(nu @ unit))
        assert value <= 0.5
    assert found[0] < 0 < found.max()  # the lowest layer has not told them apart yet


def test_wins_are_those_of_resampled_means(demo, sides):
    found = layer_wins(demo, sides, 2, seed=3)
    streams = [_streams(demo, side) for side in sides]
    drawn = draw_weights(24, 24, 1000, seed=3)
    weights = drawn.positive[drawn.drawn], drawn.negative[drawn.drawn]
    mu, nu = (torch.einsum("rp,pld->rld", w, s) for w, s in zip(weights, streams, strict=True))
    lowest = cosine_similarity(mu, nu, dim=-1).argsort(dim=1)[:, :2]
    expected = torch.bincount(lowest.flatten(), minlength=8) / 1000
    assert (found - expected).abs().max() <= 0.002 and found.sum() == pytest.approx(2)
    late = layer_wins(demo, sides, 2, first=4)
    assert late[:4].sum() == 0 and late.sum() == pytest.approx(2)


def test_a_selection_goes_by_them(demo, prompts, sides, means, tokens):
    effects, wins = layer_effects(demo, sides, means, tokens), layer_wins(demo, sides, 1)
    for rule, expected in (
        ("causal", int(effects.nan_to_num(-1e9).argmax())),
        ("opposite-signs", int(layers_apart(*means).argmax())),
        ("resampled", int(wins.argmax())),
    ):
        options = replace(OPTIONS, evaluation_layers=rule)
        found = select_cosmic(demo, prompts, options)
        assert found.evaluation_layers == (expected,) and not found.warnings
        named = select_cosmic(demo, prompts, replace(options, evaluation_layers=(expected,)))
        assert found.table.equals(named.table)
        assert plan_selection(demo, prompts, options).evaluation_layers == (7,)  # not known before
        # It is kept and read again under its name.
        settings = RunSettings(options)
        assert RunSettings.from_json(settings.to_json()) == settings
    # Means that are given are enough for the rules that look at nothing else.
    validation = load_prompts(
        positive={"val": prompts.side("positive", "val", 8)},
        negative={"val": prompts.side("negative", "val", 8)},
        shuffle=False,
    )
    with_means = class_means(demo, sides, positions=post_instruction_positions(demo, None, 2))
    for rule in (None, "opposite-signs"):
        options = replace(OPTIONS, evaluation_layers=rule)
        assert select_cosmic(demo, validation, options, means=with_means).table.equals(
            select_cosmic(demo, prompts, options, means=with_means).table
        )
    late = replace(OPTIONS, evaluation_layers="opposite-signs", exclude_first_half=True)
    assert layers_by_rule(demo, late, means, sides, None)[0][0] >= 4


def test_doubts_are_said_and_bad_input_refused(demo, sides, means, tmp_path):
    model = load_model(save(tmp_path, "llama"), device="cpu")
    texts = (["Say dog", "Say river"], ["Say poem", "Say shirt"])
    own = class_means(model, texts)
    with torch.no_grad():
        model.original_model.lm_head.weight.zero_()  # nothing that a layer does can be seen
    options = CosmicOptions(evaluation_layers="causal")
    layers, doubts = layers_by_rule(model, options, own, texts, RefusalTokens((7,), ("x",)))
    assert doubts[0] == (
        f"At evaluation layer {layers[0]} exchanging the concept does not move the score towards the other class."
    )
    with pytest.raises(CosmicError, match=r"^evaluation_layers: 'causal' needs refusal tokens"):
        layers_by_rule(demo, options, means, sides, None)
    with pytest.raises(
        CosmicError, match=r"^evaluation_layers: unknown 'casual'; use causal, opposite-signs or resampled"
    ):
        CosmicOptions(evaluation_layers="casual")
