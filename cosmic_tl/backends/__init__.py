"""Other processes, on this machine or on others, that hold copies of a model and share its work."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
