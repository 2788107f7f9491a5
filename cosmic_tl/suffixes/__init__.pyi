from .analysis import (
    SuffixAnalysis as SuffixAnalysis,
    analyse_suffix as analyse_suffix,
    suffix_cosines as suffix_cosines,
)
from .groups import (
    suffix_groups as suffix_groups,
)
from .heads import (
    head_attention as head_attention,
    head_contributions as head_contributions,
    top_heads as top_heads,
)
from .options import (
    SuffixOptions as SuffixOptions,
)
from .search import (
    find_suffix as find_suffix,
)
from .suffix import (
    Suffix as Suffix,
)
from .targets import (
    attackable_prompts as attackable_prompts,
    compliant_targets as compliant_targets,
)
from .tokens import (
    random_suffixes as random_suffixes,
)
