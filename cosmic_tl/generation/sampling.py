"""How the next token is chosen. A checkpoint's own sampling defaults are not used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from cosmic_tl.errors import check_count
from cosmic_tl.generation.options import Sampling as Sampling
from cosmic_tl.model.load import TransformerBridge


def generation_config(
    model: TransformerBridge, max_new_tokens: int, temperature: float = 0.0, sampling: Sampling | None = None
) -> GenerationConfig:
    """A complete configuration for `generate`. Only the end and padding tokens come from the checkpoint.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        max_new_tokens: Maximum number of new tokens.
        temperature: 0 (default) is greedy.
        sampling: Defaults to none.

    Raises:
        CosmicError: If `max_new_tokens` is not positive, or as `Sampling.check`.

    Example:
        >>> from cosmic_tl import load_model
        >>> config = generation_config(load_model("demo", device="cpu"), max_new_tokens=8)
        >>> config.do_sample, config.repetition_penalty, config.eos_token_id, config.pad_token_id
        (False, 1.0, [2], 0)
    """
    check_count("max_new_tokens", max_new_tokens)
    sampling = sampling or Sampling()
    sampling.check(temperature)
    ends, pad = _end_tokens(model), model.tokenizer.pad_token_id
    # transformers would replace None by top-k 50.
    shape = {"temperature": temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p or 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=ends or None,
        pad_token_id=(ends or [0])[0] if pad is None else pad,
        **(shape if temperature else {}),
    )


def _end_tokens(model: TransformerBridge) -> list[int]:
    """The tokens that end an answer, from the checkpoint's defaults, the config or the tokenizer, in this order."""
    inner = model.original_model
    for source in (inner.generation_config, inner.config, model.tokenizer):
        if (found := getattr(source, "eos_token_id", None)) is not None:
            return list(found) if isinstance(found, list | tuple) else [int(found)]
    return []


@contextmanager
def only(model: TransformerBridge, config: GenerationConfig) -> Iterator[None]:
    """Make `generate` use this configuration only: the model's own, from which it fills unset values, is replaced
    meanwhile.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> with only(model, config := generation_config(model, 4)):
        ...     model.original_model.generation_config is config
        True
    """
    inner = model.original_model
    before = inner.generation_config
    inner.generation_config = config
    try:
        yield
    finally:
        inner.generation_config = before


_DEFAULTS = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Settings that checkpoints often have, with their neutral values."""


def describe_generation(
    model: TransformerBridge, max_new_tokens: int, temperature: float = 0.0, sampling: Sampling | None = None
) -> dict[str, Any]:
    """How completions are generated, to be saved with them.

    Returns:
        max_new_tokens, temperature (0 is greedy), top_k, top_p, repetition_penalty, eos_token_id (list), pad_token_id, and
        unused: the checkpoint's own settings that were not applied.

    Raises:
        CosmicError: As `generation_config`.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = describe_generation(load_model("demo", device="cpu"), 8)
        >>> found["temperature"], found["repetition_penalty"], found["unused"]
        (0.0, 1.0, {})
    """
    sampling = sampling or Sampling()
    config, own = (
        generation_config(model, max_new_tokens, temperature, sampling),
        model.original_model.generation_config,
    )
    brought = {name: getattr(own, name, None) for name in _DEFAULTS}
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "eos_token_id": config.eos_token_id or [],
        "pad_token_id": config.pad_token_id,
        "unused": {name: value for name, value in brought.items() if value is not None and value != _DEFAULTS[name]},
    }


def generation_sentence(generation: Mapping[str, Any]) -> str:
    """The same for people.

    Example:
        >>> from cosmic_tl import load_model
        >>> generation_sentence(describe_generation(load_model("demo", device="cpu"), 8))
        'Greedy decoding, at most 8 new tokens.'
    """
    temperature = generation["temperature"]
    parts = [f"Sampled at temperature {temperature:g}" if temperature else "Greedy decoding"]
    parts += [f"{_spoken(name)} {generation[name]:g}" for name in ("top_k", "top_p") if generation[name] is not None]
    if generation["repetition_penalty"] != 1:
        parts.append(f"repetition penalty {generation['repetition_penalty']:g}")
    parts.append(f"at most {generation['max_new_tokens']} new tokens")
    text = f"{', '.join(parts)}."
    if generation["unused"]:
        listed = ", ".join(f"{_spoken(name)} {value:g}" for name, value in generation["unused"].items())
        text += f" The checkpoint's own defaults ({listed}) are not used."
    return text


def _spoken(name: str) -> str:
    return {"top_k": "top-k", "top_p": "top-p"}.get(name, name.replace("_", " "))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore torch's random state at the end, on the CPU and on every accelerator: `torch.manual_seed` sets all of
    them.

    Example:
        >>> before = torch.get_rng_state()
        >>> with random_state_kept():
        ...     _ = torch.manual_seed(7)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    accelerator = torch.accelerator.current_accelerator()
    kind = "cuda" if accelerator is None else accelerator.type  # without one there are 0 devices of either kind
    with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=kind):
        yield
