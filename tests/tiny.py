"""What all tiny random models of the tests have in common."""

import shutil


def write(model, folder, large=lambda param: param.ndim > 1):
    """Save a model with weights larger than the usual initialisation, so that every component matters, and a tokenizer."""
    import torch  # here, because conftest.py imports this module

    from cosmic_tl.model.load import demo_path

    with torch.no_grad():
        for param in filter(large, model.parameters()):
            param.normal_(0, 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_path() / name, folder / name)
    return folder


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
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

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
