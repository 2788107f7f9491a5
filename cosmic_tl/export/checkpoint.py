"""Save a bridge as a Hugging Face checkpoint that plain `transformers` loads."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from cosmic_tl._util.border import checked
from cosmic_tl._util.versions import versions
from cosmic_tl.errors import CosmicError
from cosmic_tl.export.folder import check_folder, whole_folder
from cosmic_tl.interventions.orthogonalize import WeightEdit
from cosmic_tl.model.components import plain_modules, plain_parameters, unreadable_weight_reason
from cosmic_tl.model.load import TransformerBridge, gguf_tokenizer, model_label
from cosmic_tl.model.paths import DEMOS, GGUF


@checked
def save_checkpoint(
    model: TransformerBridge,
    folder: str | Path,
    edit: WeightEdit | None = None,
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Save a model, edited or not, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Writes sharded safetensors, configuration, generation configuration, the tokenizer with its chat template, and a
    model card that says what was edited. Everything is written beside `folder` and then renamed, so that `folder` holds
    either a complete checkpoint or its earlier content. Needs memory for one shard besides the model.

    Args:
        model: The `TransformerBridge`; not changed.
        folder: Folder to write; its parent is created if needed.
        edit: What `orthogonalize_weights` returned, for the model card.
        max_shard_size: Maximum size of a weights file, in bytes or as text such as "5GB" (default). A larger single
            weight gets its own file.
        overwrite: Whether to replace a checkpoint that is there. Default False. A folder with other files is refused.

    Returns:
        The folder.

    Raises:
        CosmicError: If the folder is not empty or cannot be written, or the weights are quantized, offloaded, or processed by
            TransformerLens's compatibility mode.

    Example:
        >>> import tempfile
        >>> from cosmic_tl import load_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = save_checkpoint(load_model("demo", device="cpu"), f"{folder}/copy")
        ...     sorted(path.name for path in saved.iterdir())
        ['README.md', 'chat_template.jinja', 'config.json', 'generation_config.json', 'model.safetensors',
         'tokenizer.json', 'tokenizer_config.json']
    """
    folder = Path(folder)
    check_folder("folder", folder, overwrite)
    write_checkpoint(model, folder, model_card(model, edit), max_shard_size)
    return folder


def write_checkpoint(model: TransformerBridge, folder: Path, card: str, max_shard_size: int | str = "5GB") -> None:
    """Write a model as it is, with this README.md, in place of what the folder holds.

    Raises:
        CosmicError: As `save_checkpoint`.

    Example:
        >>> import tempfile
        >>> from cosmic_tl import load_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(load_model("demo", device="cpu"), Path(folder) / "copy", "# A copy")
        ...     (Path(folder) / "copy" / "README.md").read_text()
        '# A copy'
    """
    plain = plain_model(model)
    with whole_folder(folder) as new:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
                plain.save_pretrained(new, max_shard_size=max_shard_size)
        except ValueError as error:
            first = str(error).strip().splitlines()[0]
            raise CosmicError(
                f"model: transformers would not save it ({first}); fix max_shard_size or the configs"
            ) from error
        if model.tokenizer is not None:
            _plain_tokenizer(model).save_pretrained(new)
        (new / "README.md").write_text(card, encoding="utf-8")


def plain_model(model: TransformerBridge) -> Any:
    """A plain `transformers` model without the bridge's modules and hooks, sharing the same weights in memory.

    Args:
        model: The `TransformerBridge`; not changed.

    Raises:
        CosmicError: If the weights are quantized, offloaded, or processed by TransformerLens.

    Example:
        >>> from cosmic_tl import load_model
        >>> type(plain_model(load_model("demo", device="cpu"))).__name__
        'Qwen2ForCausalLM'
    """
    inner: Any = model.original_model
    if getattr(model, "_weights_processed", False):
        raise CosmicError(
            "model: its weights were processed (enable_compatibility_mode), so they are no plain model's; "
            "load it again, or use enable_compatibility_mode(no_processing=True)"
        )
    state: dict[str, Tensor] = {}
    computed: dict[str, Tensor] = {}
    for path, module in plain_modules(inner):
        transient = module._non_persistent_buffers_set
        computed |= {path + leaf: x for leaf, x in module._buffers.items() if leaf in transient and x is not None}
        named = {**module._parameters, **{k: v for k, v in module._buffers.items() if k not in transient}}
        state |= {path + leaf: tensor.detach() for leaf, tensor in named.items() if tensor is not None}
    parameters = dict(plain_parameters(inner))
    for name, tensor in state.items():
        # A buffer may hold integers; a parameter that does is packed.
        weight = name in parameters or tensor.is_floating_point()
        if weight and (reason := unreadable_weight_reason(tensor)) is not None:
            raise CosmicError(
                f"model: {name} cannot be saved ({reason}); load the model unquantized, without offloading"
            )
    config = copy.deepcopy(inner.config)
    config.output_attentions = False  # which TransformerLens turns on for its hooks
    with torch.device("meta"):
        plain = type(inner)._from_config(config)
    expected = plain.state_dict()
    # TransformerLens adds a zero bias to an unembedding without one, which a plain model does not have.
    differing = [name for name in state if name not in expected and state[name].any()]
    if differing := [*differing, *(expected.keys() - state.keys())]:
        raise CosmicError(
            f"model: the bridge's weights are not those of a plain {type(inner).__name__} ({differing[0]}, among "
            f"{len(differing)}); load it again without changing its modules"
        )
    plain.load_state_dict({name: state[name] for name in expected}, assign=True)
    for name, tensor in computed.items():  # such as a rotary embedding's frequencies, which no checkpoint holds
        path, _, leaf = name.rpartition(".")
        plain.get_submodule(path)._buffers[leaf] = tensor
    plain.train(inner.training)  # a new module trains, with dropout
    plain.generation_config = copy.deepcopy(getattr(inner, "generation_config", None))
    # So that fused experts are split again shard by shard, not for the whole model at once.
    plain.hf_device_map = {"": "cpu"}
    return plain


