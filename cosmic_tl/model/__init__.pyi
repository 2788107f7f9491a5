from .fingerprint import (
    model_fingerprint as model_fingerprint,
)
from .load import (
    load_model as load_model,
    model_label as model_label,
)
from .on_paper import (
    load_on_paper as load_on_paper,
)
from .options import (
    ChatFormat as ChatFormat,
)
from .positions import (
    Positions as Positions,
    post_instruction_positions as post_instruction_positions,
)
from .same_shape import (
    tokenizer_of as tokenizer_of,
)
