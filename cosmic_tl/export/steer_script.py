"""A script of plain torch hooks beside a safetensors file, for any Hugging Face model: no package of ours is needed there."""

import runpy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pprint import pformat
from typing import Any, ClassVar

import torch
from torch import Tensor

from cosmic_tl.errors import CosmicError
from cosmic_tl.export.checkpoint import plain_model
from cosmic_tl.export.formats import EDITS, EXACT, Format, Logits, Verdict
from cosmic_tl.export.places import module_places
from cosmic_tl.export.scripts import write_script
from cosmic_tl.interventions.edits import Edit
from cosmic_tl.model.hooks import Site
from cosmic_tl.model.load import TransformerBridge

SCRIPT = '''"""{about}

    from {stem} import steer
    handles = steer(model)  # a plain transformers model; handle.remove() for each of them ends it
"""

from functools import partial
from pathlib import Path

from safetensors.torch import load_file

PLACES = {places}  # module, its input or output, whether with the offset
TOKENS = "{tokens}"  # all, prompt (the first pass of a generation) or completion (those that continue a cache)


def steer(model, file=Path(__file__).with_suffix(".safetensors")):
    tensors, modules, begun = load_file(file), dict(model.named_modules()), [0]

    def edit(x, constant):  # x' = x − leftᵀ (right x − offset), or without the offset
        if TOKENS != "all" and (TOKENS == "prompt") != (begun[0] == 0):
            return x
        left, right, offset = (tensors[name].to(x.device) for name in ("left", "right", "offset"))
        wide = x.to(left.dtype)
        return (wide - (wide @ right.T - offset * constant) @ left).to(x.dtype)

    def starting(module, args, kwargs):
        cache = kwargs.get("past_key_values")
        begun[0] = 0 if cache is None else cache.get_seq_length()

    def entering(constant, module, args, kwargs):
        if args:
            return (edit(args[0], constant), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"], constant)}

    def leaving(constant, module, args, output):
        return (edit(output[0], constant), *output[1:]) if isinstance(output, tuple) else edit(output, constant)

    handles = [model.register_forward_pre_hook(starting, with_kwargs=True)]
    for name, end, constant in PLACES:
        if end == "input":
            hook = partial(entering, constant)
            handles.append(modules[name].register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(modules[name].register_forward_hook(partial(leaving, constant)))
    return handles
'''


class SteerScript(Format):
    """`steer.py` and `steer.safetensors`: any edit, in plain torch."""

    name = "steer.py"
    title = "a script of plain torch hooks, and its safetensors file"
    file, beside = "steer.py", ".safetensors"
    reader = "transformers"
    carries: ClassVar[Mapping[str, Verdict]] = dict.fromkeys(EDITS, EXACT)
    scopes = ("all", "prompt", "completion")

    def write(self, model: TransformerBridge, edit: Edit, path: Path, about: Mapping[str, Any]) -> None:
        """Write the script, and beside it its tensors."""
        factors = {"left": edit.map.left, "right": edit.map.right, "offset": edit.map.offset}
        points = edit.points(int(model.cfg.n_layers))
        constant = {site: _has_constant(edit, site) for _, site in points}
        found = zip(module_places(model, points), points, strict=True)
        places = [(name, end, constant[site]) for (name, end), (_, site) in found]
        text = SCRIPT.replace("{places}", pformat(places, width=110).replace("'", '"')).replace(
            "{tokens}", str(edit.tokens)
        )
        write_script(path, text, factors, about, "cosmic_tl/steer/1")

    @contextmanager
    def applied(self, path: Path, model: TransformerBridge) -> Iterator[Logits]:
        """Run the script on plain `transformers`."""
        plain = plain_model(model)
        handles = runpy.run_path(str(path))["steer"](plain)

        def logits_of(ids: Tensor, prompt_length: int) -> Tensor:
            prompt = plain(ids[:, :prompt_length], use_cache=True)
            if ids.shape[1] == prompt_length:
                return prompt.logits  # type: ignore[no-any-return]
            return torch.cat(
                [prompt.logits, plain(ids[:, prompt_length:], past_key_values=prompt.past_key_values).logits], 1
            )

        try:
            yield logits_of
        finally:
            for handle in handles:
                handle.remove()


def _has_constant(edit: Edit, site: Site) -> bool:
    """Whether the edit's map has its offset at a kind of hook point, or none there."""
    whole, here = edit.map, edit.map_at(site)
    alike = torch.equal(whole.left, here.left) and torch.equal(whole.right, here.right)
    if alike and (torch.equal(whole.offset, here.offset) or not here.offset.any()):
        return bool(here.offset.any())
    raise CosmicError(
        f"edit: its map at {site} is another one altogether, and steer.py has one; use `steering` in Python"
    )
