"""Edits: the affine map, the papers' three cases of it, and what holds them in place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
