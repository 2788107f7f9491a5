from .model_check import (
    Check as Check,
    ModelCheck as ModelCheck,
    check_model as check_model,
)
