"""Load models by name, directory or GGUF file."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge as TransformerBridge
from transformer_lens.utilities import get_device
from transformer_lens.utilities.multi_gpu import resolve_device_map

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.adapters import check_adapter, merged
from cosmic_tl.model.offload import input_device
from cosmic_tl.model.paths import DEMO, DEMOS, GGUF, check_model_path
from cosmic_tl.model.weights import CheckedReading, check_weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_device(device: str | torch.device) -> None:
    """Check that there is such a device, and that it computes.

    Raises:
        CosmicError: If not.

    Example:
        >>> check_device("tpu")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: device: 'tpu' cannot be used here (Expected one of cpu, ...); use 'cpu', or ...
    """
    # A torch without CUDA fails an assertion.
    refusals = (RuntimeError, AssertionError, NotImplementedError, ImportError)
    try:
        float(torch.ones(1, device=device))
    except refusals as error:
        raise CosmicError(
            f"device: {str(device)!r} cannot be used here ({first_line(error)}); use 'cpu', or leave it out for the best that "
            "there is"
        ) from error


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
    """Directory of a demo model, in Hugging Face format.

    Args:
        name: "demo" (default) or "demo-weak".

    Example:
        >>> (demo_path() / "config.json").exists()
        True
    """
    return Path(str(files("cosmic_tl") / "demo" / DEMOS[name]))


@checked
def load_model(
    name_or_path: str | Path = DEMO,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    adapter: str | Path | None = None,
    **boot_options: Any,
) -> TransformerBridge:
    """Load a chat model as a plain `TransformerBridge`, ready for inference.

    Args:
        name_or_path: "demo" for the demo model, "demo-weak" for its weakly aligned variant, a local directory in
            Hugging Face format, a .gguf file, or a hub id. A GGUF file is dequantized
            (`pip install 'cosmic_tl[gguf]'`); tokenizer and chat template come from the file.
        device: Device of the model. Defaults to TransformerLens's choice.
        dtype: A torch dtype or its name. Default float32.
        adapter: Folder with a PEFT adapter of this model, such as a LoRA, which is merged into the weights. Needs the package
            peft.
        **boot_options: Passed to `TransformerBridge.boot_transformers` (`device_map`, `n_devices`, `max_memory`,
            `revision`, `hf_model`, …). `trust_remote_code` is off unless given. `quantization_config`, such as
            `transformers.BitsAndBytesConfig(load_in_8bit=True)`, is passed to `transformers` and needs the quantizer's
            package.

    Raises:
        CosmicError: If the dtype is unknown, the model or the adapter cannot be loaded, or a required package is missing.

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
    if adapter is not None:
        check_adapter(adapter)
        if odd := {"hf_model", "quantization_config"} & set(boot_options):
            raise CosmicError(f"adapter: cannot be merged with {min(odd)}; leave one of them out")
        boot_options["adapter"] = adapter
    if device is not None:
        check_device(device)
    name = str(demo_path(str(name_or_path)) if str(name_or_path) in DEMOS else name_or_path)
    if not {"hf_model", "model_class"} & set(boot_options) and boot_options.get("load_weights", True):
        boot_options["model_class"] = CheckedReading
    try:
        if "hf_model" not in boot_options and (
            name.endswith(GGUF) or {"quantization_config", "adapter"} & set(boot_options)
        ):
            model = _boot_read(name, device, dtype, **boot_options)
        else:
            model = TransformerBridge.boot_transformers(name, device=device, dtype=dtype, **boot_options)
    except CosmicError:
        raise
    except Exception as error:  # a damaged file can raise anything, anywhere in the libraries that read it
        raise CosmicError(
            f"model: could not load {str(name_or_path)!r} ({first_line(error)}); give 'demo', 'demo-weak', a directory in "
            "Hugging Face format, a .gguf file, or a hub id that TransformerLens supports"
        ) from error
    if model.tokenizer is not None and not len(model.tokenizer):
        raise CosmicError(
            f"model: {str(name_or_path)!r} has no tokenizer files; add tokenizer.json, or pass tokenizer=…"
        )
    if str(model.cfg.device) == "meta" and (place := input_device(model.original_model)) is not None:
        model.cfg.device = place  # TransformerLens takes the embedding's, which is none while its weights are on disk
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
    adapter: str | Path | None = None,
    **boot_options: Any,
) -> TransformerBridge:
    """Load models that `transformers` has to read first: GGUF files, models that it quantizes, and those with an adapter."""
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
            # As TransformerLens does with every tokenizer that has such a token and can be reloaded.
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
        hf_model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            name, quantization_config=quantization_config, output_loading_info=True, **passed_on, **reading
        )
        check_weights(name, hf_model, loaded)
    if adapter is not None:
        hf_model = merged(hf_model, adapter)
    return TransformerBridge.boot_transformers(name, device=device, dtype=dtype, hf_model=hf_model, **boot_options)


def _read_gguf(path: str, **options: Any) -> Any:
    """A plain model in `transformers` with the weights of a GGUF file."""
    # Some releases of transformers keep the weights packed if they can; older ones do not have this option.
    packing = getattr(transformers, "GgufConfig", None)
    if packing is not None:
        options["quantization_config"] = packing(dequantize=True)
    with _by_itself(path) as (folder, file):
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, output_loading_info=True, **options
        )
    check_weights(path, model, loaded)
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
    """A folder with this file only, since `transformers` prefers a tokenizer.json beside a GGUF file."""
    whole = Path(path).resolve()
    with TemporaryDirectory() as folder:
        (Path(folder) / whole.name).symlink_to(whole)
        yield folder, whole.name


def is_demo(model: TransformerBridge) -> bool:
    """Whether this is one of the demo models, whose answers can be checked by the demo's grammar.

    Example:
        >>> is_demo(load_model("demo", device="cpu"))
        True
    """
    return model_label(model) in DEMOS


@checked
def model_label(model: TransformerBridge) -> str:
    """The name of a model in reports: the name or path that it was loaded from.

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
