from .caches import (
    cache_activations as cache_activations,
    stream_at as stream_at,
)
from .means import (
    MeanActivations as MeanActivations,
    class_means as class_means,
    mean_activations as mean_activations,
    mean_of_rows as mean_of_rows,
    random_splits as random_splits,
)
