from .cosmic import (
    plan_selection as plan_selection,
    select_cosmic as select_cosmic,
)
from .forecast import (
    Forecast as Forecast,
)
from .generators import (
    GeneratorChoices as GeneratorChoices,
)
from .given_directions import (
    score_directions as score_directions,
)
from .layer_rules import (
    layer_effects as layer_effects,
)
from .null import (
    Null as Null,
    measure_null as measure_null,
)
from .null_grid import (
    NullGrid as NullGrid,
    measure_null_grid as measure_null_grid,
)
from .options import (
    CosmicOptions as CosmicOptions,
    RefusalTokenOptions as RefusalTokenOptions,
)
from .peak_memory import (
    MemoryUse as MemoryUse,
    memory_use as memory_use,
)
from .plan import (
    Plan as Plan,
)
from .refusal_tokens import (
    select_by_refusal_tokens as select_by_refusal_tokens,
)
from .result import (
    Selection as Selection,
)
from .stability import (
    Stability as Stability,
)
