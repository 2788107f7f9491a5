from . import (
    activations as activations,
    backends as backends,
    check as check,
    data as data,
    directions as directions,
    engine as engine,
    experiments as experiments,
    export as export,
    figures as figures,
    interventions as interventions,
    judges as judges,
    metrics as metrics,
    model as model,
    patching as patching,
    selection as selection,
    studies as studies,
    suffixes as suffixes,
)
from .activations.caches import (
    cache_activations as cache_activations,
)
from .activations.means import (
    MeanActivations as MeanActivations,
    mean_activations as mean_activations,
)
from .check.model_check import (
    check_model as check_model,
)
from .data.contrast_set import (
    ContrastSet as ContrastSet,
)
from .data.prompts import (
    load_prompts as load_prompts,
)
from .directions.candidates import (
    Candidates as Candidates,
)
from .directions.difference_in_means import (
    difference_in_means as difference_in_means,
)
from .directions.direction import (
    Direction as Direction,
    random_direction as random_direction,
)
from .directions.generators import (
    make_candidates as make_candidates,
)
from .errors import (
    CosmicError as CosmicError,
    NoCandidateError as NoCandidateError,
)
from .experiments.capability import (
    measure_capability as measure_capability,
)
from .experiments.comparison import (
    compare_selections as compare_selections,
)
from .experiments.cost import (
    measure_cost as measure_cost,
)
from .experiments.effects import (
    Effects as Effects,
    measure_effects as measure_effects,
)
from .experiments.equal_cost import (
    calibrate as calibrate,
)
from .experiments.layer_similarity import (
    layer_similarities as layer_similarities,
)
from .experiments.sweeps import (
    sweep as sweep,
)
from .experiments.two_models import (
    compare_models as compare_models,
)
from .experiments.variants import (
    compare_variants as compare_variants,
)
from .experiments.weak_alignment import (
    two_rounds as two_rounds,
)
from .figures.export import (
    save_figure as save_figure,
)
from .generation.completions import (
    complete as complete,
)
from .generation.options import (
    Sampling as Sampling,
)
from .interventions.affine_map import (
    AffineMap as AffineMap,
)
from .interventions.edits import (
    Ablation as Ablation,
    Addition as Addition,
    AffineEdit as AffineEdit,
    MapEdit as MapEdit,
)
from .interventions.erasers import (
    fit_eraser as fit_eraser,
)
from .interventions.modes import (
    affine_edits as affine_edits,
)
from .interventions.orthogonalize import (
    orthogonalize_weights as orthogonalize_weights,
)
from .interventions.steer import (
    steering as steering,
)
from .judges.substring import (
    SubstringJudge as SubstringJudge,
)
from .metrics.pca import (
    pca_of_classes as pca_of_classes,
)
from .metrics.projection import (
    project as project,
)
from .model.load import (
    load_model as load_model,
)
from .model.on_paper import (
    load_on_paper as load_on_paper,
)
from .model.options import (
    ChatFormat as ChatFormat,
)
from .model.positions import (
    Positions as Positions,
    post_instruction_positions as post_instruction_positions,
)
from .runs.job import (
    run as run,
)
from .runs.result import (
    Run as Run,
)
from .runs.settings import (
    RunSettings as RunSettings,
)
from .selection.cosmic import (
    plan_selection as plan_selection,
    select_cosmic as select_cosmic,
)
from .selection.given_directions import (
    score_directions as score_directions,
)
from .selection.options import (
    CosmicOptions as CosmicOptions,
    RefusalTokenOptions as RefusalTokenOptions,
)
from .selection.refusal_tokens import (
    select_by_refusal_tokens as select_by_refusal_tokens,
)
from .selection.result import (
    Selection as Selection,
)

__version__: str
