from .ray_backend import (
    RayBackend as RayBackend,
)
from .sharing import (
    shared_by as shared_by,
)
