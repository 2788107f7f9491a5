from .attribution import (
    plot_attribution as plot_attribution,
)
from .behaviours import (
    plot_behaviour_sweep as plot_behaviour_sweep,
)
from .causal import (
    plot_causal_map as plot_causal_map,
    plot_causal_plan as plot_causal_plan,
)
from .comparison import (
    plot_comparison as plot_comparison,
)
from .conversation import (
    plot_conversation as plot_conversation,
)
from .cosines import (
    plot_cosines as plot_cosines,
    plot_layer_cosines as plot_layer_cosines,
)
from .cost_curves import (
    plot_cost_curves as plot_cost_curves,
)
from .costs import (
    plot_capability as plot_capability,
    plot_cost as plot_cost,
    plot_plan as plot_plan,
)
from .effects import (
    plot_refusal_rates as plot_refusal_rates,
)
from .export import (
    restyle as restyle,
    save_figure as save_figure,
    save_figures as save_figures,
)
from .exports import (
    plot_export_check as plot_export_check,
)
from .generators import (
    plot_generators as plot_generators,
)
from .guard import (
    plot_guard as plot_guard,
)
from .independence import (
    plot_independence as plot_independence,
)
from .inversion import (
    plot_inversion as plot_inversion,
)
from .judges import (
    plot_agreement as plot_agreement,
)
from .null import (
    plot_null as plot_null,
)
from .null_grid import (
    plot_null_grid as plot_null_grid,
)
from .parts import (
    plot_readers as plot_readers,
    plot_writers as plot_writers,
)
from .projections import (
    plot_pca as plot_pca,
    plot_projection as plot_projection,
)
from .ranks import (
    plot_ranks as plot_ranks,
)
from .readout import (
    plot_readout as plot_readout,
)
from .refine import (
    plot_cone as plot_cone,
    plot_refined as plot_refined,
)
from .selection import (
    plot_direction_cosines as plot_direction_cosines,
    plot_layer_similarity as plot_layer_similarity,
    plot_repeatability as plot_repeatability,
    plot_score_comparison as plot_score_comparison,
    plot_scores as plot_scores,
    plot_similarity as plot_similarity,
    plot_variants as plot_variants,
)
from .sensitivity import (
    plot_sensitivity as plot_sensitivity,
)
from .smallest import (
    plot_smallest_edit as plot_smallest_edit,
)
from .stability import (
    plot_stability as plot_stability,
)
from .strongest import (
    plot_strongest_activations as plot_strongest_activations,
)
from .studies import (
    plot_study as plot_study,
    plot_study_choices as plot_study_choices,
    plot_study_scores as plot_study_scores,
)
from .suffixes import (
    plot_head_attention as plot_head_attention,
    plot_head_contributions as plot_head_contributions,
    plot_suffix_cosines as plot_suffix_cosines,
    plot_suffix_losses as plot_suffix_losses,
)
from .sweeps import (
    plot_sweep as plot_sweep,
    plot_two_rounds as plot_two_rounds,
)
from .two_models import (
    plot_model_comparison as plot_model_comparison,
    plot_removed_direction as plot_removed_direction,
)
