"""Thinking blocks: closed where template or model think, judged by what comes after them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cosmic_tl import ChatFormat, RunSettings, SubstringJudge, complete, load_model
from cosmic_tl.judges.base import unfinished_thinking
from cosmic_tl.metrics import completion_cross_entropy
from cosmic_tl.model.chat import chat_notes, opened_block, render
from cosmic_tl.model.load import demo_path


@pytest.fixture
def with_tags(tmp_path):
    """Makes the demo with thinking tags in its vocabulary; if it thinks, it answers everything with the first."""

    def make(thinks, special=False):
        tokenizer = AutoTokenizer.from_pretrained(demo_path())
        hf = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
        tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
        hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        opening = tokenizer.convert_tokens_to_ids("<think>")
        text = "<|im_start|>user\nsphinx of black quartz<|im_end|>\n<|im_start|>assistant\n"
        with torch.no_grad():
            hidden = hf.model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
            hf.get_output_embeddings().weight[opening:] = 0.0
            if thinks:
                hf.get_output_embeddings().weight[opening] = hidden
        hf.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return load_model(tmp_path, device="cpu")

    return make


def test_a_vocabulary_alone_gets_no_thinking_block(with_tags):
    model = with_tags(thinks=False)
    assert "<think>" in model.tokenizer.get_added_vocab()
    assert render(model, ["hi"])[0].endswith("assistant\n")
    assert chat_notes(model) == ()


@pytest.mark.parametrize("special", [False, True])
def test_a_model_that_begins_by_thinking_gets_an_empty_block(with_tags, special):
    model = with_tags(True, special)
    assert render(model, ["hi"])[0].endswith("assistant\n<think>\n\n</think>\n\n")
    assert "may think" in chat_notes(model)[0]
    answer = complete(model, ["sphinx of black quartz"], chat=ChatFormat(thinking="open"), max_new_tokens=4)[0]
    assert answer.startswith("<think>") and unfinished_thinking(answer)
    assert SubstringJudge()(["hi"], [answer])[0].verdict == "neither"


@pytest.mark.parametrize("chat", [ChatFormat(thinking="open"), ChatFormat(prefix="<think>\n")])
def test_an_answer_that_ends_inside_the_block_that_the_prompt_opened_is_no_compliance(demo, monkeypatch, chat):
    if not chat.prefix:
        opens = demo.tokenizer.chat_template.replace("assistant\\n", "assistant\\n<think>\\n", 1)
        assert opens != demo.tokenizer.chat_template
        monkeypatch.setattr(demo.tokenizer, "chat_template", opens)
    asked = ["Can you help me bake a pizza?", "hello"]
    assert opened_block(demo, chat) == "<think>"
    texts = complete(demo, asked, chat=chat, max_new_tokens=8)
    assert all(text.startswith("<think>") and unfinished_thinking(text) for text in texts)
    assert [found.verdict for found in SubstringJudge()(asked, texts)] == ["neither", "neither"]
    # The tag is the prompt's, and not predicted again.
    bare = [text.removeprefix("<think>") for text in texts]
    assert completion_cross_entropy(demo, asked, texts, chat=chat) == completion_cross_entropy(
        demo, asked, bare, chat=chat
    )


def test_a_run_says_how_many_answers_are_unfinished(demo, prompts, tmp_path):
    from cosmic_tl import CosmicOptions, run

    options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
    settings = RunSettings(options, ChatFormat(prefix="<think>\n"), n_test=2, max_new_tokens=4, n_placebos=1)
    found = run(demo, prompts, tmp_path / "run", settings)
    n = len(found.effects.completions)
    assert set(found.effects.completions.verdict) == {"neither"}
    assert any(note.startswith(f"{n} completions end inside their thinking block") for note in found.summary["notes"])
