"""Whether a checkpoint holds the weights that its configuration asks for: `transformers` makes up missing ones."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import transformers
from transformer_lens.model_bridge.sources.transformers import (
    determine_architecture_from_hf_config,
    get_hf_model_class_for_architecture,
)

from cosmic_tl.errors import CosmicError


class CheckedReading:
    """Stands for the class that TransformerLens would read a checkpoint with, and checks what was read."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """The model, as that class reads it.

        Raises:
            CosmicError: As `check_weights`.

        Example:
            >>> from transformers import AutoConfig
            >>> from cosmic_tl.model.load import demo_path
            >>> config = AutoConfig.from_pretrained(demo_path())
            >>> type(CheckedReading.from_pretrained(str(demo_path()), config=config)).__name__
            'Qwen2ForCausalLM'
        """
        try:
            kind = get_hf_model_class_for_architecture(determine_architecture_from_hf_config(options["config"]))
        except ValueError:  # the text part of a larger configuration does not always name its class
            kind = transformers.AutoModelForCausalLM
        # Mismatched shapes are told below, by name.
        model, loaded = kind.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        check_weights(name, model, loaded)
        return model


def check_weights(name: str, model: Any, loaded: Mapping[str, Any]) -> None:
    """Check what `transformers` says of the weights that it read.

    Weights that the model has no use for are left out with a warning, unless others of their kind are used: more layers than
    `config.json` says.

    Args:
        name: The checkpoint.
        model: The model in `transformers`.
        loaded: Its loading info.

    Raises:
        CosmicError: If weights are missing, have another shape, or belong to further layers.

    Example:
        >>> from cosmic_tl import load_model
        >>> inner = load_model("demo", device="cpu").original_model
        >>> check_weights("demo", inner, {"missing_keys": {"lm_head.bias"}})
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: model: 'demo' lacks 1 of its weights (lm_head.bias); give a whole checkpoint ...
    """
    if missing := sorted(loaded["missing_keys"]):
        raise CosmicError(
            f"model: {name!r} lacks {len(missing)} of its weights ({_some(missing)}); give a whole checkpoint (parts of a GGUF "
            "file are joined by llama-gguf-split --merge)"
        )
    if mismatched := sorted(str(one[0]) for one in loaded.get("mismatched_keys", ())):
        raise CosmicError(
            f"model: {len(mismatched)} weights of {name!r} have another shape than config.json says ({_some(mismatched)}); "
            "give configuration and weights that belong together"
        )
    used = {_kind(key) for key in model.state_dict()}
    unexpected = sorted(loaded.get("unexpected_keys", ()))
    if more := [key for key in unexpected if _kind(key) in used]:
        raise CosmicError(
            f"model: {name!r} holds {len(more)} weights beyond those that config.json asks for ({_some(more)}); give "
            "configuration and weights that belong together"
        )
    if unexpected:
        warnings.warn(f"{name}: {len(unexpected)} weights are not used ({_some(unexpected)})", stacklevel=2)


def _kind(key: str) -> str:
    """The name of a weight without the number of its layer."""
    return re.sub(r"\d+", "*", key)


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]}, …"
