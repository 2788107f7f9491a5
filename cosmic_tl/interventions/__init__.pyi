from .affine_map import (
    AffineMap as AffineMap,
)
from .edits import (
    Ablation as Ablation,
    Addition as Addition,
    AffineEdit as AffineEdit,
    MapEdit as MapEdit,
)
from .erasers import (
    Eraser as Eraser,
    fit_eraser as fit_eraser,
    fit_quadratic_editor as fit_quadratic_editor,
    fit_scrubber as fit_scrubber,
)
from .everywhere import (
    AffineEverywhere as AffineEverywhere,
)
from .modes import (
    Edits as Edits,
    affine_edits as affine_edits,
)
from .orthogonalize import (
    WeightEdit as WeightEdit,
    orthogonalize_weights as orthogonalize_weights,
)
from .steer import (
    steering as steering,
)
from .subspace_edits import (
    SubspaceAblation as SubspaceAblation,
    SubspaceEdit as SubspaceEdit,
)
