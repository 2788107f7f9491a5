"""The plain transformers model with a tensor added to one block, by a hook written here."""

import torch

from cosmic_tl import CosmicError
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.interventions import steering


def with_added(model, ids, block, vector, end="output"):
    """Logits with a vector added to the output or the input of a block, of a model that has its blocks in `model.layers`."""
    plain = plain_model(model)
    module = plain.model.layers[block]
    if end == "output":
        handle = module.register_forward_hook(
            lambda _, args, out: (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector
        )
    else:
        handle = module.register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
    try:
        with torch.inference_mode():
            return plain(ids).logits
    finally:
        handle.remove()


def with_edit(model, ids, edit):
    """Logits with an edit of ours."""
    with torch.inference_mode(), steering(model, edit):
        return model(ids)


def damaged(path, n=150):
    """Contents of a file that is cut short, or has other bytes in its first kilobyte."""
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(0, len(whole), (n,), generator=generator).tolist():
        yield whole[:at]
    for at, byte in zip(
        torch.randint(0, min(len(whole), 1024), (n,), generator=generator).tolist(),
        torch.randint(0, 256, (n,), generator=generator).tolist(),
        strict=True,
    ):
        yield whole[:at] + bytes([byte]) + whole[at + 1 :]
    yield b""
    yield b"GGUF" + b"\xff" * 64


def check_damaged(path, read):
    """Each damaged file is refused in one line, or read: a format without checksum cannot know of another number."""
    refused = []
    for content in damaged(path):
        path.write_bytes(content)
        try:
            read(path)
        except CosmicError as error:
            refused.append(str(error))
    assert len(refused) > 150 and all("\n" not in said and str(path) in said for said in refused)


def is_same(check):
    """Whether an exported edit is the same one to 1e-4, whatever precision its format states."""
    return check.passed and bool((check.table.difference <= 1e-4).all())
