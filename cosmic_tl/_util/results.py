"""What all results have in common: they show themselves as lines and a table, draw themselves, and are saved and loaded."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from cosmic_tl._util.displays import as_html, as_text
from cosmic_tl._util.packing import read_packed, write_packed
from cosmic_tl.errors import CosmicError

R = TypeVar("R", bound="Result")
FIGURES = {
    "Agreement": "judges.plot_agreement",
    "AttributionMap": "attribution.plot_attribution",
    "BehaviourSweep": "behaviours.plot_behaviour_sweep",
    "Capability": "costs.plot_capability",
    "CausalMap": "causal.plot_causal_map",
    "CausalPlan": "causal.plot_causal_plan",
    "ClassPca": "projections.plot_pca",
    "Comparison": "comparison.plot_comparison",
    "Cone": "refine.plot_cone",
    "Conversation": "conversation.plot_conversation",
    "Cosines": "cosines.plot_cosines",
    "Cost": "costs.plot_cost",
    "CostCurves": "cost_curves.plot_cost_curves",
    "Effects": "effects.plot_refusal_rates",
    "ExportCheck": "exports.plot_export_check",
    "GeneratorChoices": "generators.plot_generators",
    "Independence": "independence.plot_independence",
    "LatentGuard": "guard.plot_guard",
    "LayerCosines": "cosines.plot_layer_cosines",
    "LayerSimilarity": "selection.plot_similarity",
    "ModelComparison": "two_models.plot_model_comparison",
    "Null": "null.plot_null",
    "NullGrid": "null_grid.plot_null_grid",
    "Plan": "costs.plot_plan",
    "Projection": "projections.plot_projection",
    "Ranks": "ranks.plot_ranks",
    "Readers": "parts.plot_readers",
    "Readout": "readout.plot_readout",
    "Refined": "refine.plot_refined",
    "RemovedDirection": "two_models.plot_removed_direction",
    "ReplyInversion": "inversion.plot_inversion",
    "Selection": "selection.plot_scores",
    "Sensitivity": "sensitivity.plot_sensitivity",
    "SmallestEdit": "smallest.plot_smallest_edit",
    "Stability": "stability.plot_stability",
    "StrongestActivations": "strongest.plot_strongest_activations",
    "StudyResult": "studies.plot_study",
    "Suffix": "suffixes.plot_suffix_losses",
    "SuffixAnalysis": "suffixes.plot_suffix_cosines",
    "Sweep": "sweeps.plot_sweep",
    "TwoRounds": "sweeps.plot_two_rounds",
    "Variants": "selection.plot_variants",
    "Writers": "parts.plot_writers",
}
"""Class of the result to the function in `cosmic_tl.figures` that draws it; the only reference to that room from below."""


class Result:
    """A result: a frozen dataclass with a `table`."""

    if TYPE_CHECKING:

        @property
        def table(self) -> pd.DataFrame: ...

    def _lines(self) -> list[str]:
        """What is shown above the table."""
        return [type(self).__name__]

    def _shown(self) -> pd.DataFrame:
        """The table as people are shown it."""
        return self.table

    def __repr__(self) -> str:
        return as_text(self._lines(), self._shown())

    def _repr_html_(self) -> str:
        return as_html(self._lines(), self._shown())

    def plot(self, **options: Any) -> Any:
        """The figure of this result.

        Args:
            **options: Those of the function in `cosmic_tl.figures` that draws it.

        Raises:
            CosmicError: If this kind of result has no figure.

        Example:
            >>> from cosmic_tl import Effects
            >>> row = {"side": "positive", "condition": "baseline", "verdict": "refusal", "cross_entropy": 0.5}
            >>> type(Effects(pd.DataFrame([row])).plot()).__name__
            'Figure'
        """
        name = type(self).__name__
        if name not in FIGURES:
            raise CosmicError(f"plot: a {name} has no figure; read its table")
        module, function = FIGURES[name].split(".")
        return getattr(import_module(f"cosmic_tl.figures.{module}"), function)(self, **options)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, completely or not at all.

        Args:
            path: The file, such as "effects.safetensors".

        Raises:
            CosmicError: If it holds what a file cannot, such as an edit of your own class.

        Example:
            >>> import tempfile
            >>> from cosmic_tl import Effects
            >>> row = {"side": "positive", "condition": "baseline", "verdict": "refusal", "cross_entropy": 0.5}
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Effects(pd.DataFrame([row])).save(f"{folder}/effects.safetensors")
            ...     Effects.load(f"{folder}/effects.safetensors").rate("positive", "baseline").value
            1.0
        """
        write_packed(Path(path), self)

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read a file that `save` wrote.

        Raises:
            CosmicError: If the file is missing or damaged, or holds another kind of result.

        Example:
            >>> from cosmic_tl import Effects
            >>> Effects.load("nowhere.safetensors")
            Traceback (most recent call last):
            cosmic_tl.errors.CosmicError: Effects: no file 'nowhere.safetensors'; give the path of a saved Effects
        """
        path = Path(path)
        if not path.is_file():
            raise CosmicError(f"{cls.__name__}: no file {str(path)!r}; give the path of a saved {cls.__name__}")
        found = read_packed(path)
        if not isinstance(found, cls):
            raise CosmicError(
                f"{cls.__name__}: {str(path)!r} holds {type(found).__name__}; load it with {type(found).__name__}.load"
                if isinstance(found, Result)
                else f"{cls.__name__}: {str(path)!r} belongs to a run; load that with Run.load({str(path.parent)!r})"
            )
        return found


class DrawnResult(Result):
    """A result that a notebook shows as its figure."""

    _repr_html_ = None  # type: ignore[assignment]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self.plot()._repr_mimebundle_(include, exclude)
