"""Weight orthogonalization (Arditi et al. 2024, section 2.4, equation 5): directional ablation without hooks."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_alpha
from cosmic_tl.model.batching import batches
from cosmic_tl.model.components import (
    Contribution,
    Writer,
    check_additive,
    contributions,
    plain_modules,
    plain_parameters,
    unreadable_weight_reason,
)
from cosmic_tl.model.fingerprint import model_fingerprint, remember_origin
from cosmic_tl.model.forward import Resume, forward
from cosmic_tl.model.hooks import alone, without_hooks
from cosmic_tl.model.load import TransformerBridge, has_float64

_CHUNK = 2**18
"""Number of weights that are edited at a time, in double precision."""
_PROBE = list(range(1, 9))


@checked
@dataclass(frozen=True, eq=False)
class WeightEdit:
    """What `orthogonalize_weights` did to a model."""

    direction: Direction
    strength: float
    layers: tuple[int, ...] | None
    """The edited blocks; None for all blocks and the embeddings."""
    norm_preserving: bool
    parameters: tuple[str, ...]
    """Names of the edited parameters in plain `transformers`."""
    untied: bool
    """Whether the unembedding shared the token embeddings' weights and got its own, unedited copy."""
    rescaling: float
    """Largest relative change in the length of what is added to the stream, caused by a norm after an edited matrix, on
    eight probe tokens. 0 without such a norm."""

    @property
    def exact(self) -> bool:
        """Whether the edited model equals the original one under directional ablation, to rounding.

        Example:
            >>> direction = Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1)
            >>> WeightEdit(direction, 0.5, None, False, (), False, 0.0).exact
            False
        """
        return self.strength == 1 and self.layers is None and not self.norm_preserving and self.rescaling == 0

    @property
    def kinds(self) -> dict[str, int]:
        """Number of edited parameters by name, with layer numbers replaced by a star.

        Example:
            >>> direction = Direction(torch.ones(4), torch.zeros(4), layer=3, position=-1)
            >>> names = ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight")
            >>> WeightEdit(direction, 1.0, (0, 1), False, names, False, 0.0).kinds
            {'model.layers.*.mlp.down_proj.weight': 2}
        """
        return dict(Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in self.parameters))

    def __repr__(self) -> str:
        where = "everywhere" if self.layers is None else f"layers {', '.join(map(str, self.layers))}"
        what = f"{len(self.parameters)} parameters, strength {self.strength:g}, {where}"
        notes = [
            "norms kept" if self.norm_preserving else "",
            "embeddings untied" if self.untied else "",
            f"rescaled by up to {self.rescaling:.1%}" if self.rescaling else "",
            "equals directional ablation" if self.exact else "",
        ]
        return f"WeightEdit({', '.join([what, *filter(None, notes)])}, {self.direction!r})"


