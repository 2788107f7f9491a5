"""Tensors in a safetensors file with what belongs to them, and a checksum of both."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cosmic_tl._util.files import write_atomically

Tensors = dict[str, torch.Tensor]
DAMAGE = (AttributeError, ImportError, IndexError, KeyError, OSError, SafetensorError, TypeError, ValueError)
"""What reading a file can raise that is damaged, or that something else wrote."""


def write_sealed(path: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """Write tensors, and settings as JSON in the metadata of the file's header, completely or not at all.

    Args:
        path: The file.
        tensors: Contiguous, on the CPU.
        settings: Anything that JSON has.

    Raises:
        CosmicError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_sealed(Path(folder) / "a", {"x": torch.ones(1)}, {"layer": 3})
        ...     read_sealed(Path(folder) / "a")
        ({'layer': 3}, {'x': tensor([1.])})
    """
    whole = {**settings, "sha256": _checksum(settings, tensors)}
    # One entry, since safetensors writes several in any order: the same content is the same bytes.
    write_atomically(path, save(dict(tensors), metadata={"settings": json.dumps(whole)}))


def read_sealed(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Settings and tensors of a file that `write_sealed` wrote.

    Raises:
        ValueError: If a bit of them has changed since.
        Exception: Any of `DAMAGE`, if the file is damaged otherwise or is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_sealed(path := Path(folder) / "a", {"x": torch.ones(1)}, {})
        ...     _ = path.write_bytes(path.read_bytes()[:-1] + b"!")
        ...     read_sealed(path)
        Traceback (most recent call last):
        ValueError: its checksum is another
    """
    with safe_open(path, framework="pt") as file:
        settings = dict(json.loads((file.metadata() or {})["settings"]))
        tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if settings.pop("sha256") != _checksum(settings, tensors):
        raise ValueError("its checksum is another")
    return settings, tensors


def _checksum(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    found = sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
