from .effects import (
    plot_refusal_rates as plot_refusal_rates,
)
from .export import (
    restyle as restyle,
)
from .export import (
    save_figure as save_figure,
)
from .export import (
    save_figures as save_figures,
)
from .projections import (
    plot_pca as plot_pca,
)
from .projections import (
    plot_projection as plot_projection,
)
from .selection import (
    plot_direction_cosines as plot_direction_cosines,
)
from .selection import (
    plot_layer_similarity as plot_layer_similarity,
)
from .selection import (
    plot_score_comparison as plot_score_comparison,
)
from .selection import (
    plot_scores as plot_scores,
)
from .selection import (
    plot_similarity as plot_similarity,
)
from .suffixes import (
    plot_head_attention as plot_head_attention,
)
from .suffixes import (
    plot_head_contributions as plot_head_contributions,
)
from .suffixes import (
    plot_suffix_cosines as plot_suffix_cosines,
)
from .sweeps import (
    plot_sweep as plot_sweep,
)
