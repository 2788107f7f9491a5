"""Choosing one direction among the candidates: scores, filters, and why."""

from cosmic_tl.selection.cosmic import CosmicOptions, Scores, evaluation_layers, select_cosmic
from cosmic_tl.selection.table import NoCandidateError, Selection

__all__ = ["CosmicOptions", "NoCandidateError", "Scores", "Selection", "evaluation_layers", "select_cosmic"]
