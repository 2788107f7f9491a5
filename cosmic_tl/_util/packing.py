"""Results as safetensors files: tensors as they are, and everything else as JSON, in one more tensor of bytes."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype, is_object_dtype, is_string_dtype

from cosmic_tl._util.sealed import DAMAGE, Tensors, read_sealed, write_sealed
from cosmic_tl.errors import CosmicError, first_line

FORMAT = "cosmic_tl/result/2"
JSON = "cosmic_tl.json"
"""The tensor that holds it as UTF-8: the header of a safetensors file is limited in size."""


def write_packed(path: Path, value: Any) -> None:
    """Write a dataclass to a file, completely or not at all.

    Args:
        path: The file.
        value: A dataclass of this package. Its fields hold tensors, tables, numbers, texts, tuples, lists, mappings, and other
            such dataclasses.

    Raises:
        CosmicError: If a field holds anything else, such as an edit of your own class.

    Example:
        >>> import tempfile
        >>> from cosmic_tl.metrics.rates import Rate
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_packed(Path(folder) / "rate", Rate(0.5, 0.2, 0.8, 10))
        ...     read_packed(Path(folder) / "rate").n
        10
    """
    tensors: Tensors = {}
    packed = json.dumps(_pack(value, tensors), ensure_ascii=False).encode()
    tensors[JSON] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    write_sealed(path, tensors, {"format": FORMAT})


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
        settings, tensors = read_sealed(path)
        form = settings["format"]
        value = _unpack(json.loads(tensors[JSON].numpy().tobytes()), tensors) if form == FORMAT else None
    except DAMAGE as error:
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
    if value is None:
        return None
    if value is pd.NA:
        return {"missing": "NA"}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        while place in tensors:  # two keys of a mapping may look alike
            place += "'"
        tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}

    def part(name: object, one: Any) -> Any:
        return _pack(one, tensors, f"{place}.{name}".removeprefix("."))

    if isinstance(value, pd.DataFrame):
        _check_table(value, place)
        columns = [[part(f"{name}.{i}", one) for i, one in enumerate(column)] for name, column in value.items()]
        found = {"table": columns, "n": len(value), "columns": _labels(value.columns)}
        found["dtypes"] = [str(dtype) for dtype in value.dtypes]
        plain = isinstance(value.index, pd.RangeIndex) and value.index.equals(pd.RangeIndex(len(value)))
        return found if plain and value.index.name is None else found | {"index": _labels(value.index)}
    module = type(value).__module__
    if is_dataclass(value) and module.startswith("cosmic_tl."):
        kind = f"{module.removeprefix('cosmic_tl.')}:{type(value).__qualname__}"
        return {"class": kind, "fields": {f.name: part(f.name, getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {"mapping": [[part("key", key), part(key, one)] for key, one in value.items()]}
    if isinstance(value, tuple | list):
        items = [part(i, one) for i, one in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise CosmicError(
        f"result: {place or 'it'} is a {type(value).__name__}, which a file cannot hold; save its table instead"
    )


def _check_table(table: pd.DataFrame, place: str) -> None:
    """Columns are named by texts, and hold texts, numbers and objects, as row names do: anything else would come back changed."""
    columns = {repr(name): column.dtype for name, column in table.items()}
    for name, dtype in {**columns, "the row names": table.index.dtype, "the column names": table.columns.dtype}.items():
        kinds = is_numeric_dtype(dtype), is_string_dtype(dtype), is_object_dtype(dtype)
        if isinstance(dtype, pd.CategoricalDtype) or not any(kinds):
            raise CosmicError(
                f"result: {name} of the table {place} are {dtype}, which a file cannot hold; make them texts"
            )
    if table.index.nlevels > 1 or not all(isinstance(name, str) for name in table.columns):
        raise CosmicError(
            f"result: the table {place} has several levels, or names that are no texts; call reset_index()"
        )


def _labels(index: "pd.Index[Any]") -> dict[str, Any]:
    return {"name": index.name, "values": index.tolist(), "dtype": str(index.dtype)}


def _unpack(packed: Any, tensors: Tensors) -> Any:
    if isinstance(packed, list):
        return [_unpack(one, tensors) for one in packed]
    if not isinstance(packed, dict):
        return packed
    if "missing" in packed:
        return pd.NA
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
    index = _index(packed["index"]) if "index" in packed else pd.RangeIndex(packed["n"])
    columns = {
        i: pd.Series([_unpack(one, tensors) for one in values], index=index, dtype=dtype)
        for i, (values, dtype) in enumerate(zip(packed["table"], packed["dtypes"], strict=True))
    }
    table = pd.DataFrame(columns, index=index)
    table.columns = _index(packed["columns"])
    return table


def _index(packed: dict[str, Any]) -> "pd.Index[Any]":
    return pd.Index(packed["values"], dtype=packed["dtype"], name=packed["name"])
