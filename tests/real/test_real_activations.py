"""Positions and streaming means against the plain model's own tokens and activations."""

import torch

from cosmic_tl import mean_activations, post_instruction_positions
from cosmic_tl.model.chat import tokenize


def test_positions_are_what_the_template_puts_after_any_text(real_model, plain, real_prompts):
    positions = post_instruction_positions(real_model)
    n = len(positions)
    texts = [text for side in (real_prompts.positive, real_prompts.negative) for text in side["train"]]
    ends = {tuple(plain.ids(text)[0, -n:].tolist()) for text in texts}
    assert len(ends) == 1
    assert [plain.tokenizer.decode([token]) for token in next(iter(ends))] == list(positions.labels)
    assert tokenize(real_model, texts) == [plain.ids(text)[0].tolist() for text in texts]


def test_means_equal_the_plain_models(real_model, plain, real_prompts):
    """Batched, padded and streamed here; one length at a time there."""
    texts = real_prompts.side("positive", "train")[:8]
    found = mean_activations(real_model, texts, batch_size=3)
    before, after, _ = plain.run(texts, n_positions=found.resid_pre.shape[1])
    for ours, theirs in ((found.resid_pre, before.mean(0)), (found.resid_post, after.mean(0))):
        assert (ours - theirs).norm(dim=-1).div(theirs.norm(dim=-1)).max() < 1e-4


def test_means_equal_the_hidden_states(real_model, plain, real_prompts):
    """What transformers itself returns: embeddings, then what leaves each block; the last one is after the final norm."""
    texts = real_prompts.side("negative", "train")[:4]
    found = mean_activations(real_model, texts)
    n = found.resid_pre.shape[1]
    with torch.inference_mode():
        states = [plain.model(plain.ids(text), output_hidden_states=True).hidden_states[:-1] for text in texts]
    means = torch.stack([torch.stack([h[0, -n:].double().cpu() for h in one]) for one in states]).mean(0)
    assert (found.resid_pre - means).norm(dim=-1).div(means.norm(dim=-1)).max() < 1e-4
    assert (found.resid_post[:-1] - means[1:]).norm(dim=-1).div(means[1:].norm(dim=-1)).max() < 1e-4
