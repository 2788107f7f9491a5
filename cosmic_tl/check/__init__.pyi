from .model_check import (
    Check as Check,
)
from .model_check import (
    ModelCheck as ModelCheck,
)
from .model_check import (
    check_model as check_model,
)