def _plain_tokenizer(model: TransformerBridge) -> Any:
    """The tokenizer as it was before TransformerLens's setup (which adds a BOS token), with the chat template in
    use.
    """
    tokenizer: Any = model.tokenizer
    name = str(tokenizer.name_or_path)
    try:
        plain = (
            gguf_tokenizer(name)
            if name.endswith(GGUF)
            else AutoTokenizer.from_pretrained(
                name, trust_remote_code=bool(getattr(model.cfg, "trust_remote_code", False))
            )
        )
    except (OSError, ValueError):
        return tokenizer
    if len(plain) != len(tokenizer):
        return tokenizer  # someone added tokens
    plain.chat_template = tokenizer.chat_template
    return plain


def hub_name(model: TransformerBridge) -> str | None:
    """The name of a model on the Hugging Face hub, None if it was loaded from a folder or file, or is a demo.

    Example:
        >>> from cosmic_tl import load_model
        >>> hub_name(load_model("demo", device="cpu"))
    """
    name = model_label(model)
    return None if name in DEMOS or Path(name).exists() else name


def model_card(model: TransformerBridge, edit: WeightEdit | None = None) -> str:
    """The README.md of a checkpoint, with the hub's metadata.

    Example:
        >>> from cosmic_tl import load_model
        >>> print(model_card(load_model("demo", device="cpu")).splitlines()[4])
        # demo
    """
    on_hub = hub_name(model)
    name = on_hub or Path(model_label(model)).name
    header = ["---", "library_name: transformers"]
    header += [f"base_model: {json.dumps(name)}"] * (on_hub is not None)
    if edit is None:
        return "\n".join([*header, "tags: []", "---", f"# {name}", "", f"Saved from {name}. No edit was recorded.", ""])
    d = edit.direction
    table = {
        "Direction": f"{d.method}, layer {d.layer}, position {d.position}",
        "Found in": d.model or "not recorded",
        "Strength": f"{edit.strength:g}",
        "Blocks": "all, and the embeddings" if edit.layers is None else ", ".join(map(str, edit.layers)),
        "Row norms": "kept" if edit.norm_preserving else "not kept",
        "Unembedding": "untied from the embeddings and not edited" if edit.untied else "not edited",
        "Made with": ", ".join(f"{package} {version}" for package, version in versions().items()),
    }
    removal = f"`W' = W − {edit.strength:g} · r̂ r̂ᵀ W`"
    if edit.norm_preserving:
        removal += ", each vector that is written scaled back to its norm"
    equal = (
        "The model equals the original one under directional ablation (Arditi et al. 2024, section 2.4) up to rounding."
        if edit.exact
        else "The model does not equal the original one under directional ablation (Arditi et al. 2024, section 2.4)."
    )
    if edit.rescaling:
        removal += ", with `(r̂/g)(g ⊙ r̂)ᵀ` in place of `r̂ r̂ᵀ` where a norm of gain `g` follows"
        equal += f" Those norms change the length of what is written by up to {edit.rescaling:.1%} (on probe tokens)."
    lines = [
        *header,
        "tags: [weight-orthogonalization]",
        "---",
        f"# {name}, with a direction removed from its weights",
        "",
        f"A copy of {name} in which the matrices that write to the residual stream were edited to remove a direction:",
        f"{removal}. {equal}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in table.items()),
        "",
        "| parameters edited | how many |",
        "|---|---|",
        *(f"| `{kind}` | {count} |" for kind, count in edit.kinds.items()),
        "",
        "## Safety",
        "",
        "If the direction carries refusal, this model answers requests that the original declines, harmful ones among them,",
        "and nothing at run time turns that off. It is meant for research into how models represent such concepts.",
        "Put no such model before users without safeguards of your own; the licence of the original still holds.",
        "",
    ]
    return "\n".join(lines)
