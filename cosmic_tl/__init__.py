"""Find the direction in a model's activations that carries a concept, and test whether it really does.

The names that people use first are here; the rest is in the topic modules (`ct.judges`, `ct.suffixes`, `ct.figures`, …).
Each is imported when it is first used. `__init__.pyi` lists them.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
