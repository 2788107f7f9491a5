"""Where hook points are in a plain `transformers` model: names of modules, and whether at their input or output."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.model.components import plain_modules
from cosmic_tl.model.forward import tiny_batch
from cosmic_tl.model.hooks import Site, hook_name
from cosmic_tl.model.load import TransformerBridge

End = Literal["input", "output"]


def module_places(model: TransformerBridge, points: Sequence[tuple[int, Site]]) -> list[tuple[str, End]]:
    """The plain module of each hook point, and whether its input or its output is the activation there.

    Raises:
        CosmicError: If a block has no such hook point.

    Example:
        >>> from cosmic_tl import load_model
        >>> module_places(load_model("demo", device="cpu"), [(3, "hook_resid_pre"), (3, "hook_mlp_out")])
        [('model.layers.3', 'input'), ('model.layers.3.mlp', 'output')]
    """
    names = {id(module): name.removesuffix(".") for name, module in plain_modules(model.original_model)}
    found: list[tuple[str, End]] = []
    for layer, site in points:
        owner, _, end = hook_name(model, layer, site).rpartition(".")
        _, module = next(plain_modules(model.get_submodule(owner)))
        found.append((names[id(module)], "input" if end == "hook_in" else "output"))
    return found


@torch.inference_mode()
def modules_before(model: TransformerBridge, layers: Sequence[int]) -> dict[int, str | None]:
    """The plain module whose output is the input of each block, for tools that edit outputs only; None where there is none.

    That is the block before it. Before the first it is an embedding or a dropout, unless the model scales or adds embeddings
    outside of any module (Gemma 2). Read off one pass.

    Example:
        >>> from cosmic_tl import load_model
        >>> modules_before(load_model("demo", device="cpu"), [0, 3])
        {0: 'model.embed_tokens', 3: 'model.layers.2'}
    """
    plain, batch = plain_model(model), tiny_batch(model)
    outputs: list[tuple[str, Tensor]] = []
    found: dict[int, str | None] = {}

    def leaving(name: str) -> Any:
        def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor):
                outputs.append((name, value))

        return keep

    def entering(layer: int) -> Any:
        def look(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            stream = args[0] if args else kwargs["hidden_states"]
            found[layer] = next((name for name, value in reversed(outputs) if torch.equal(value, stream)), None)

        return look

    handles = [module.register_forward_hook(leaving(name)) for name, module in plain.named_modules()]
    for layer in layers:
        [(block, _)] = module_places(model, [(layer, "hook_resid_pre")])
        handles.append(plain.get_submodule(block).register_forward_pre_hook(entering(layer), with_kwargs=True))
    try:
        plain(batch.ids, attention_mask=batch.mask)
    finally:
        for handle in handles:
            handle.remove()
    return found
