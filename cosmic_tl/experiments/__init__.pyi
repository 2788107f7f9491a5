from .behaviour_sweep import (
    sweep_behaviour as sweep_behaviour,
)
from .capability import (
    Capability as Capability,
)
from .capability import (
    measure_capability as measure_capability,
)
from .comparison import (
    Comparison as Comparison,
)
from .comparison import (
    compare_selections as compare_selections,
)
from .conditions import (
    Condition as Condition,
)
from .conditions import (
    standard_conditions as standard_conditions,
)
from .cost import (
    Cost as Cost,
)
from .cost import (
    measure_cost as measure_cost,
)
from .effects import (
    Effects as Effects,
)
from .effects import (
    measure_effects as measure_effects,
)
from .harness import (
    BridgeLM as BridgeLM,
)
from .layer_similarity import (
    LayerSimilarity as LayerSimilarity,
)
from .layer_similarity import (
    layer_similarities as layer_similarities,
)
from .sweeps import (
    Sweep as Sweep,
)
from .sweeps import (
    sweep as sweep,
)
from .variants import (
    compare_variants as compare_variants,
)
from .variants import (
    standard_variants as standard_variants,
)
from .weak_alignment import (
    TwoRounds as TwoRounds,
)
from .weak_alignment import (
    amplification as amplification,
)
from .weak_alignment import (
    two_rounds as two_rounds,
)
