"""The concept-erasure package, which is optional."""

from importlib import import_module
from typing import Any

from cosmic_tl.errors import CosmicError


def concept_erasure() -> Any:
    """The package.

    Raises:
        CosmicError: If it is not installed.

    Example:
        >>> concept_erasure().LeaceFitter.__name__
        'LeaceFitter'
    """
    try:
        return import_module("concept_erasure")
    except ImportError as error:
        raise CosmicError(
            "erasure: the concept-erasure package is not installed; pip install 'cosmic_tl[erasure]'"
        ) from error
