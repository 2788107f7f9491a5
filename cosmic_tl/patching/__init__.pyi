from .changes import (
    Change as Change,
    Patch as Patch,
)
from .passes import (
    patched as patched,
    unpatched as unpatched,
)
