"""Models on paper: their shape and tokenizer without weights, for plans."""

from pathlib import Path
from typing import Any

import torch
import transformers

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.load import DTYPES, TransformerBridge, demo_path, load_model
from cosmic_tl.model.paths import DEMOS, GGUF, check_model_path
from cosmic_tl.model.weightless import is_on_paper as is_on_paper

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
"""Files in which a directory may hold weights."""


def lacks_weights(path: str | Path) -> bool:
    """Whether a path is a directory with a configuration and no file of weights.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "config.json").write_text("{}")
        ...     lacks_weights(folder), lacks_weights(demo_path())
        (True, False)
    """
    folder = Path(path)
    return (folder / "config.json").is_file() and not any(one for kind in WEIGHTS for one in folder.glob(kind))


@checked
def load_on_paper(
    name_or_path: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False, **boot_options: Any
) -> TransformerBridge:
    """A model's configuration and tokenizer as a bridge whose weights have shapes and no values.

    Nothing can be computed with it. `plan_selection` says what a selection on such a model would take.

    Args:
        name_or_path: A directory with config.json and a tokenizer, a hub id (weights are not downloaded), or "demo".
        dtype: The number format that is planned with.
        trust_remote_code: Whether to run Python code that comes with the model.
        **boot_options: Passed to `load_model`, such as `tokenizer`.

    Raises:
        CosmicError: If configuration or tokenizer cannot be read.

    Example:
        >>> model = load_on_paper("demo", dtype="bfloat16")
        >>> model.cfg.n_layers, is_on_paper(model)
        (8, True)
    """
    name = str(demo_path(str(name_or_path)) if str(name_or_path) in DEMOS else name_or_path)
    check_model_path(name)
    if name.endswith(GGUF):
        raise CosmicError(
            "model: a GGUF file is planned with its weights; give a directory with config.json, or a hub id"
        )
    if dtype not in DTYPES:
        raise CosmicError(f"dtype: unknown name {dtype!r}; use one of {', '.join(DTYPES)}")
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            shape = transformers.AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], attn_implementation="eager", trust_remote_code=trust_remote_code
            )
        boot_options.setdefault(
            "tokenizer", transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        )
    except Exception as error:  # a damaged file can raise anything, anywhere in the libraries that read it
        raise CosmicError(
            f"model: could not read the configuration of {str(name_or_path)!r} ({first_line(error)}); give a directory with "
            "config.json and a tokenizer, or a hub id"
        ) from error
    if trust_remote_code:
        boot_options["trust_remote_code"] = True
    return load_model(name, device="cpu", dtype=dtype, hf_model=shape.eval(), **boot_options)
