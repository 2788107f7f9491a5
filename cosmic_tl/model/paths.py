"""Check the path of a model before heavy imports."""

from pathlib import Path

from cosmic_tl._util.files import is_missing_path
from cosmic_tl.errors import CosmicError

GGUF = ".gguf"
"""Suffix of a file that holds a whole model: weights, configuration, tokenizer and chat template."""

DEMO = "demo"
DEMOS = {DEMO: "model", "demo-weak": "weak"}
"""Demo models and their folders: the demo, and the same model fine-tuned to refuse hardly anything."""
ADAPTER = "adapter_config.json"
"""What makes a folder a PEFT adapter."""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter, such as a LoRA.

    Example:
        >>> is_adapter("no/such/folder")
        False
    """
    return (Path(path) / ADAPTER).is_file()


def check_model_path(name: str, argument: str = "model") -> None:
    """Check that a name that can only be a path leads to a model. Does not import torch.

    Args:
        name: A name or path of a model.
        argument: What it is called in an error. Default "model".

    Raises:
        CosmicError: If there is nothing at the path, a directory without a model, or a file that is not GGUF.

    Example:
        >>> check_model_path("no/such/folder")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: model: no file or directory 'no/such/folder'; give 'demo', 'demo-weak', a ...
    """
    path = Path(name)
    if is_missing_path(name, (GGUF,)):
        raise CosmicError(
            f"{argument}: no file or directory {name!r}; give 'demo', 'demo-weak', a directory in Hugging Face format, "
            "a .gguf file, or a hub id"
        )
    if is_adapter(path) and not (path / "config.json").is_file():
        raise CosmicError(
            f"{argument}: {name!r} holds an adapter and no model; load the model that it belongs to, with adapter={name!r}"
        )
    if path.is_dir() and not any(path.glob("*config.json")):
        raise CosmicError(f"{argument}: {name!r} has no config.json; give a directory in Hugging Face format")
    if path.is_file():
        with path.open("rb") as file:
            if path.suffix != GGUF or file.read(4) != b"GGUF":
                raise CosmicError(
                    f"{argument}: {name!r} is no GGUF file; give a .gguf file, or a directory in Hugging Face format"
                )
