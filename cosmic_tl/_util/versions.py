"""Versions of the packages that results depend on."""

from functools import cache
from importlib.metadata import version

_version = cache(version)  # cached, since it reads files and there are many directions


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on.

    Example:
        >>> sorted(versions())
        ['cosmic_tl', 'torch', 'transformer_lens', 'transformers']
    """
    return {name: _version(name) for name in ("cosmic_tl", "transformer_lens", "transformers", "torch")}
