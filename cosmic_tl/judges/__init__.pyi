from .base import (
    Judge as Judge,
    Judgement as Judgement,
    judged as judged,
)
from .endpoint import (
    EndpointJudge as EndpointJudge,
)
from .local_model import (
    ModelJudge as ModelJudge,
)
from .reliability import (
    SAFETY_AS_REFUSAL as SAFETY_AS_REFUSAL,
    Agreement as Agreement,
    agreement as agreement,
    rates_by as rates_by,
)
from .substring import (
    REFUSAL_PHRASES as REFUSAL_PHRASES,
    SubstringJudge as SubstringJudge,
    judge_refusal as judge_refusal,
    refusal_rate as refusal_rate,
)
from .templates import (
    LLAMA_GUARD_3 as LLAMA_GUARD_3,
    STRONGREJECT as STRONGREJECT,
    JudgeTemplate as JudgeTemplate,
)
