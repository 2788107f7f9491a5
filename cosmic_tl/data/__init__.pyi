from .behaviours import (
    AnswerPair as AnswerPair,
    BehaviourSet as BehaviourSet,
    load_behaviour as load_behaviour,
)
from .contrast_set import (
    ContrastSet as ContrastSet,
)
from .named import (
    NAMED_PROMPTS as NAMED_PROMPTS,
    REFUSE_EVERYTHING as REFUSE_EVERYTHING,
    load_dataset_prompts as load_dataset_prompts,
)
from .prompts import (
    load_prompts as load_prompts,
)
