from .behaviours import (
    AnswerPair as AnswerPair,
)
from .behaviours import (
    BehaviourSet as BehaviourSet,
)
from .behaviours import (
    load_behaviour as load_behaviour,
)
from .contrast_set import (
    ContrastSet as ContrastSet,
)
from .named import (
    NAMED_PROMPTS as NAMED_PROMPTS,
)
from .named import (
    REFUSE_EVERYTHING as REFUSE_EVERYTHING,
)
from .named import (
    load_dataset_prompts as load_dataset_prompts,
)
from .prompts import (
    load_prompts as load_prompts,
)
