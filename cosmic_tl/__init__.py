"""Find the direction in a model's activations that carries a concept, and test whether it really does.

The public API; each name lives in the module given below and is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosmic_tl.activations import MeanActivations, cache_activations, mean_activations
    from cosmic_tl.affine import AffineMap
    from cosmic_tl.behaviours import AnswerPair, BehaviourSet, answer_log_odds, answer_means, load_behaviour
    from cosmic_tl.chat import ChatFormat, Positions, post_instruction_positions
    from cosmic_tl.check import Check, ModelCheck, check_model
    from cosmic_tl.datasets import NAMED_PROMPTS, load_dataset_prompts
    from cosmic_tl.demo.corpus import REFUSE_EVERYTHING
    from cosmic_tl.directions.artifact import Direction, random_direction
    from cosmic_tl.directions.difference_in_means import Candidates, difference_in_means
    from cosmic_tl.directions.erasure import Eraser, fit_eraser, fit_quadratic_editor, fit_scrubber
    from cosmic_tl.errors import CosmicError
    from cosmic_tl.evaluation.agreement import SAFETY_AS_REFUSAL, Agreement, agreement, rates_by
    from cosmic_tl.evaluation.behaviour_sweep import sweep_behaviour
    from cosmic_tl.evaluation.capability import Capability, measure_capability
    from cosmic_tl.evaluation.comparison import Comparison, compare_selections
    from cosmic_tl.evaluation.completions import complete, completion_cross_entropy
    from cosmic_tl.evaluation.cost import Cost, measure_cost
    from cosmic_tl.evaluation.effects import Effects, measure_effects, standard_conditions
    from cosmic_tl.evaluation.endpoint_judge import EndpointJudge
    from cosmic_tl.evaluation.harness import BridgeLM
    from cosmic_tl.evaluation.judge_templates import LLAMA_GUARD_3, STRONGREJECT, JudgeTemplate
    from cosmic_tl.evaluation.judges import Judge, Judgement, SubstringJudge, judge_refusal, judged
    from cosmic_tl.evaluation.model_judge import ModelJudge
    from cosmic_tl.evaluation.rates import Rate, refusal_rate
    from cosmic_tl.evaluation.sampling import Sampling
    from cosmic_tl.evaluation.sweeps import Sweep, sweep
    from cosmic_tl.figures.effects import plot_refusal_rates
    from cosmic_tl.figures.export import restyle, save_figure, save_figures
    from cosmic_tl.figures.projections import plot_pca, plot_projection
    from cosmic_tl.figures.selection import (
        plot_direction_cosines,
        plot_layer_similarity,
        plot_score_comparison,
        plot_scores,
        plot_similarity,
    )
    from cosmic_tl.figures.suffixes import plot_head_attention, plot_head_contributions, plot_suffix_cosines
    from cosmic_tl.figures.sweeps import plot_sweep
    from cosmic_tl.interventions import Ablation, Addition, AffineEdit, MapEdit, steering
    from cosmic_tl.models import load_model, model_fingerprint
    from cosmic_tl.passes import Outcome, Reading, intervened
    from cosmic_tl.pca import ClassPca, pca_of_classes
    from cosmic_tl.projections import Projection, project
    from cosmic_tl.prompts import ContrastSet, load_prompts
    from cosmic_tl.runs import Run, RunSettings, run
    from cosmic_tl.selection.by_refusal_tokens import select_by_refusal_tokens
    from cosmic_tl.selection.cosmic import plan_selection, select_cosmic
    from cosmic_tl.selection.modes import affine_edits
    from cosmic_tl.selection.options import CosmicOptions, RefusalTokenOptions
    from cosmic_tl.selection.plan import Plan
    from cosmic_tl.selection.refusal_tokens import (
        RefusalTokens,
        find_refusal_tokens,
        refusal_scores,
        refusal_tokens,
    )
    from cosmic_tl.selection.table import NoCandidateError, Selection
    from cosmic_tl.selection.variants import compare_variants, standard_variants
    from cosmic_tl.similarity import LayerSimilarity, layer_similarities
    from cosmic_tl.suffixes.analysis import (
        SuffixAnalysis,
        analyse_suffix,
        head_attention,
        head_contributions,
        suffix_cosines,
        suffix_groups,
        top_heads,
    )
    from cosmic_tl.suffixes.artifact import Suffix, SuffixOptions
    from cosmic_tl.suffixes.search import compliant_targets, find_suffix
    from cosmic_tl.suffixes.tokens import random_suffixes
    from cosmic_tl.weak_alignment import TwoRounds, amplification, two_rounds
    from cosmic_tl.weights.export import save_checkpoint
    from cosmic_tl.weights.orthogonalize import WeightEdit, orthogonalize_weights

_HOMES = {
    "affine": "AffineMap",
    "activations": "MeanActivations cache_activations mean_activations mean_of_rows",
    "chat": "ChatFormat Positions post_instruction_positions",
    "check": "Check ModelCheck check_model",
    "directions.artifact": "Direction random_direction",
    "directions.difference_in_means": "Candidates difference_in_means",
    "errors": "CosmicError",
    "evaluation.completions": "complete completion_cross_entropy",
    "evaluation.sampling": "Sampling",
    "evaluation.effects": "Effects measure_effects standard_conditions",
    "evaluation.judges": "Judge Judgement SubstringJudge judge_refusal judged",
    "evaluation.rates": "Rate refusal_rate",
    "interventions": "Ablation Addition AffineEdit MapEdit steering",
    "models": "load_model model_fingerprint model_label",
    "prompts": "ContrastSet load_prompts",
    "runs": "Run RunSettings run",
    "passes": "Outcome Reading intervened",
    "selection.cosmic": "plan_selection select_cosmic",
    "selection.modes": "affine_edits",
    "selection.options": "CosmicOptions RefusalTokenOptions",
    "selection.plan": "Plan",
    "selection.table": "NoCandidateError Selection",
    "projections": "Projection project",
    "pca": "ClassPca pca_of_classes",
    "similarity": "LayerSimilarity layer_similarities",
    "evaluation.judge_templates": "JudgeTemplate LLAMA_GUARD_3 STRONGREJECT",
    "evaluation.model_judge": "ModelJudge",
    "evaluation.endpoint_judge": "EndpointJudge",
    "evaluation.agreement": "Agreement SAFETY_AS_REFUSAL agreement rates_by",
    "datasets": "NAMED_PROMPTS load_dataset_prompts",
    "directions.erasure": "Eraser fit_eraser fit_quadratic_editor fit_scrubber",
    "behaviours": "AnswerPair BehaviourSet answer_log_odds answer_means load_behaviour",
    "evaluation.behaviour_sweep": "sweep_behaviour",
    "weights.orthogonalize": "WeightEdit orthogonalize_weights",
    "weights.export": "save_checkpoint",
    "evaluation.cost": "Cost measure_cost",
    "evaluation.capability": "Capability measure_capability",
    "evaluation.harness": "BridgeLM",
    "selection.by_refusal_tokens": "select_by_refusal_tokens",
    "selection.refusal_tokens": "RefusalTokens find_refusal_tokens refusal_scores refusal_tokens",
    "suffixes.search": "compliant_targets find_suffix",
    "suffixes.artifact": "Suffix SuffixOptions",
    "suffixes.tokens": "random_suffixes",
    "suffixes.analysis": "SuffixAnalysis analyse_suffix head_attention head_contributions suffix_cosines suffix_groups top_heads",
    "evaluation.comparison": "Comparison compare_selections",
    "evaluation.sweeps": "Sweep sweep",
    "figures.effects": "plot_refusal_rates",
    "figures.export": "restyle save_figure save_figures",
    "figures.projections": "plot_pca plot_projection",
    "figures.selection": "plot_direction_cosines plot_layer_similarity plot_score_comparison plot_scores plot_similarity",
    "figures.suffixes": "plot_head_attention plot_head_contributions plot_suffix_cosines",
    "figures.sweeps": "plot_sweep",
    "weak_alignment": "TwoRounds amplification two_rounds",
    "selection.variants": "compare_variants standard_variants",
    "demo.corpus": "REFUSE_EVERYTHING",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = [
    "LLAMA_GUARD_3",
    "NAMED_PROMPTS",
    "REFUSE_EVERYTHING",
    "SAFETY_AS_REFUSAL",
    "STRONGREJECT",
    "Ablation",
    "Addition",
    "AffineEdit",
    "AffineMap",
    "Agreement",
    "AnswerPair",
    "BehaviourSet",
    "BridgeLM",
    "Candidates",
    "Capability",
    "ChatFormat",
    "Check",
    "ClassPca",
    "Comparison",
    "ContrastSet",
    "CosmicError",
    "CosmicOptions",
    "Cost",
    "Direction",
    "Effects",
    "EndpointJudge",
    "Eraser",
    "Judge",
    "JudgeTemplate",
    "Judgement",
    "LayerSimilarity",
    "MapEdit",
    "MeanActivations",
    "ModelCheck",
    "ModelJudge",
    "NoCandidateError",
    "Outcome",
    "Plan",
    "Positions",
    "Projection",
    "Rate",
    "Reading",
    "RefusalTokenOptions",
    "RefusalTokens",
    "Run",
    "RunSettings",
    "Sampling",
    "Selection",
    "SubstringJudge",
    "Suffix",
    "SuffixAnalysis",
    "SuffixOptions",
    "Sweep",
    "TwoRounds",
    "WeightEdit",
    "affine_edits",
    "agreement",
    "amplification",
    "analyse_suffix",
    "answer_log_odds",
    "answer_means",
    "cache_activations",
    "check_model",
    "compare_selections",
    "compare_variants",
    "complete",
    "completion_cross_entropy",
    "compliant_targets",
    "difference_in_means",
    "find_refusal_tokens",
    "find_suffix",
    "fit_eraser",
    "fit_quadratic_editor",
    "fit_scrubber",
    "head_attention",
    "head_contributions",
    "intervened",
    "judge_refusal",
    "judged",
    "layer_similarities",
    "load_behaviour",
    "load_dataset_prompts",
    "load_model",
    "load_prompts",
    "mean_activations",
    "mean_of_rows",
    "measure_capability",
    "measure_cost",
    "measure_effects",
    "model_fingerprint",
    "model_label",
    "orthogonalize_weights",
    "pca_of_classes",
    "plan_selection",
    "plot_direction_cosines",
    "plot_head_attention",
    "plot_head_contributions",
    "plot_layer_similarity",
    "plot_pca",
    "plot_projection",
    "plot_refusal_rates",
    "plot_score_comparison",
    "plot_scores",
    "plot_similarity",
    "plot_suffix_cosines",
    "plot_sweep",
    "post_instruction_positions",
    "project",
    "random_direction",
    "random_suffixes",
    "rates_by",
    "refusal_rate",
    "refusal_scores",
    "refusal_tokens",
    "restyle",
    "run",
    "save_checkpoint",
    "save_figure",
    "save_figures",
    "select_by_refusal_tokens",
    "select_cosmic",
    "standard_conditions",
    "standard_variants",
    "steering",
    "suffix_cosines",
    "suffix_groups",
    "sweep",
    "sweep_behaviour",
    "top_heads",
    "two_rounds",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The command line's --help must not wait for torch.
    if name in _HOME:
        return getattr(import_module(f"cosmic_tl.{_HOME[name]}"), name)
    raise AttributeError(f"module 'cosmic_tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
