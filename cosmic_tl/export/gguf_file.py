"""GGUF files of vectors: written with the package `gguf`, and read with checked bounds, since anybody may have made them."""

import json
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmic_tl._util.files import write_atomically, writing
from cosmic_tl.errors import CosmicError

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Type of a GGUF value to its letter in `struct`; 8 is a string and 9 an array."""
STRING, ARRAY, F32 = 8, 9, 0


def write_gguf(path: Path, architecture: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a GGUF file (version 3), completely or not at all.

    Args:
        path: The file.
        architecture: Its `general.architecture`.
        fields: Texts, truth values, numbers and dicts of them, whose keys are joined by dots; anything else is written as JSON.
            A numpy scalar keeps its type; of Python's, whole numbers are 32 bits wide and others float64.
        tensors: Float32, on the CPU.

    Raises:
        CosmicError: If the package gguf is not installed, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_gguf(path := Path(folder) / "a.gguf", "controlvector", {"a": {"b": -1}}, {"direction.1": torch.ones(2)})
        ...     read_gguf(path)
        ({'general.architecture': 'controlvector', 'a.b': -1}, {'direction.1': tensor([1., 1.])})
    """
    try:
        import gguf
    except ImportError as error:
        raise CosmicError(
            "to: writing GGUF takes the package gguf, which is not installed; pip install 'cosmic_tl[gguf]'"
        ) from error
    with writing(path), TemporaryDirectory() as scratch:
        writer = gguf.GGUFWriter(part := Path(scratch) / "part", architecture)
        for key, value in _flat(fields):
            if isinstance(value, np.generic):
                kind = gguf.GGUFValueType[value.dtype.name.upper()]
                writer.add_key_value(key, value.item(), kind)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
            elif isinstance(value, float):
                writer.add_float64(key, value)
            elif text := value if isinstance(value, str) else json.dumps(value, ensure_ascii=False):
                writer.add_string(key, text)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomically(path, part.read_bytes())


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields and float32 tensors of a GGUF file (version 2 or 3, little-endian).

    Nothing is believed that is not within the file: no length makes it loop or allocate beyond the file's own size. Fields that
    are arrays, as a model has them, are passed over.

    Raises:
        ValueError: If it is no such file, or damaged, or has tensors of another type.
        struct.error: If it ends early.
        OSError: If it cannot be read.

    Example:
        >>> read_gguf(Path("pyproject.toml"))
        Traceback (most recent call last):
        ValueError: it does not begin as GGUF does
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin as GGUF does")
        cursor = _Cursor(data, 4)
        if (version := cursor.number("I")) not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 can be read")
        n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            name, kind = cursor.text(), cursor.number("I")
            if kind == ARRAY:
                cursor.skip_array()
            else:
                fields[name] = cursor.value(kind)
        infos = []
        for _ in range(n_tensors):
            name = cursor.text()
            shape = [cursor.number("Q") for _ in range(cursor.number("I"))][::-1]
            infos.append((name, shape, cursor.number("I"), cursor.number("Q")))
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        start = -(-cursor.at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in infos:
            if kind != F32:
                raise ValueError(f"{name} is not float32")
            if name in tensors:
                raise ValueError(f"{name} is there twice")
            end = start + offset + 4 * prod(shape)
            if end > len(data):
                raise ValueError(f"{name} goes beyond its end")
            values = np.frombuffer(data[start + offset : end], dtype="<f4").astype(np.float32)
            tensors[name] = torch.from_numpy(values).reshape(shape)
        return fields, tensors


class _Cursor:
    """Reads one thing after the other, within the file."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def _past(self, size: int) -> int:
        if size > len(self.data) - self.at:
            raise ValueError("it ends early")
        begin, self.at = self.at, self.at + size
        return begin

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind not in SCALARS:
            raise ValueError(f"it has a field of the unknown type {kind}")
        return self.number(SCALARS[kind])

    def number(self, letter: str) -> Any:
        form = "<" + letter
        return struct.unpack_from(form, self.data, self._past(struct.calcsize(form)))[0]

    def text(self) -> str:
        begin = self._past(self.number("Q"))
        return self.data[begin : self.at].decode()

    def skip_array(self) -> None:
        kind, length = self.number("I"), self.number("Q")
        if kind in SCALARS:
            self._past(struct.calcsize("<" + SCALARS[kind]) * length)
        elif kind == STRING:
            for _ in range(length):
                self._past(self.number("Q"))
        else:
            raise ValueError(f"it has an array of the unknown type {kind}")


def numbered(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Tensors `direction.1`, `direction.2` and so on, by their number.

    Raises:
        ValueError: If one has another name, or the number 0, which llama.cpp refuses too.

    Example:
        >>> numbered({"direction.0": torch.ones(2)})
        Traceback (most recent call last):
        ValueError: it has a tensor 'direction.0', where only direction.1 and on have a place
    """
    found = {}
    for name, tensor in tensors.items():
        if not (match := re.fullmatch(r"direction\.([1-9][0-9]{0,5})", name)):
            raise ValueError(f"it has a tensor {name!r}, where only direction.1 and on have a place")
        found[int(match[1])] = tensor
    return found