@checked
def orthogonalize_weights(
    model: TransformerBridge,
    direction: Direction,
    *,
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
    norm_preserving: bool = False,
    approximate: bool = False,
) -> WeightEdit:
    """Edit a model's weights in place so that nothing writes along a direction: `W' = W − r̂ r̂ᵀ W`.

    Edits every matrix that writes to the residual stream: token and position embeddings, attention and MLP outputs, all
    experts of a mixture, and their biases. The unembedding is not edited; if it is tied to the embeddings, it gets its
    own copy first. The arithmetic is in double precision (single if the device has no double), rounded once. The
    matrices of one contribution at a time are held twice. Before anything is changed, the edit is tried out
    contribution by contribution, and the result is compared with directional ablation.

    Models with a norm after attention and MLP (Gemma 2 and 3, OLMo 2) add `g ⊙ Wa / rms(Wa)` to the stream. There no
    edit equals ablation unless `r̂` is a coordinate axis, since the norm would have to divide by the length of `Wa`
    before the edit. `approximate` edits `W' = W − (r̂/g)(g ⊙ r̂)ᵀ W`: exactly nothing is written along the direction,
    and everything else keeps its direction but not its length. `WeightEdit.rescaling` says by how much; if it is not
    small and gains differ widely, the edited model differs from ablation.

    Args:
        model: The `TransformerBridge` whose weights are edited.
        direction: For example from `select_cosmic`. Its length does not matter.
        strength: 1 (default) removes the component, 0.5 halves it, 2 reflects it.
        layers: Blocks to edit, without the embeddings. Defaults to all blocks and the embeddings.
        norm_preserving: Whether to scale each edited row back to its original norm. A row is what one input dimension
            writes to the stream, a vector of length `d_model` (a row of TransformerLens's `W_O`, `W_out` and `W_E`, a
            column of an `nn.Linear`'s weight), so it stays orthogonal to the direction. Biases keep their norm too. The
            result does not equal ablation.
        approximate: Whether to edit models with a norm after attention and MLP, as described above. Default False.

    Raises:
        CosmicError: If the direction does not fit the model, a number is out of range, weights are quantized or not in
            memory, or the edit does not have the stated effect. The model is then unchanged.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> edit = orthogonalize_weights(model, direction)
        >>> edit.exact, edit.kinds
        (True, {'model.embed_tokens.weight': 1, 'model.layers.*.self_attn.o_proj.weight': 8,
                'model.layers.*.mlp.down_proj.weight': 8})
        >>> bool((model.W_out @ direction.unit).abs().max() < 1e-6)
        True
    """
    direction.check(model)
    check_alpha("strength", strength)
    if strength == 0:
        raise CosmicError(f"strength: must not be 0, found {strength}; 1 removes the direction")
    n_layers = int(model.cfg.n_layers)
    if layers is not None and (not layers or not all(0 <= layer < n_layers for layer in layers)):
        raise CosmicError(
            f"layers: found {list(layers)}, and the model has layers 0 to {n_layers - 1}; name some of them"
        )
    _check_readable(model)
    check_additive(model)
    before = model_fingerprint(model)
    chosen = [
        one
        for one in contributions(model)
        if layers is None or (one.layer in layers and one.site in ("hook_attn_out", "hook_mlp_out"))
    ]
    if (normed := [one for one in chosen if one.gain is not None]) and not approximate:
        raise CosmicError(
            f"model: {normed[0]} of {type(model.original_model).__name__} passes a norm before the stream, so no edit of "
            "weights equals directional ablation; use the Ablation intervention, or approximate=True"
        )
    edited: dict[int, str] = {}
    with alone(model), track(len(chosen), "weights") as advance:
        with without_hooks(model):
            rescaling = rehearse(model, chosen, direction)
        tied = untie(model, chosen[0].writers) if layers is None else False
        for one in chosen:
            for writer in one.writers:
                if id(writer.parameter) not in edited:  # a block may be used twice
                    _remove(writer, *_factors(one, direction), strength, norm_preserving)
                    edited[id(writer.parameter)] = writer.name
            advance(1)
    remember_origin(model, before)
    return WeightEdit(
        direction,
        float(strength),
        None if layers is None else tuple(sorted(set(layers))),
        norm_preserving,
        tuple(edited.values()),
        tied,
        rescaling,
    )


def _check_readable(model: TransformerBridge) -> None:
    for name, parameter in plain_parameters(model.original_model):
        if (reason := unreadable_weight_reason(parameter)) is not None:
            raise CosmicError(
                f"model: {name} cannot be edited ({reason}); load the model unquantized and whole in memory, without "
                "offloading"
            )


def _factors(one: Contribution, direction: Direction) -> tuple[Tensor, Tensor]:
    """The vector read from what a matrix writes, and the vector subtracted."""
    unit = direction.vector.double()
    unit = unit / unit.norm()
    if one.gain is None:
        return unit, unit
    if one.gain.abs().min() < 1e-6 * one.gain.abs().max():
        raise CosmicError(f"model: the gain of the norm after {one} is zero in places; use the Ablation intervention")
    return one.gain * unit, unit / one.gain


