from .base import (
    Judge as Judge,
)
from .base import (
    Judgement as Judgement,
)
from .base import (
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
)
from .reliability import (
    Agreement as Agreement,
)
from .reliability import (
    agreement as agreement,
)
from .reliability import (
    rates_by as rates_by,
)
from .substring import (
    REFUSAL_PHRASES as REFUSAL_PHRASES,
)
from .substring import (
    SubstringJudge as SubstringJudge,
)
from .substring import (
    judge_refusal as judge_refusal,
)
from .substring import (
    refusal_rate as refusal_rate,
)
from .templates import (
    LLAMA_GUARD_3 as LLAMA_GUARD_3,
)
from .templates import (
    STRONGREJECT as STRONGREJECT,
)
from .templates import (
    JudgeTemplate as JudgeTemplate,
)
