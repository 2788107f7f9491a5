"""Which parameters write to the residual stream, and their names in plain `transformers`.

Found through TransformerLens's components, which are the same for every architecture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import NormalizationBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.utilities.quantization import unreadable_weight_reason as unreadable_weight_reason
from transformers.pytorch_utils import Conv1D

from cosmic_tl.errors import CosmicError
from cosmic_tl.model.forward import read, tiny_batch
from cosmic_tl.model.hooks import Site, hook_name, probed


@dataclass(frozen=True, eq=False)
class Writer:
    """A parameter whose rows or columns are added to the stream: a matrix, an embedding table or a bias."""

    name: str
    """Its name in plain `transformers`."""
    parameter: torch.nn.Parameter
    axis: int
    """The axis of the stream, -1 or -2; the others are input dimensions, tokens, positions or experts."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What the embeddings, an attention or an MLP add to the stream, and the parameters that write it."""

    layer: int
    site: Site
    """The hook point at which it can be read; for the embeddings, `hook_resid_pre` of the first block."""
    writers: tuple[Writer, ...]
    gain: Float[Tensor, " d_model"] | None = None
    """Gain of the norm between the writers and the stream (Gemma 2 and 3, OLMo 2), if there is one. float64."""

    def __str__(self) -> str:
        part = {"hook_attn_out": "attention", "hook_mlp_out": "MLP"}
        return f"block {self.layer}'s {part[self.site]}" if self.site in part else "the embedding"


