"""Tiny random models of many architectures, as bridges and as plain Hugging Face models."""

import pytest
import torch
from tiny import write
from transformers import AutoConfig, AutoModelForCausalLM

from cosmic_tl import Direction, load_model

COMMON = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "mistral": {"head_dim": 8},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 64},
    "gpt_neox": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def save(folder, model_type, **extra):
    options = {**COMMON, **ARCHITECTURES.get(model_type, {}), **extra}
    if model_type == "gpt2":
        options = {
            k: v
            for k, v in options.items()
            if k in {*ARCHITECTURES["gpt2"], "vocab_size", "eos_token_id", "bos_token_id"}
        }
    if model_type == "gpt_neox":
        del options["num_key_value_heads"]  # it has no grouped queries, and TransformerLens would read the entry
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    return write(model, folder)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """The bridge, and a separate plain Hugging Face model with the same weights."""
    folder = save(tmp_path_factory.mktemp(request.param), request.param)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return load_model(folder, device="cpu"), plain


@pytest.fixture(scope="session")
def save_model():
    """The function that writes a tiny random model of some type into a folder."""
    return save


@pytest.fixture
def direction():
    generator = torch.Generator().manual_seed(1)
    return Direction(torch.randn(32, generator=generator), torch.randn(32, generator=generator), layer=1, position=-1)
