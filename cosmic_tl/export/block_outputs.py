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


def block_before(model: TransformerBridge, edit: Edit) -> int:
    """The block whose output is the input of the layer of an edit, from layer 1 on.

    Raises:
        CosmicError: If the model computes something between the two blocks.

    Example:
        >>> import torch
        >>> from cosmic_tl import Addition, Direction, load_model
        >>> block_before(load_model("demo", device="cpu"), Addition(Direction(torch.ones(128), None, 3, -1)))
        2
    """
    layer, _ = edit.place
    [(block, _)] = module_places(model, [(layer - 1, "hook_resid_pre")])
    if (before := modules_before(model, [layer])[layer]) != block:
        kind = type(model.original_model).__name__
        raise CosmicError(
            f"layer: in {kind} the input of block {layer} is not the output of {block} (but of {before or 'no module'}), which "
            "this format edits; use the format steer.py"
        )
    return layer - 1
