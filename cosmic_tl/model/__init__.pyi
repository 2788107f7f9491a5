from .fingerprint import (
    model_fingerprint as model_fingerprint,
)
from .load import (
    load_model as load_model,
)
from .load import (
    model_label as model_label,
)
from .options import (
    ChatFormat as ChatFormat,
)
from .positions import (
    Positions as Positions,
)
from .positions import (
    post_instruction_positions as post_instruction_positions,
)
