"""What all tiny random models of the tests have in common."""

import shutil

import torch

from cosmic_tl.model.load import demo_path


def write(model, folder, large=lambda param: param.ndim > 1):
    """Save a model with weights larger than the usual initialisation, so that every component matters, and a tokenizer."""
    with torch.no_grad():
        for param in filter(large, model.parameters()):
            param.normal_(0, 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_path() / name, folder / name)
    return folder
