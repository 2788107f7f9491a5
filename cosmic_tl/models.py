"""Boot a model by name or directory, and tell one model from another."""

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from jaxtyping import Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_device
from transformer_lens.utilities.multi_gpu import resolve_device_map

from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.files import GGUF, check_model_path

DEMO = "demo"
DEMOS = {DEMO: "model", "demo-weak": "weak"}
"""Embedded models, and the folders they are in: the demo, and the same one fine-tuned to refuse hardly anything."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
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
"""Fingerprints that a model had before its weights were edited on purpose, by the one that it has now."""
_offloaded: WeakKeyDictionary[torch.nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
"""Values of weights that are in memory or on disk until a pass needs them, which nobody edits there."""


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's GPUs and some of Intel's do not.

    Example:
        >>> has_float64(torch.device("cpu"))
        True
    """
    try:
        return bool(torch.ones(1, device=device).double().sum() == 1)
    except (RuntimeError, TypeError):
        return False


def demo_path(name: str = DEMO) -> Path:
    """Directory of an embedded model, in Hugging Face format.

    Args:
        name: "demo" (default) or "demo-weak".

    Example:
        >>> (demo_path() / "config.json").exists()
        True
    """
    return Path(str(files("cosmic_tl") / "demo" / DEMOS[name]))


def load_model(
    name_or_path: str | Path = DEMO,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    **boot_options: Any,
) -> TransformerBridge:
    """Boot a chat model as a plain `TransformerBridge`, ready for inference.

    Args:
        name_or_path: "demo" for the embedded model, "demo-weak" for its weakly aligned variant, a local directory in
            Hugging Face format, a .gguf file, or a hub id. A GGUF file is dequantized (`pip install 'cosmic_tl[gguf]'`);
            tokenizer and chat template are the file's, whatever lies beside it.
        device: Where to put it; by default TransformerLens chooses.
        dtype: A torch dtype or its name. Default float32.
        **boot_options: Passed to `TransformerBridge.boot_transformers` (`device_map`, `n_devices`, `max_memory`,
            `revision`, `hf_model`, …). `trust_remote_code` is off unless given. `quantization_config`, such as
            `transformers.BitsAndBytesConfig(load_in_8bit=True)`, goes to transformers, with the package that it needs.

    Raises:
        CosmicError: If the dtype is unknown, nothing by this name can be loaded, or a package that it takes is missing.

    Example:
        >>> model = load_model("demo", device="cpu")
        >>> model.cfg.n_layers, model.cfg.d_model
        (8, 128)
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise CosmicError(f"dtype: unknown name {dtype!r}; use one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    if "hf_model" not in boot_options:
        check_model_path(str(name_or_path))
    name = str(demo_path(str(name_or_path)) if str(name_or_path) in DEMOS else name_or_path)
    try:
        if "hf_model" not in boot_options and (name.endswith(GGUF) or "quantization_config" in boot_options):
            model = _boot_read(name, device, dtype, **boot_options)
        else:
            model = TransformerBridge.boot_transformers(name, device=device, dtype=dtype, **boot_options)
    except CosmicError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, LookupError, struct.error) as error:
        raise CosmicError(
            f"model: could not load {str(name_or_path)!r} ({first_line(error)}); give 'demo', 'demo-weak', a directory in "
            "Hugging Face format, a .gguf file, or a hub id that TransformerLens supports"
        ) from error
    model.eval()
    # RWKV halves some weights at its first pass, for range; done now, the fingerprint stays as it is.
    if (rescale := getattr(model.original_model.base_model, "_rescale_layers", None)) is not None:
        rescale()
    return model


def _boot_read(
    name: str,
    device: str | torch.device | None,
    dtype: torch.dtype,
    device_map: Any = None,
    n_devices: int | None = None,
    max_memory: Any = None,
    offload_folder: str | None = None,
    quantization_config: Any = None,
    **boot_options: Any,
) -> TransformerBridge:
    """Boot what `transformers` has to read first: a GGUF file, or a model that it quantizes."""
    places, max_memory = resolve_device_map(n_devices, device_map, device, max_memory)
    reading: dict[str, Any] = {"dtype": dtype, "device_map": places}
    if places is not None:
        reading |= {"max_memory": max_memory, "offload_folder": offload_folder}
    if name.endswith(GGUF):
        if quantization_config is not None:
            raise CosmicError(
                "quantization_config: a GGUF file is dequantized; give a directory in Hugging Face format, or a hub id"
            )
        if "tokenizer" not in boot_options:
            tokenizer = gguf_tokenizer(name)
            # As TransformerLens sets up every tokenizer that has such a token, which it can read anew.
            if tokenizer.bos_token is not None:
                tokenizer.add_bos_token = tokenizer.init_kwargs["add_bos_token"] = True
            boot_options["tokenizer"] = tokenizer
        hf_model = _read_gguf(name, **reading)
        if places is None:
            hf_model.to(device or get_device())
    else:
        if places is None and device is not None:
            reading["device_map"] = {"": device}
        passed_on = {key: boot_options[key] for key in ("revision", "trust_remote_code") if key in boot_options}
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(
            name, quantization_config=quantization_config, **passed_on, **reading
        )
    return TransformerBridge.boot_transformers(name, device=device, dtype=dtype, hf_model=hf_model, **boot_options)


def _read_gguf(path: str, **options: Any) -> Any:
    """A plain model in `transformers` with the weights of a GGUF file."""
    # Some releases of transformers leave the weights packed where they can; older ones know no such thing.
    packing = getattr(transformers, "GgufConfig", None)
    if packing is not None:
        options["quantization_config"] = packing(dequantize=True)
    with _by_itself(path) as (folder, file):
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, output_loading_info=True, **options
        )
    if missing := sorted(loaded["missing_keys"]):
        raise CosmicError(
            f"model: {path!r} lacks {len(missing)} weights ({missing[0]}, …); give a whole GGUF file, and join a split one "
            "with llama-gguf-split --merge"
        )
    # Plain floats from here on.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config._name_or_path = path
    return model


def gguf_tokenizer(path: str) -> Any:
    """The tokenizer in a GGUF file, with its chat template.

    Args:
        path: The file.

    Raises:
        CosmicError: If the package gguf is not installed.

    Example:
        >>> gguf_tokenizer("no-such.gguf")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: model: no file or directory 'no-such.gguf'; give 'demo', 'demo-weak', ...
    """
    check_model_path(path)
    if find_spec("gguf") is None:
        raise CosmicError(f"model: reading {path!r} takes the package gguf; pip install 'cosmic_tl[gguf]'")
    with _by_itself(path) as (folder, file):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = path
    return tokenizer


@contextmanager
def _by_itself(path: str) -> Iterator[tuple[str, str]]:
    """A folder with nothing but this file, since `transformers` prefers a tokenizer.json that lies beside a GGUF file."""
    whole = Path(path).resolve()
    with TemporaryDirectory() as folder:
        (Path(folder) / whole.name).symlink_to(whole)
        yield folder, whole.name


def is_demo(model: TransformerBridge) -> bool:
    """Whether this is one of the embedded models, whose answers the demo's grammar can check.

    Example:
        >>> is_demo(load_model("demo", device="cpu"))
        True
    """
    return model_label(model) in DEMOS


def model_label(model: TransformerBridge) -> str:
    """What a model is called in reports: the name or path that it was loaded by.

    Example:
        >>> model_label(load_model("demo-weak", device="cpu"))
        'demo-weak'
    """
    name = str(model.cfg.model_name)
    return next((demo for demo in DEMOS if name == str(demo_path(demo))), name)


def short_label(model: TransformerBridge) -> str:
    """The last part of `model_label`, without folders or the account on the hub.

    Example:
        >>> short_label(load_model("demo", device="cpu"))
        'demo'
    """
    return model_label(model).rsplit("/", 1)[-1]


def model_fingerprint(model: TransformerBridge) -> str:
    """Sixteen hex digits that identify architecture and weights, whatever dtype and device they were loaded in.

    Hashes the config and, of every parameter, name, shape and up to 64 evenly spaced values rounded to bfloat16. That
    takes milliseconds at any size, so the weights are looked at each time and a changed one is always noticed; only
    weights that were offloaded to memory or disk are read once per model.

    Example:
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
    # One transfer for each device, since every transfer waits for it.
    for device in {sample.device for sample in samples.values()}:
        here = [name for name, sample in samples.items() if sample.device == device]
        sizes = [len(samples[name]) for name in here]
        together = torch.cat([samples[name].to(torch.bfloat16) for name in here]).float().cpu()
        samples |= zip(here, torch.split(together, sizes), strict=True)
    for sample in samples.values():
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def check_origin(model: TransformerBridge, fingerprint: str, name: str = "", what: str = "direction") -> None:
    """Make sure that something was made from this model, or from what it was before `orthogonalize_weights`.

    Args:
        model: The model that it is to be used with.
        fingerprint: `model_fingerprint` of the model that it was made from; "" fits any.
        name: That model's name, for people.
        what: What it is called in the error.

    Raises:
        CosmicError: If it is of another model.

    Example:
        >>> check_origin(load_model("demo", device="cpu"), "0" * 16, "other")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: direction: it was found in other (0000000000000000) and this model is ...
    """
    if not fingerprint or fingerprint == (found := model_fingerprint(model)):
        return
    if fingerprint not in _origins.get(model, {}).get(found, ()):
        raise CosmicError(
            f"{what}: it was found in {name or 'a model'} ({fingerprint}) and this model is {found}; "
            f"load that model, or clear the fingerprint to transfer the {what} on purpose"
        )


def remember_origin(model: TransformerBridge, before: str) -> None:
    """Let what was made from a model be used with it after an edit of its weights.

    Args:
        model: The model, edited.
        before: Its `model_fingerprint` before the edit. What that one remembered is kept.

    Example:
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
    """Name, parameter and some of its values, each once, by name; None for one that has no values anywhere."""
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
                sample = known[own_name]
            found.append((f"{path}.{own_name}".replace("_original_component.", ""), parameter, sample))
    return sorted(found, key=lambda one: one[0])


def _some(parameter: Tensor) -> Shaped[Tensor, " value"]:
    """Up to 64 evenly spaced values."""
    return parameter.detach().reshape(-1)[:: max(1, -(-parameter.numel() // 64))]
