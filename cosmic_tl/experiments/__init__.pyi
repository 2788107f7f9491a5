from .attribution import (
    AttributionMap as AttributionMap,
    attribution_map as attribution_map,
)
from .behaviour_sweep import (
    BehaviourSweep as BehaviourSweep,
    sweep_behaviour as sweep_behaviour,
)
from .capability import (
    Capability as Capability,
    measure_capability as measure_capability,
)
from .causal import (
    causal_map as causal_map,
)
from .causal_plan import (
    CausalPlan as CausalPlan,
    plan_causal_map as plan_causal_map,
)
from .causal_result import (
    CausalMap as CausalMap,
)
from .comparison import (
    Comparison as Comparison,
    compare_selections as compare_selections,
)
from .conditions import (
    Condition as Condition,
    standard_conditions as standard_conditions,
)
from .cone import (
    Cone as Cone,
    refine_cone as refine_cone,
)
from .conversation import (
    Conversation as Conversation,
    follow_conversation as follow_conversation,
)
from .cost import (
    Cost as Cost,
    measure_cost as measure_cost,
)
from .cost_curves import (
    CostCurves as CostCurves,
)
from .effects import (
    Effects as Effects,
    measure_effects as measure_effects,
)
from .equal_cost import (
    calibrate as calibrate,
)
from .guard import (
    LatentGuard as LatentGuard,
    latent_guard as latent_guard,
)
from .harness import (
    BridgeLM as BridgeLM,
)
from .independence import (
    Independence as Independence,
    measure_independence as measure_independence,
)
from .inversion import (
    ReplyInversion as ReplyInversion,
    reply_inversion as reply_inversion,
)
from .layer_cosines import (
    LayerCosines as LayerCosines,
    cosines_by_layer as cosines_by_layer,
)
from .layer_similarity import (
    LayerSimilarity as LayerSimilarity,
    layer_similarities as layer_similarities,
)
from .model_comparison import (
    ModelComparison as ModelComparison,
)
from .options import (
    CausalOptions as CausalOptions,
)
from .ranks import (
    Ranks as Ranks,
    measure_ranks as measure_ranks,
)
from .refine import (
    Refined as Refined,
    refine_direction as refine_direction,
)
from .removed_direction import (
    RemovedDirection as RemovedDirection,
    find_removed_direction as find_removed_direction,
)
from .sensitivity import (
    Sensitivity as Sensitivity,
    measure_sensitivity as measure_sensitivity,
)
from .smallest import (
    SmallestEdit as SmallestEdit,
    smallest_edit as smallest_edit,
)
from .study_result import (
    StudyResult as StudyResult,
)
from .sweeps import (
    Sweep as Sweep,
    sweep as sweep,
)
from .two_models import (
    compare_models as compare_models,
)
from .variants import (
    Variants as Variants,
    compare_training_folds as compare_training_folds,
    compare_variants as compare_variants,
    standard_variants as standard_variants,
    training_folds as training_folds,
)
from .weak_alignment import (
    TwoRounds as TwoRounds,
    amplification as amplification,
    two_rounds as two_rounds,
)
