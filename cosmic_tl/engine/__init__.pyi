from .passes import (
    Outcome as Outcome,
    Reading as Reading,
)
from .resumed import (
    intervened as intervened,
    shared_passes as shared_passes,
)
