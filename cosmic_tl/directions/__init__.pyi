from .categories import (
    category_directions as category_directions,
)
from .cosines import (
    Cosines as Cosines,
    compare_directions as compare_directions,
)
from .subspace import (
    Subspace as Subspace,
    class_subspace as class_subspace,
    principal_angles as principal_angles,
    stacked_subspace as stacked_subspace,
)
