from .answers import (
    answer_log_odds as answer_log_odds,
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
    pca_of_classes as pca_of_classes,
)
from .projection import (
    Projection as Projection,
    project as project,
)
from .rates import (
    Rate as Rate,
    rate as rate,
)
from .readers import (
    Readers as Readers,
    find_readers as find_readers,
)
from .readout import (
    Readout as Readout,
    read_tokens as read_tokens,
)
from .refusal_score import (
    RefusalTokens as RefusalTokens,
    find_refusal_tokens as find_refusal_tokens,
    refusal_scores as refusal_scores,
    refusal_tokens as refusal_tokens,
)
from .separation import (
    auc as auc,
)
from .strongest import (
    StrongestActivations as StrongestActivations,
    strongest_activations as strongest_activations,
)
from .writers import (
    Writers as Writers,
    find_writers as find_writers,
)
