"""Completions without an edit against transformers' own greedy generation under the same neutral settings."""

import pytest
import torch
from transformers import GenerationConfig

from cosmic_tl import complete

N_TOKENS = 16


def settings(model):
    """Greedy, with nothing that a checkpoint adds on its own: repetition penalty, top-k, …"""
    ends = model.generation_config.eos_token_id or model.config.eos_token_id
    pad = model.generation_config.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)


@pytest.fixture
def neutral(plain):
    """The plain model, whose checkpoint's own defaults are put away for the test."""
    own = plain.model.generation_config
    plain.model.generation_config = settings(plain.model)
    yield plain
    plain.model.generation_config = own


@torch.inference_mode()
def greedy(plain, ids, mask):
    tokens = plain.model.generate(ids, attention_mask=mask, max_new_tokens=N_TOKENS)
    return plain.tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)


def texts_of(prompts):
    return [text for side in ("positive", "negative") for text in prompts.side(side, "test")[:2]]


def test_one_at_a_time(real_model, neutral, real_prompts):
    texts = texts_of(real_prompts)
    rows = [neutral.ids(text) for text in texts]
    expected = [greedy(neutral, ids, torch.ones_like(ids))[0].strip() for ids in rows]
    assert complete(real_model, texts, max_new_tokens=N_TOKENS, batch_size=1) == expected


def test_in_a_padded_batch(real_model, neutral, real_prompts):
    texts = texts_of(real_prompts)
    rows = [neutral.ids(text)[0] for text in texts]
    width = max(map(len, rows))
    pad = neutral.model.generation_config.pad_token_id
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=pad) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    expected = [text.strip() for text in greedy(neutral, ids, mask)]
    assert complete(real_model, texts, max_new_tokens=N_TOKENS, batch_size=len(texts)) == expected
