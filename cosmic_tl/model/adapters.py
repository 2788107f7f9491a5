"""Merge a PEFT adapter, such as a LoRA, into a plain model in `transformers`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.paths import ADAPTER, is_adapter

WEIGHTS = "adapter_model.safetensors"


def check_adapter(folder: str | Path) -> None:
    """Check that a folder holds an adapter, in safetensors, and that the package that reads it is there.

    Raises:
        CosmicError: If not.

    Example:
        >>> check_adapter("no/such/folder")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: adapter: no adapter_config.json in 'no/such/folder'; give a folder that peft wrote
    """
    if not is_adapter(folder):
        raise CosmicError(f"adapter: no {ADAPTER} in {str(folder)!r}; give a folder that peft wrote")
    if not (Path(folder) / WEIGHTS).is_file():
        raise CosmicError(
            f"adapter: no {WEIGHTS} in {str(folder)!r}; save it again with safe_serialization=True, since pickles are not read"
        )
    if find_spec("peft") is None:
        raise CosmicError(f"adapter: reading {str(folder)!r} takes the package peft; pip install peft")


def merged(model: Any, folder: str | Path) -> Any:
    """The model with the adapter's change added to its weights, which are changed in place.

    An adapter of the embeddings acts on them alone, although they may share their weights with the unembedding: it then gets its
    own copy before. The merged model equals the one with the adapter beside it, up to rounding.

    Args:
        model: A plain model in `transformers`, unquantized.
        folder: What peft wrote.

    Raises:
        CosmicError: If the adapter cannot be read or merged, or belongs to another model.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "adapter_config.json").write_text("{}")
        ...     merged(None, folder)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: adapter: no adapter_model.safetensors in ...; save it again with ...
    """
    check_adapter(folder)
    from peft import PeftConfig, PeftModelForCausalLM

    try:
        config = PeftConfig.from_pretrained(str(folder))
        _untie(model, folder, config)
        wrapped = PeftModelForCausalLM(model, config)
        found = wrapped.load_adapter(str(folder), "default")
        if odd := [*found.unexpected_keys, *found.missing_keys]:
            raise CosmicError(
                f"adapter: {str(folder)!r} belongs to another model ({odd[0]} does not fit); give the model that it was made from"
            )
        if not hasattr(wrapped.base_model, "merge_and_unload"):
            raise CosmicError(
                f"adapter: one of the kind {config.peft_type.value} adds no change to weights and cannot be merged; give a LoRA"
            )
        return wrapped.merge_and_unload(safe_merge=True)
    except CosmicError:
        raise
    except Exception as error:  # a damaged file, or one of another model, can raise anything
        raise CosmicError(
            f"adapter: could not merge {str(folder)!r} ({first_line(error)}); give an adapter of this very model"
        ) from error


def _untie(model: Any, folder: str | Path, config: Any) -> None:
    """Give the unembedding its own copy of weights that it shares with the embeddings, where the adapter changes either."""
    from safetensors import safe_open

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not table.weight:
        return
    with safe_open(str(Path(folder) / WEIGHTS), framework="pt") as file:
        keys = list(file.keys())
    names = [name for name, module in model.named_modules() if module is table or module is head]
    if not any(f".{name}." in f".{key}" for name in names for key in keys):
        return
    if getattr(config, "ensure_weight_tying", False):
        raise CosmicError(
            f"adapter: {str(folder)!r} changes tied embeddings together; merge it with peft, and give the checkpoint"
        )
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    for some in (model.config, model.config.get_text_config()):
        some.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
