"""The GGUF file that a directory in Hugging Face format was made from is the same model."""

import pytest
import torch

from cosmic_tl import complete, load_model
from cosmic_tl.model.load import short_label

pytestmark = pytest.mark.slow


def test_a_gguf_file_is_the_model_of_its_directory(real_model_path, real_gguf, real_prompts):
    """Compared in bfloat16: the directory holds the file's weights rounded to it, as the file loaded in it does."""
    texts = real_prompts.side("negative", "test")[:2]
    found = {}
    for path in (real_gguf, real_model_path):
        model = load_model(path, dtype="bfloat16")
        ids = model.tokenizer(texts[0], return_tensors="pt")["input_ids"].to(model.cfg.device)
        with torch.inference_mode():
            logits = model(ids)[0].float().cpu()
        answers = complete(model, texts, max_new_tokens=16)
        found[path] = (ids.tolist(), logits, model.tokenizer.chat_template, answers, short_label(model))
        del model
    file, directory = found.values()
    assert file[0] == directory[0]
    assert (file[1] - directory[1]).abs().max() <= 1e-3 * directory[1].abs().max()  # 0 on Qwen2.5-Coder-0.5B-Instruct
    assert file[2:4] == directory[2:4]
    assert file[4] == "model.gguf"
