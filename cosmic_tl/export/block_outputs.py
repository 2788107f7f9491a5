"""Additions as tools see them that add to the outputs of blocks: the output of block l − 1 is the input of block l."""

from jaxtyping import Float32
from torch import Tensor

from cosmic_tl.errors import CosmicError
from cosmic_tl.export.places import module_places, modules_before
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.load import TransformerBridge


def added(edit: Edit) -> Float32[Tensor, " d_model"]:
    """What an `Addition` adds: α r.

    Example:
        >>> import torch
        >>> from cosmic_tl import Addition, Direction
        >>> added(Addition(Direction(torch.ones(4), None, 3, -1), alpha=0.5))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    return (edit.map.offset.double() @ edit.map.left.double()).float().cpu().contiguous()


def block_before(model: TransformerBridge, edit: Edit, form: str, first: int) -> int:
    """The block whose output is the input of the layer of an edit.

    Args:
        model: The model.
        edit: An edit of one layer.
        form: Name of the format.
        first: The first block whose output the format has a place for.

    Raises:
        CosmicError: If the format has no place for it, or the model computes something between the two blocks.

    Example:
        >>> import torch
        >>> from cosmic_tl import Addition, Direction, load_model
        >>> edit = Addition(Direction(torch.ones(128), None, 1, -1))
        >>> block_before(load_model("demo", device="cpu"), edit, "llama.cpp", first=1)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: layer: llama.cpp adds to the outputs of blocks from 1 on, our layers from 2 on, and ...
    """
    layer, _ = edit.place
    if layer <= first:
        raise CosmicError(
            f"layer: {form} adds to the outputs of blocks from {first} on, our layers from {first + 1} on, and the edit is at "
            f"layer {layer}; use the format steer.py"
        )
    [(block, _)] = module_places(model, [(layer - 1, "hook_resid_pre")])
    if (before := modules_before(model, [layer])[layer]) != block:
        kind = type(model.original_model).__name__
        raise CosmicError(
            f"layer: in {kind} the input of block {layer} is not the output of {block} (but of {before or 'no module'}), and "
            f"{form} adds to outputs of blocks; use the format steer.py"
        )
    return layer - 1