@torch.no_grad()
def _remove(
    writer: Writer,
    read: Float64[Tensor, " d_model"],
    write: Float64[Tensor, " d_model"],
    strength: float,
    norm_preserving: bool,
) -> None:
    """`x' = x − s (x·read) write` in place, for each vector `x` of the stream in a parameter."""
    weights, axis = writer.parameter.detach(), writer.axis
    while weights.ndim < 3:
        weights = weights[None]
    wide = torch.float64 if has_float64(weights.device) else torch.float32
    across = (-1, 1) if axis == -2 else (1, -1)
    read, write = (factor.to(weights.device, wide).view(across) for factor in (read, write))
    other = -3 - axis  # -1 or -2, the axis that is not the stream's
    for matrix in weights:
        step = max(1, _CHUNK // matrix.shape[axis])
        for start in range(0, matrix.shape[other], step):
            some = matrix.narrow(other, start, min(step, matrix.shape[other] - start))
            old = some.to(wide)
            new = old - strength * (old * read).sum(axis, keepdim=True) * write
            if norm_preserving:
                was, now = old.norm(dim=axis, keepdim=True), new.norm(dim=axis, keepdim=True)
                # Nothing is left of a vector along the direction.
                new = torch.where(now > 1e-6 * was, new * (was / now), new)
            some.copy_(new)


@contextmanager
def _removed(one: Contribution, direction: Direction) -> Iterator[None]:
    """Remove the direction from one contribution's matrices within the context, and restore them bit for bit."""
    kept = [(writer.parameter, writer.parameter.data) for writer in one.writers]
    try:
        for writer in one.writers:
            writer.parameter.data = writer.parameter.data.clone()
            _remove(writer, *_factors(one, direction), 1.0, False)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def rehearse(model: TransformerBridge, chosen: Sequence[Contribution], direction: Direction) -> float:
    """Check that removing the direction from each contribution's matrices ablates it there and does nothing else.

    Each is tried on the stream of the unedited model, so that errors do not accumulate. The model is as before afterwards.

    Returns:
        The largest relative rescaling of the remainder by a norm.

    Raises:
        CosmicError: If it does anything else.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> direction = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> rehearse(model, contributions(model)[:3], direction)
        0.0
    """
    batch = next(batches(model, [_PROBE], 1))
    sites = {(one.layer, site) for one in chosen for site in ("hook_resid_pre", one.site)}
    clean = forward(model, batch, sites, n_positions=None).activations
    unit = direction.vector.double() / direction.vector.double().norm()
    rescaling = 0.0
    for one in chosen:
        site = (one.layer, one.site)
        resume = None if one.site == "hook_resid_pre" else Resume(one.layer, clean[one.layer, "hook_resid_pre"])
        with _removed(one, direction):
            found = forward(model, batch, [site], n_positions=None, resume=resume).activations[site]
        before, after = (x[0].cpu().double() for x in (clean[site], found))
        expected = before - (before @ unit)[:, None] * unit
        scale = (after * expected).sum(1) / expected.square().sum(1).clamp_min(1e-300)
        tolerance = 1e-3 if found.dtype in (torch.float32, torch.float64) else 5e-2
        size = before.norm(dim=1).max()
        off = (after - (1.0 if one.gain is None else scale[:, None]) * expected).norm(dim=1).max() / size
        # What is left along the direction, compared with what was there and with chance.
        left = (after @ unit).abs().max() / ((before @ unit).abs().max() + size / len(unit) ** 0.5)
        if not (off <= tolerance and left <= 2 * tolerance):
            raise CosmicError(
                f"model: after orthogonalizing {', '.join(writer.name for writer in one.writers[:3])} what {one} adds to "
                f"the stream of {type(model.original_model).__name__} is not what ablation leaves; use the Ablation "
                "intervention"
            )
        if one.gain is not None:
            rescaling = max(rescaling, float((scale - 1).abs().max()))
    return rescaling


def untie(model: TransformerBridge, embeddings: Sequence[Writer]) -> bool:
    """Give parameters that share an embedding's weights, such as the unembedding, their own copy.

    Returns:
        Whether there were any.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> tables = contributions(model)[0].writers
        >>> untie(model, tables), untie(model, tables)
        (True, False)
    """
    inner = model.original_model
    names = {id(writer.parameter): writer.name for writer in embeddings}
    copies: dict[int, torch.nn.Parameter] = {}
    for path, module in plain_modules(inner):
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None and names.get(id(parameter), path + leaf) != path + leaf:
                copy = copies.setdefault(
                    id(parameter), torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                )
                setattr(module, leaf, copy)
    if copies:
        for config in (inner.config, inner.config.get_text_config(), model.cfg):
            config.tie_word_embeddings = False
        inner.all_tied_weights_keys = inner.get_expanded_tied_weights_keys(all_submodels=True)
    return bool(copies)
