from .affine_map import (
    AffineMap as AffineMap,
)
from .edits import (
    Ablation as Ablation,
)
from .edits import (
    Addition as Addition,
)
from .edits import (
    AffineEdit as AffineEdit,
)
from .edits import (
    MapEdit as MapEdit,
)
from .erasers import (
    Eraser as Eraser,
)
from .erasers import (
    fit_eraser as fit_eraser,
)
from .erasers import (
    fit_quadratic_editor as fit_quadratic_editor,
)
from .erasers import (
    fit_scrubber as fit_scrubber,
)
from .modes import (
    Edits as Edits,
)
from .modes import (
    affine_edits as affine_edits,
)
from .orthogonalize import (
    WeightEdit as WeightEdit,
)
from .orthogonalize import (
    orthogonalize_weights as orthogonalize_weights,
)
from .steer import (
    steering as steering,
)
