"""Adversarial suffixes: how to find one, and what it does to a direction and to the heads that write it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
