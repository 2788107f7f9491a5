"""Fingerprints of architecture and weights, which tie directions to the model they were found in."""

import hashlib
import json
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.offload import release_freed

_NOT_IDENTITY = frozenset(
    [
        "_name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_attn_implementation",
        "attn_implementation",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
    ]
)
"""Config entries that say how a model was loaded, not which model it is."""
_origins: WeakKeyDictionary[TransformerBridge, dict[str, set[str]]] = WeakKeyDictionary()
"""Current fingerprint to the fingerprints before deliberate edits of the weights."""
_offloaded: WeakKeyDictionary[torch.nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
"""Sampled values of offloaded weights, which nobody edits in place."""


@checked
def model_fingerprint(model: TransformerBridge) -> str:
    """Sixteen hex digits that identify architecture and weights, independent of dtype and device.

    Hashes the config and, of every parameter, name, shape and up to 64 evenly spaced values rounded to bfloat16. This
    takes milliseconds at any size, so it is computed anew each time and notices changed weights. Only weights that are
    offloaded to memory or disk are read once per model.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> model_fingerprint(model) == model_fingerprint(load_model("demo", device="cpu", dtype="bfloat16"))
        True
    """
    config = {k: v for k, v in model.original_model.config.to_dict().items() if k not in _NOT_IDENTITY}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    samples: dict[str, Tensor] = {}
    for name, parameter, sample in _samples(model.original_model):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if sample is not None:
            samples[name] = sample
    # One transfer per device, since every transfer waits for the device.
    for device in {sample.device for sample in samples.values()}:
        here = [name for name, sample in samples.items() if sample.device == device]
        sizes = [len(samples[name]) for name in here]
        together = torch.cat([samples[name].to(torch.bfloat16) for name in here]).float().cpu()
        samples |= zip(here, torch.split(together, sizes), strict=True)
    for sample in samples.values():
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def check_origin(model: TransformerBridge, fingerprint: str, name: str = "", what: str = "direction") -> None:
    """Check that something was made from this model, or from the model as it was before `orthogonalize_weights`.

    Args:
        model: The model that it will be used with.
        fingerprint: `model_fingerprint` of the model that it was made from; "" fits any.
        name: That model's name, for people.
        what: Its name in the error message.

    Raises:
        CosmicError: If it belongs to another model.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_origin(load_model("demo", device="cpu"), "0" * 16, "other")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: direction: it was found in other (0000000000000000) and this model is ...
    """
    if not fingerprint or fingerprint == (found := model_fingerprint(model)):
        return
    if fingerprint not in _origins.get(model, {}).get(found, ()):
        way = "take direction.for_model(model)" if what == "direction" else "clear its fingerprint"
        raise CosmicError(
            f"{what}: it was found in {name or 'a model'} ({fingerprint}) and this model is {found}; "
            f"load that model, or {way} to use it here on purpose"
        )


def remember_origin(model: TransformerBridge, before: str) -> None:
    """Allow what was made from a model to be used with it after its weights were edited.

    Args:
        model: The model, edited.
        before: Its `model_fingerprint` before the edit. Earlier fingerprints are kept as well.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> before = model_fingerprint(model)
        >>> with torch.no_grad():
        ...     _ = model.original_model.lm_head.weight.mul_(2.0)
        >>> remember_origin(model, before)
        >>> check_origin(model, before)
    """
    known = _origins.setdefault(model, {})
    known[model_fingerprint(model)] = {before, *known.get(before, ())}


def _samples(model: torch.nn.Module) -> list[tuple[str, Tensor, Tensor | None]]:
    """Name, parameter and sampled values of every parameter, sorted by name; None if it has no values."""
    found: list[tuple[str, Tensor, Tensor | None]] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        for own_name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            sample: Tensor | None = None
            if parameter.device.type != "meta":
                sample = _some(parameter)
            elif (weights := getattr(getattr(module, "_hf_hook", None), "weights_map", None)) is not None:
                known = _offloaded.setdefault(module, {})
                if own_name not in known:
                    known[own_name] = _some(weights[own_name]).clone()
                    release_freed()
                sample = known[own_name]
            found.append((f"{path}.{own_name}".replace("_original_component.", ""), parameter, sample))
    return sorted(found, key=lambda one: one[0])


def _some(parameter: Tensor) -> Shaped[Tensor, " value"]:
    """Up to 64 evenly spaced values."""
    return parameter.detach().reshape(-1)[:: max(1, -(-parameter.numel() // 64))]
