from .answers import (
    answer_log_odds as answer_log_odds,
)
from .answers import (
    answer_means as answer_means,
)
from .divergence import (
    kl_divergence as kl_divergence,
)
from .likelihood import (
    completion_cross_entropy as completion_cross_entropy,
)
from .pca import (
    ClassPca as ClassPca,
)
from .pca import (
    pca_of_classes as pca_of_classes,
)
from .projection import (
    Projection as Projection,
)
from .projection import (
    project as project,
)
from .rates import (
    Rate as Rate,
)
from .rates import (
    rate as rate,
)
from .refusal_score import (
    RefusalTokens as RefusalTokens,
)
from .refusal_score import (
    find_refusal_tokens as find_refusal_tokens,
)
from .refusal_score import (
    refusal_scores as refusal_scores,
)
from .refusal_score import (
    refusal_tokens as refusal_tokens,
)
