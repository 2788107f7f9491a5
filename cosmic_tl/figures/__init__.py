"""Plotly figures: one function per figure, which takes a result and returns a `go.Figure`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
