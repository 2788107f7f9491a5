"""Formats that are a short Python script beside a safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmic_tl._util.files import write_atomically
from cosmic_tl._util.sealed import write_sealed
from cosmic_tl.errors import CosmicError


def write_script(path: Path, text: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], layout: str) -> None:
    """Write a script, and beside it its tensors in float32 with what is known of them.

    Args:
        path: The script.
        text: What it says, with `{about}` and `{stem}` for its docstring's first line and the name it is imported by.
        tensors: Tensors by name.
        about: From `describe`.
        layout: Name of the layout of the tensors, which the metadata hold.

    Raises:
        CosmicError: If the script could not be imported under its name, or cannot be written.

    Example:
        >>> write_script(Path("a-b.py"), "", {}, {}, "cosmic_tl/steer/1")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: found 'a-b.py'; a script that can be imported is called steer.py, say
    """
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise CosmicError(f"out: found {path.name!r}; a script that can be imported is called steer.py, say")
    content = {name: one.detach().cpu().float().contiguous() for name, one in tensors.items()}
    layer = about["applied_at_layer"]
    title = f"{about['edit']} for {about['model']}, at {'every layer' if layer == 'all' else f'layer {layer}'}."
    title = title.replace("\\", "/").replace('"', "'")
    write_sealed(path.with_suffix(".safetensors"), content, {"format": layout, **about})
    write_atomically(path, text.replace("{about}", title).replace("{stem}", path.stem))
