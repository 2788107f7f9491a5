"""The figure of each kind of result, by name, so that results can draw themselves without importing plotly."""

from importlib import import_module
from typing import Any

FIGURES = {
    "ClassPca": "projections.plot_pca",
    "Effects": "effects.plot_refusal_rates",
    "LayerSimilarity": "selection.plot_similarity",
    "Projection": "projections.plot_projection",
    "Selection": "selection.plot_scores",
    "SuffixAnalysis": "suffixes.plot_suffix_cosines",
    "Sweep": "sweeps.plot_sweep",
}
"""Class of the result to the function in `cosmic_tl.figures` that draws it; the only reference to that room from below."""


class Plotted:
    """A result that has a figure."""

    def plot(self, **options: Any) -> Any:
        """The figure of this result.

        Args:
            **options: Those of the function in `cosmic_tl.figures` that draws it.

        Example:
            >>> import pandas as pd
            >>> from cosmic_tl import Effects
            >>> row = {"side": "positive", "condition": "baseline", "verdict": "refusal", "cross_entropy": 0.5}
            >>> type(Effects(pd.DataFrame([row])).plot()).__name__
            'Figure'
        """
        module, function = FIGURES[type(self).__name__].split(".")
        return getattr(import_module(f"cosmic_tl.figures.{module}"), function)(self, **options)
