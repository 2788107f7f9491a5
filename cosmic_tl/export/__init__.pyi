from .checkpoint import (
    save_checkpoint as save_checkpoint,
)
