"""Adversarial suffixes: the search, and the effect on a direction and the heads that write it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