def plain_modules(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module of the plain `transformers` model below a bridge's `original_model`, with its name and a dot.

    Example:
        >>> from cosmic_tl import load_model
        >>> names = [name for name, _ in plain_modules(load_model("demo", device="cpu").original_model)]
        >>> names[:4]
        ['', 'model.', 'model.embed_tokens.', 'model.layers.']
    """
    while isinstance(module, GeneralizedComponent) and module.original_component is not None:
        module = module.original_component
    yield prefix, module
    for name, child in module._modules.items():  # named_children leaves out a module's second name
        if child is not None:
            yield from plain_modules(child, f"{prefix}{name}.")


def plain_parameters(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters with their names in plain `transformers`; a tied parameter appears once per name.

    Example:
        >>> from cosmic_tl import load_model
        >>> next(plain_parameters(load_model("demo", device="cpu").original_model))[0]
        'model.embed_tokens.weight'
    """
    for path, inner in plain_modules(module, prefix):
        for leaf, parameter in inner._parameters.items():
            if parameter is not None:
                yield path + leaf, parameter


def contributions(model: TransformerBridge) -> list[Contribution]:
    """Everything that is added to the stream, starting with the embeddings.

    Raises:
        CosmicError: If a component's output projection cannot be found.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = contributions(load_model("demo", device="cpu"))
        >>> [(str(one), one.writers[0].name) for one in found[:2]]
        [('the embedding', 'model.embed_tokens.weight'),
         ("block 0's attention", 'model.layers.0.self_attn.o_proj.weight')]
    """
    names: dict[int, str] = {}
    for name, parameter in plain_parameters(model.original_model):
        names.setdefault(id(parameter), name)
    d_model = int(model.cfg.d_model)

    def contribution(layer: int, site: Site, found: list[tuple[torch.nn.Module, str]]) -> Contribution:
        writers = []
        for module, leaf in found:
            parameter = module._parameters[leaf]
            if parameter is not None and d_model in parameter.shape and id(parameter) in names:
                writers.append(Writer(names[id(parameter)], parameter, _axis(module, leaf, d_model)))
        if not writers:
            raise CosmicError(
                f"model: the matrices of {Contribution(layer, site, ())} that write to the stream of "
                f"{type(model.original_model).__name__} were not found; use the Ablation intervention"
            )
        return Contribution(layer, site, tuple(writers), gain_to_stream(model, layer, site))

    tables = [model.get_submodule(name) for name in ("embed", "pos_embed") if name in dict(model.named_children())]
    everything = [contribution(0, "hook_resid_pre", [pair for table in tables for pair in _own(table)])]
    for layer, block in enumerate(model.blocks):
        parts = dict(block.named_children())
        everything += [
            contribution(layer, "hook_attn_out", _outputs(parts.get("attn"), "o", d_model)),
            contribution(layer, "hook_mlp_out", _outputs(parts.get("mlp"), "out", d_model)),
        ]
    return everything


def _own(component: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """The parameters of one module, as pairs of the module that holds them and their names there."""
    _, module = next(plain_modules(component))
    return [(module, leaf) for leaf in module._parameters]


def _outputs(component: torch.nn.Module | None, name: str, d_model: int) -> list[tuple[torch.nn.Module, str]]:
    """The parameters of the output projection; of all experts if TransformerLens names no projection, as in a mixture
    of experts.
    """
    if component is None:
        return []
    projection = dict(component.named_children()).get(name)
    if projection is not None:
        return _own(projection)
    return [
        (module, leaf)
        for path, module in plain_modules(component)
        for leaf, parameter in module._parameters.items()
        if parameter is not None and _is_output(path + leaf, module, d_model)
    ]


def _is_output(name: str, module: torch.nn.Module, d_model: int) -> bool:
    """Whether a parameter somewhere in a mixture of experts belongs to an output projection.

    Nearly all models in `transformers` call it `down_proj`, fused or not. Others are distinguished from routers, gates
    and input projections by their shape. Mistakes are found when the edit is tried out.
    """
    if "down_proj" in name:
        return True
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim < 2 or not weight.shape[-2] == d_model != weight.shape[-1]:
        return False
    return isinstance(module, torch.nn.Linear) or weight.ndim == 3


def _axis(module: torch.nn.Module, leaf: str, d_model: int) -> int:
    """The axis of the stream: the last one if weights are stored as [..., input, output], else the second to last."""
    input_first = isinstance(module, (torch.nn.Embedding, Conv1D)) or getattr(module, "is_transposed", False)
    shape = module.get_parameter(leaf).shape
    return -1 if input_first or "bias" in leaf or shape[-2] != d_model else -2


def gain_to_stream(model: TransformerBridge, layer: int, site: Site) -> Float64[Tensor, " d_model"] | None:
    """The gain of a norm whose output is added to the stream, None without one.

    Raises:
        CosmicError: If it does more than scale.

    Example:
        >>> from cosmic_tl import load_model
        >>> gain_to_stream(load_model("demo", device="cpu"), 0, "hook_attn_out")
    """
    component = model.get_submodule(hook_name(model, layer, site).rpartition(".")[0])
    if not isinstance(component, NormalizationBridge):
        return None
    norm = component.original_component
    if not component.uses_rms_norm or (gain := gain_of(component)) is None or getattr(norm, "bias", None) is not None:
        raise CosmicError(
            f"model: {Contribution(layer, site, ())} passes a {type(norm).__name__} before the stream, so that what "
            "its weights write is not what is added; use the Ablation intervention"
        )
    return gain


def gain_of(component: NormalizationBridge) -> Float64[Tensor, " d_model"] | None:
    """What a norm multiplies each dimension with, None if with nothing.

    Example:
        >>> from cosmic_tl import load_model
        >>> gain_of(load_model("demo", device="cpu").blocks[0].ln1).shape
        torch.Size([128])
    """
    weight = getattr(component.original_component, "weight", None)
    if weight is None:
        return None
    gain: Tensor = weight.detach().cpu().double()
    return gain + 1.0 if component.uses_weight_offset else gain


def _wide(x: Tensor) -> Tensor:
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


@dataclass(frozen=True, eq=False)
class OutputProjection:
    """The matrix through which the heads of an attention, or the neurons of an MLP, write."""

    hook_in: str
    """Where its input is read: what all heads, or all neurons, give, side by side."""
    hook_out: str
    n_parts: int
    """Heads or neurons."""
    module: torch.nn.Module

    def of_each(self, inputs: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows part d_model"]:
        """What every part writes, without the bias."""
        width = inputs.shape[-1] // self.n_parts
        own = torch.eye(self.n_parts, dtype=inputs.dtype, device=inputs.device).repeat_interleave(width, 1)
        return self._written(inputs[..., None, :] * own)

    def of(self, inputs: Float[Tensor, "row d_in"], parts: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """What one part writes, another one in each row, without the bias."""
        width = inputs.shape[-1] // self.n_parts
        of_part = torch.arange(inputs.shape[-1], device=inputs.device) // width
        return self._written(inputs * (of_part == parts.to(inputs.device)[:, None]))

    def along(self, vectors: Float[Tensor, "n d_model"]) -> tuple[Float64[Tensor, "n d_in"], Float64[Tensor, " n"]]:
        """What one unit of each input adds along some vectors, `Wᵀ v`, and what the bias adds; computed in float32 or better.

        Raises:
            CosmicError: If the weights are quantized or not in memory.
        """
        for name, parameter in self.module.named_parameters():
            if (reason := unreadable_weight_reason(parameter)) is not None:
                raise CosmicError(
                    f"model: the {name} behind {self.hook_in} cannot be read ({reason}); load the model unquantized and whole in "
                    "memory, without offloading"
                )
        weights = {name: _wide(parameter) for name, parameter in self.module.named_parameters()}
        width, some = self.module.get_parameter("weight").numel() // vectors.shape[1], next(iter(weights.values()))
        with torch.inference_mode(False), torch.enable_grad():
            inputs = torch.zeros(len(vectors), width, dtype=some.dtype, device=some.device, requires_grad=True)
            written = (torch.func.functional_call(self.module, weights, (inputs,)) * vectors.to(some)).sum(-1)
            (slopes,) = torch.autograd.grad(written.sum(), inputs)
        return slopes.cpu().double(), written.detach().cpu().double()

    def _written(self, inputs: Tensor) -> Tensor:
        """The projection is affine: a part's share is its output less that of a zero input."""
        written: Tensor = self.module(inputs) - self.module(torch.zeros_like(inputs.flatten(0, -2)[:1]))[0]
        return written


def output_projection(model: TransformerBridge, layer: int, part: Literal["attention", "mlp"]) -> OutputProjection:
    """The projection through which a block's heads or neurons write to the stream.

    Raises:
        CosmicError: If the block has none, as in a mixture of experts.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = output_projection(load_model("demo", device="cpu"), 3, "attention")
        >>> found.hook_in, found.n_parts
        ('blocks.3.attn.o.hook_in', 4)
    """
    name, what, size = ("attn.o", "heads", "n_heads") if part == "attention" else ("mlp.out", "neurons", "d_mlp")
    points = [model.hook_dict.get(f"blocks.{layer}.{name}.hook_{end}") for end in ("in", "out")]
    names = [str(point.name) for point in points if point is not None and point.name is not None]
    if len(names) < 2:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} has no {name}; its {what} cannot be told apart"
        )
    module: Any = model.get_submodule(f"blocks.{layer}.{name}")
    return OutputProjection(names[0], names[1], int(getattr(model.cfg, size)), module.original_component)


def check_own_parts(model: TransformerBridge, layer: int, part: Literal["attention", "mlp"]) -> None:
    """Check that what heads or neurons write goes to the stream as it is, so that each adds a part of its own.

    Raises:
        CosmicError: If a norm stands in between (Gemma 2 and 3, OLMo 2).

    Example:
        >>> from cosmic_tl import load_model
        >>> check_own_parts(load_model("demo", device="cpu"), 3, "mlp")
    """
    site: Site = "hook_attn_out" if part == "attention" else "hook_mlp_out"
    if isinstance(model.get_submodule(hook_name(model, layer, site).rpartition(".")[0]), NormalizationBridge):
        raise CosmicError(
            f"part: {Contribution(layer, site, ())} of {type(model.original_model).__name__} passes a norm before the stream, "
            "so its parts add nothing of their own; use the whole of it"
        )


def check_additive(model: TransformerBridge) -> None:
    """Check that each block adds `hook_attn_out` and `hook_mlp_out` to its input and does nothing else.

    Directional ablation edits these three points, and removes the direction from the whole stream only in this case.

    Raises:
        CosmicError: If a block's output is anything but the sum.

    Example:
        >>> from cosmic_tl import load_model
        >>> check_additive(load_model("demo", device="cpu"))
    """
    if (layer := probed(model, "additive", lambda: _first_not_additive(model))) is not None:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} does more than add attention and MLP "
            "outputs to its input, so directional ablation would not hold; use AffineEdit (mode='affine') instead"
        )


def _first_not_additive(model: TransformerBridge) -> int | None:
    n_layers = int(model.cfg.n_layers)
    sites: tuple[Site, ...] = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    found = read(
        model, tiny_batch(model), [(layer, site) for layer in range(n_layers) for site in sites], n_positions=4
    )
    for layer in range(n_layers):
        before, attn, mlp, after = (found[layer, site].float() for site in sites)
        tolerance = 1e-3 if found[layer, sites[0]].dtype == torch.float32 else 5e-2
        if before.shape != after.shape or not (after - before - attn.to(after) - mlp.to(after)).norm() <= (
            tolerance * after.norm()
        ):
            return layer
    return None
