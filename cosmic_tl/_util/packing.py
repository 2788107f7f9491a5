"""Results as safetensors files: tensors as they are, everything else as JSON in the file's metadata."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cosmic_tl._util.files import write_atomically
from cosmic_tl.errors import CosmicError, first_line

FORMAT = "cosmic_tl/result/2"
_DAMAGE = (AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError)
"""What reading a file that something else wrote can raise."""
Tensors = dict[str, torch.Tensor]


def write_packed(path: Path, value: Any) -> None:
    """Write a dataclass to a file, completely or not at all.

    Args:
        path: The file.
        value: A dataclass of this package. Its fields hold tensors, tables, numbers, texts, tuples, lists, mappings, and other
            such dataclasses.

    Raises:
        TypeError: If a field holds anything else.

    Example:
        >>> import tempfile
        >>> from cosmic_tl.metrics.rates import Rate
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_packed(Path(folder) / "rate", Rate(0.5, 0.2, 0.8, 10))
        ...     read_packed(Path(folder) / "rate").n
        10
    """
    tensors: Tensors = {}
    packed = json.dumps({"format": FORMAT, "value": _pack(value, tensors)})
    write_atomically(path, save(tensors, metadata={"cosmic_tl": packed}))


def read_packed(path: Path) -> Any:
    """Read what `write_packed` wrote. Only dataclasses of this package are made, and no code comes from the file.

    Raises:
        CosmicError: If the file is damaged or has another format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a").write_bytes(b"?")
        ...     read_packed(Path(folder) / "a")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: result: '...' is damaged or no saved result (...); save it again
    """
    try:
        with safe_open(path, framework="pt") as file:
            data = json.loads((file.metadata() or {})["cosmic_tl"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        form = data["format"]
        value = _unpack(data["value"], tensors) if form == FORMAT else None
    except (*_DAMAGE, OSError, SafetensorError) as error:
        raise CosmicError(
            f"result: {str(path)!r} is damaged or no saved result ({first_line(error)}); save it again"
        ) from error
    if form != FORMAT:
        raise CosmicError(
            f"result: {str(path)!r} has format {form!r}, and this version reads {FORMAT!r}; save it again"
        )
    return value


def _pack(value: Any, tensors: Tensors, place: str = "") -> Any:
    """JSON for a value; its tensors go into `tensors`, named by their place: `selection.candidates.vectors`, say."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(value, pd.DataFrame):
        columns = [[_pack(one, tensors) for one in value.iloc[:, i]] for i in range(value.shape[1])]
        return {
            "table": columns,
            "columns": _labels(value.columns),
            "dtypes": [str(dtype) for dtype in value.dtypes],
        } | ({} if isinstance(value.index, pd.RangeIndex) else {"index": _labels(value.index)})

    def part(name: object, one: Any) -> Any:
        return _pack(one, tensors, f"{place}.{name}".removeprefix("."))

    if is_dataclass(value):
        kind = f"{type(value).__module__}:{type(value).__qualname__}".removeprefix("cosmic_tl.")
        return {"class": kind, "fields": {f.name: part(f.name, getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {"mapping": [[_pack(key, tensors), part(key, one)] for key, one in value.items()]}
    if isinstance(value, tuple | list):
        items = [part(i, one) for i, one in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def _labels(index: "pd.Index[Any]") -> dict[str, Any]:
    return {"name": index.name, "values": index.tolist()}


def _unpack(packed: Any, tensors: Tensors) -> Any:
    if isinstance(packed, list):
        return [_unpack(one, tensors) for one in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "tuple" in packed:
        return tuple(_unpack(one, tensors) for one in packed["tuple"])
    if "mapping" in packed:
        return {_unpack(key, tensors): _unpack(one, tensors) for key, one in packed["mapping"]}
    if "table" in packed:
        return _table(packed, tensors)
    module, _, name = packed["class"].partition(":")
    if "__" in module:  # importing the command line's `__main__` would run it
        raise TypeError(f"{module} holds no results")
    kind = getattr(import_module(f"cosmic_tl.{module}"), name)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise TypeError(f"{name} is no result")
    return kind(**{field: _unpack(one, tensors) for field, one in packed["fields"].items()})


def _table(packed: dict[str, Any], tensors: Tensors) -> pd.DataFrame:
    labels = packed.get("index")
    index = None if labels is None else pd.Index(labels["values"], name=labels["name"])
    columns = [
        pd.Series([_unpack(one, tensors) for one in values], index=index, dtype=dtype)
        for values, dtype in zip(packed["table"], packed["dtypes"], strict=True)
    ]
    table = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)
    table.columns = pd.Index(packed["columns"]["values"], name=packed["columns"]["name"])
    return table
