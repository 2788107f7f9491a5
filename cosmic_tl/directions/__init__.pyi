from .subspace import (
    Subspace as Subspace,
    class_subspace as class_subspace,
    principal_angles as principal_angles,
    stacked_subspace as stacked_subspace,
)
