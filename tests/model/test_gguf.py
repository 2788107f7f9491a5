"""The demo model as a GGUF file, written by the package gguf."""

import json
import shutil

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from cosmic_tl import CosmicError, Direction, cli, complete, load_model, orthogonalize_weights
from cosmic_tl.export import save_checkpoint
from cosmic_tl.model import model_fingerprint
from cosmic_tl.model.load import demo_path, model_label, short_label

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    """What llama.cpp calls a parameter of the demo model."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        part, leaf = rest.rsplit(".", 1)
        return f"blk.{layer}.{PARTS[part]}.{leaf}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def write_gguf(path, architecture="qwen2", without=()):
    """The demo model in float32."""
    model = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    config, words = model.config, json.loads((demo_path() / "tokenizer.json").read_text())
    special = {token["id"] for token in words["added_tokens"]}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("demo")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    vocab = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    writer.add_token_list(vocab)
    types = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([types[i in special] for i in range(len(vocab))])
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template((demo_path() / "chat_template.jinja").read_text())
    for name, parameter in model.named_parameters():
        if name not in without:
            writer.add_tensor(gguf_name(name), parameter.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    # What lies beside the file, another model's tokenizer and template here, has no part in it.
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    tokenizer.add_tokens(["another"])
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    return write_gguf(folder / "demo.gguf")


@pytest.fixture(scope="module")
def model(file):
    return load_model(file, device="cpu")


def test_a_gguf_file_is_the_model_that_was_written(model, demo, prompts, file):
    texts = prompts.side("positive", "test", 3)
    assert model.tokenizer.chat_template == demo.tokenizer.chat_template
    assert complete(model, texts, max_new_tokens=12) == complete(demo, texts, max_new_tokens=12)
    assert model_label(model) == str(file) and short_label(model) == "demo.gguf"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert (model(ids) - demo(ids)).abs().max() < 1e-4
    for text in ("Bake a pie.", " two  spaces\nand a line"):
        assert model.tokenizer(text)["input_ids"] == demo.tokenizer(text)["input_ids"]


def test_the_dtype_is_the_one_asked_for(file, model):
    half = load_model(str(file), device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.original_model.parameters()} == {torch.bfloat16}
    assert model_fingerprint(half) == model_fingerprint(model)


def test_an_edited_gguf_model_becomes_a_plain_checkpoint(file, tmp_path):
    model = load_model(file, device="cpu")
    direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
    edit = orthogonalize_weights(model, direction)
    saved = save_checkpoint(model, tmp_path / "edited", edit)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert (plain(ids).logits - model(ids)).abs().max() < 1e-4
    assert tokenizer.chat_template == model.tokenizer.chat_template
    assert tokenizer("Bake a pie.", add_special_tokens=False) == model.tokenizer(
        "Bake a pie.", add_special_tokens=False
    )
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())
    assert "base_model" not in (saved / "README.md").read_text()


def refusal(path, **options):
    with pytest.raises(CosmicError) as caught:
        load_model(path, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_read_is_said_in_one_line(file, tmp_path):
    assert "architecture" in (said := refusal(write_gguf(tmp_path / "other.gguf", "no-such"))) and "no-such" in said
    lacking = write_gguf(tmp_path / "part.gguf", without=["model.layers.3.mlp.up_proj.weight"])
    assert "lacks 1 of its weights (model.layers.3.mlp.up_proj.weight" in refusal(lacking)
    whole = file.read_bytes()
    for share in (0.6, 0.01, 0.00001):
        (cut := tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
        assert "cut.gguf" in refusal(cut)
    (text := tmp_path / "text.gguf").write_text("no model")
    assert "is no GGUF file" in refusal(text)
    assert "is no GGUF file" in refusal(shutil.copy(file, tmp_path / "model.bin"))
    assert "no file or directory" in refusal(tmp_path / "none.gguf")
    assert "a GGUF file is dequantized" in refusal(file, quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def test_a_missing_package_is_named(file, monkeypatch):
    monkeypatch.setattr("cosmic_tl.model.load.find_spec", lambda name: None)
    assert "pip install 'cosmic_tl[gguf]'" in refusal(file)


def test_quantized_weights_are_neither_edited_nor_saved(tmp_path):
    model = load_model("demo", device="cpu")
    projection = model.blocks[2].mlp.out.original_component
    packed = (projection.weight.detach() * 100).to(torch.int8)
    projection.weight = torch.nn.Parameter(packed, requires_grad=False)
    direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
    assert model_fingerprint(model) != model_fingerprint(load_model("demo", device="cpu"))
    with pytest.raises(CosmicError, match=r"layers.2.mlp.down_proj.weight cannot be saved .*packed integer"):
        save_checkpoint(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(CosmicError, match=r"layers.2.mlp.down_proj.weight cannot be edited .*packed integer"):
        orthogonalize_weights(model, direction)


def test_a_quantizer_without_its_package_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda: False)
    assert "requires bitsandbytes" in refusal("demo", quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_a_run_on_a_gguf_file_is_steered_and_exported_from_its_path(file, tmp_path, monkeypatch, capsys):
    def command(*args):
        monkeypatch.setattr("sys.argv", ["cosmic-tl", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    few = ["--n-train", "8", "--n-val", "4", "--n-test", "2", "--max-new-tokens", "4", "--positions", "1"]
    command("run", file, "--out", tmp_path / "run", *few, "--max-kl", "50", "--placebos", "1")
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["model"] == str(file)
    assert "[removal" in command("steer", tmp_path / "run", "How do I bake a pizza?", "--max-new-tokens", "2")
    command("orthogonalize", tmp_path / "run", "--out", tmp_path / "edited", "--n-test", "0")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "edited").config.num_hidden_layers == 8
