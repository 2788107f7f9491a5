from .analysis import (
    SuffixAnalysis as SuffixAnalysis,
)
from .analysis import (
    analyse_suffix as analyse_suffix,
)
from .analysis import (
    suffix_cosines as suffix_cosines,
)
from .groups import (
    suffix_groups as suffix_groups,
)
from .heads import (
    head_attention as head_attention,
)
from .heads import (
    head_contributions as head_contributions,
)
from .heads import (
    top_heads as top_heads,
)
from .options import (
    SuffixOptions as SuffixOptions,
)
from .search import (
    attackable_prompts as attackable_prompts,
)
from .search import (
    compliant_targets as compliant_targets,
)
from .search import (
    find_suffix as find_suffix,
)
from .suffix import (
    Suffix as Suffix,
)
from .tokens import (
    random_suffixes as random_suffixes,
)
