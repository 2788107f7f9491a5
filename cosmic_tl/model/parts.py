"""Single heads and neurons: what each adds to the stream, and what each reads from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import NormalizationBridge

from cosmic_tl.errors import CosmicError
from cosmic_tl.model.components import OutputProjection, gain_of, gain_to_stream, output_projection
from cosmic_tl.model.forward import TokenBatch, read
from cosmic_tl.model.hooks import Hook, Site
from cosmic_tl.model.shortcuts import alike

Kind = Literal["attention", "mlp"]
_SITES: dict[Kind, Site] = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}
READERS = {"query": "W_Q", "key": "W_K", "value": "W_V", "neuron": "W_in", "gate": "W_gate"}
"""What reads the stream: the name here, and TransformerLens's."""


@dataclass(frozen=True, eq=False)
class Output:
    """How what one block's heads or neurons give becomes what is added to the stream."""

    layer: int
    kind: Kind
    projection: OutputProjection
    gain: Float64[Tensor, " d_model"] | None
    """Of a norm between the projection and the stream (Gemma 2 and 3, OLMo 2), if there is one."""

    def along(self, units: Float[Tensor, "n d_model"]) -> tuple[Float64[Tensor, "n d_in"], Float64[Tensor, " n"]]:
        """What one unit of each input writes along some directions, and what the bias writes, before a norm divides it."""
        return self.projection.along(units if self.gain is None else units.double() * self.gain)


def outputs_of(model: TransformerBridge, kind: Kind) -> list[Output]:
    """The output of every block's attention, or of its MLP.

    Raises:
        CosmicError: If a block has no output projection, as in a mixture of experts, or a norm after it does more than scale.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = outputs_of(load_model("demo", device="cpu"), "mlp")
        >>> len(found), found[0].along(torch.eye(128)[:2])[0].shape
        (8, torch.Size([2, 352]))
    """
    return [
        Output(layer, kind, output_projection(model, layer, kind), gain_to_stream(model, layer, _SITES[kind]))
        for layer in range(int(model.cfg.n_layers))
    ]


def given_to(
    model: TransformerBridge, batch: TokenBatch, outputs: Sequence[Output], n_positions: int
) -> list[tuple[Float64[Tensor, "row position d_in"], Float64[Tensor, "row position 1"]]]:
    """What heads or neurons give at the last positions, times what a norm after their projection multiplies it with; and that
    factor, which is 1 without a norm.

    With the slopes and constants of `Output.along`, `given * slope` is what each input adds to the stream along a direction, and
    `factor * constant` what the bias adds.

    Args:
        model: A `TransformerBridge`.
        batch: Left-padded prompts.
        outputs: From `outputs_of`.
        n_positions: How many of the last positions.

    Raises:
        CosmicError: If what a projection gives is not what is added to the stream.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.batching import batches
        >>> model = load_model("demo", device="cpu")
        >>> given, factor = given_to(model, next(batches(model, [[5, 6, 7]], 1)), outputs_of(model, "mlp"), 2)[0]
        >>> given.shape, factor.unique().tolist()
        (torch.Size([1, 2, 352]), [1.0])
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def hook(x: Tensor, hook: Any) -> None:
            kept[name] = x[:, -n_positions:].clone()

        return name, hook

    hooks = [keep(name) for one in outputs for name in (one.projection.hook_in, one.projection.hook_out)]
    sites = [(one.layer, _SITES[one.kind]) for one in outputs]
    added = read(model, batch, sites, n_positions=n_positions, hooks=hooks)
    found = []
    for one, site in zip(outputs, sites, strict=True):
        before, after = (x.cpu().double() for x in (kept[one.projection.hook_out], added[site]))
        scaled = before if one.gain is None else before * one.gain
        factor = (scaled * after).sum(-1, keepdim=True) / scaled.square().sum(-1, keepdim=True).clamp(min=1e-30)
        if torch.equal(scaled, after):
            factor = torch.ones_like(factor)
        if not alike(factor * scaled, after, added[site].dtype):
            raise CosmicError(
                f"model: what block {one.layer}'s {one.kind} adds to the stream of {type(model.original_model).__name__} is not "
                "what its output projection gives, so that its parts cannot be told apart"
            )
        found.append((factor * kept[one.projection.hook_in].flatten(2).cpu().double(), factor))
    return found


def reading_along(
    model: TransformerBridge, layer: int, units: Float[Tensor, "n d_model"]
) -> dict[str, Float[Tensor, "n part d_head"]]:
    """What a block's heads and neurons read from a stream that is some unit vector, but for the norm's division by its length.

    Args:
        model: A `TransformerBridge`.
        layer: The block.
        units: Unit vectors.

    Returns:
        For queries, keys, values and neurons, and for gates if there are any: a vector per head, a number per neuron.

    Raises:
        CosmicError: If a matrix is not found, as in a mixture of experts, or is quantized.

    Example:
        >>> from cosmic_tl import load_model
        >>> found = reading_along(load_model("demo", device="cpu"), 3, torch.eye(128)[:2])
        >>> {name: tuple(values.shape) for name, values in found.items()}
        {'query': (2, 4, 32), 'key': (2, 2, 32), 'value': (2, 2, 32), 'neuron': (2, 352, 1), 'gate': (2, 352, 1)}
    """
    found = {}
    for part, name in READERS.items():
        component, norm = ("attn", "ln1") if part in ("query", "key", "value") else ("mlp", "ln2")
        if part == "gate" and getattr(getattr(model.blocks[layer], component, None), name, None) is None:
            continue
        weight = _matrix(model, layer, component, name)
        seen = _through_norm(model, layer, norm, units.double()).to(weight.dtype).to(weight.device)
        found[part] = (
            torch.einsum("nd,hdk->nhk", seen, weight) if weight.ndim == 3 else (seen @ weight)[..., None]
        ).cpu()
    return found


def _matrix(model: TransformerBridge, layer: int, component: str, name: str) -> Tensor:
    try:
        found = getattr(getattr(model.blocks[layer], component), name)
        assert isinstance(found, Tensor)
    except (AttributeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CosmicError(
            f"model: block {layer} of {type(model.original_model).__name__} has no {component}.{name} that can be read; its "
            "parts cannot be told apart"
        ) from error
    return found.detach() if found.dtype == torch.float64 else found.detach().float()


def _through_norm(
    model: TransformerBridge, layer: int, name: str, units: Float64[Tensor, "n d_model"]
) -> Float64[Tensor, "n d_model"]:
    """What the norm before attention ("ln1") or MLP ("ln2") makes of unit vectors, but for its division. Parallel blocks have
    one for both, and OLMo 2 has none.
    """
    parts = dict(model.blocks[layer].named_children())
    norm = parts.get(name) or parts.get("ln1")
    if not isinstance(norm, NormalizationBridge):
        return units
    centred = units if norm.uses_rms_norm else units - units.mean(1, keepdim=True)
    gain = gain_of(norm)
    return centred if gain is None else centred * gain
