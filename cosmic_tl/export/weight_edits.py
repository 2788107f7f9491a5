"""Edits of one layer as changes of weights, in place and tried out: of the embeddings, and of the bias below a block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from torch import Tensor

from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.orthogonalize import untie
from cosmic_tl.model.components import Writer, contributions, plain_modules, unreadable_weight_reason
from cosmic_tl.model.forward import read, tiny_batch
from cosmic_tl.model.hooks import alone, without_hooks
from cosmic_tl.model.load import TransformerBridge

_CHUNK = 2**18
"""Number of weights that are edited at a time, in double precision."""
_UNSET = object()


@contextmanager
def unchanged(model: TransformerBridge, writers: Sequence[Writer]) -> Iterator[None]:
    """Let some parameters be edited in place within the context, and restore them bit for bit afterwards, and what was tied.

    Holds those parameters twice meanwhile.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [table] = contributions(model)[0].writers
        >>> with unchanged(model, [table]), torch.no_grad():
        ...     _ = table.parameter.zero_()
        >>> bool(table.parameter.any())
        True
    """
    inner = model.original_model
    configs = (inner.config, inner.config.get_text_config(), model.cfg)
    with alone(model):
        placed = [
            (module, leaf, parameter)
            for _, module in plain_modules(inner)
            for leaf, parameter in module._parameters.items()
            if parameter is not None
        ]
        kept = [(one, one.data) for one in {id(one.parameter): one.parameter for one in writers}.values()]
        tied, keys = [getattr(one, "tie_word_embeddings", _UNSET) for one in configs], inner.all_tied_weights_keys
        try:
            for parameter, data in kept:
                parameter.data = data.clone()
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data
            for module, leaf, parameter in placed:
                if module._parameters[leaf] is not parameter:
                    setattr(module, leaf, parameter)
            for config, value in zip(configs, tied, strict=True):
                if value is not _UNSET:
                    config.tie_word_embeddings = value
            inner.all_tied_weights_keys = keys


def edit_embeddings(model: TransformerBridge, change: AffineMap) -> list[str]:
    """Edit the embedding tables in place so that what enters the first block is the map of what entered it before.

    The linear part of `x' = x − leftᵀ (right x − offset)` is applied to each row of every table, and the constant is added to the
    rows of the token embeddings, divided by what the model multiplies them with (Gemma). An unembedding that is tied to them gets
    its own copy first and is not edited.

    Returns:
        The names of the edited tables.

    Raises:
        CosmicError: If the stream that enters the first block is then another one, as after a norm of the embeddings. The tables
            are then edited already: call it within `unchanged`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> along = torch.eye(1, 128)
        >>> edit_embeddings(model, AffineMap(along, along, torch.tensor([2.0])))
        ['model.embed_tokens.weight']
        >>> model.original_model.get_input_embeddings().weight[:3, 0].tolist()
        [2.0, 2.0, 2.0]
    """
    tables = contributions(model)[0].writers
    _check_readable(tables)
    before = _stream(model, 0)
    left, right = change.left.double(), change.right.double()
    constant = change.offset.double() @ left
    if constant.any():
        constant = constant / _scale(model, tables[0], before)
    untie(model, tables)
    for table in tables:
        _add_to_rows(table, lambda rows: -(rows @ right.T) @ left)
    _add_to_rows(tables[0], lambda rows: constant.expand_as(rows))
    names = [one.name for one in tables]
    _check_stream(model, 0, change(before), names)
    return names


def edit_bias(model: TransformerBridge, layer: int, vector: Float64[Tensor, " d_model"]) -> str:
    """Add a vector to what enters a block, through the bias of the MLP of the block before it, in place.

    Returns:
        The name of the bias.

    Raises:
        CosmicError: If there is none, or what enters the block is then another stream. The bias is then edited already: call it
            within `unchanged`.

    Example:
        >>> from cosmic_tl import load_model
        >>> edit_bias(load_model("demo", device="cpu"), 3, torch.ones(128, dtype=torch.float64))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: layer: the MLP of block 2 of Qwen2ForCausalLM has no bias to change; use steer.py
    """
    if (bias := bias_below(model, layer)) is None:
        raise CosmicError(
            f"layer: the MLP of block {layer - 1} of {type(model.original_model).__name__} has no bias to change; use steer.py"
        )
    _check_readable([bias])
    before = _stream(model, layer)
    with torch.no_grad():
        bias.parameter.copy_(bias.parameter.double().cpu() + vector)
    _check_stream(model, layer, before + vector, [bias.name])
    return bias.name


def bias_below(model: TransformerBridge, layer: int) -> Writer | None:
    """The bias that the block before a layer adds to the stream after everything else has been read, None without one.

    That is its MLP's: the bias of an attention is read by the MLP after it, except in parallel blocks.

    Example:
        >>> from cosmic_tl import load_model
        >>> bias_below(load_model("demo", device="cpu"), 3)
    """
    mlp = next((one for one in contributions(model) if (one.layer, one.site) == (layer - 1, "hook_mlp_out")), None)
    if mlp is None or mlp.gain is not None:
        return None
    return next((one for one in mlp.writers if one.parameter.ndim == 1), None)


def _scale(model: TransformerBridge, table: Writer, before: Float64[Tensor, "token d_model"]) -> float:
    """What the model multiplies token embeddings with, measured: the stream's change when all of them change by one vector."""
    size = table.parameter.detach().float().square().mean().sqrt().item() or 1.0
    kept, step = table.parameter.data, torch.full((before.shape[1],), size, dtype=torch.float64)
    try:
        table.parameter.data = kept.clone()
        _add_to_rows(table, lambda rows: step.expand_as(rows))
        change = _stream(model, 0) - before
    finally:
        table.parameter.data = kept
    return float((change @ step).mean() / step.square().sum())


@torch.no_grad()
def _add_to_rows(table: Writer, added: Callable[[Tensor], Tensor]) -> None:
    rows = table.parameter.detach()
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        wide = some.cpu().double()
        some.copy_(wide + added(wide))


def _stream(model: TransformerBridge, layer: int) -> Float64[Tensor, "token d_model"]:
    """What enters a block, on a few tokens."""
    batch = tiny_batch(model)
    with without_hooks(model):
        found = read(model, batch, [(layer, "hook_resid_pre")], n_positions=batch.ids.shape[1])
    return found[layer, "hook_resid_pre"][0].cpu().double()


def _check_stream(
    model: TransformerBridge, layer: int, expected: Float64[Tensor, "token d_model"], names: Sequence[str]
) -> None:
    found = _stream(model, layer)
    tolerance = 1e-5 if next(model.original_model.parameters()).dtype in (torch.float32, torch.float64) else 2e-2
    if not (found - expected).norm(dim=1).max() <= tolerance * expected.norm(dim=1).max():
        raise CosmicError(
            f"model: after editing {', '.join(names)} what enters block {layer} of {type(model.original_model).__name__} is not "
            "what the edit gives there; use the format steer.py"
        )


def _check_readable(writers: Sequence[Writer]) -> None:
    for one in writers:
        if (reason := unreadable_weight_reason(one.parameter)) is not None:
            raise CosmicError(
                f"model: {one.name} cannot be edited ({reason}); load the model unquantized, without offloading"
            )
