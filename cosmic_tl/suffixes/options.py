"""How an adversarial suffix is searched: the options, without imports that take seconds."""

from dataclasses import dataclass

from cosmic_tl._util.border import checked
from cosmic_tl.errors import check_count


@checked
@dataclass(frozen=True)
class SuffixOptions:
    """Settings of the search; Zou et al. 2023 use 500 steps, 512 candidates and the best 256 tokens of a position."""

    n_tokens: int = 20
    """Length of the suffix in tokens."""
    steps: int = 250
    """Maximum number of search steps."""
    n_candidates: int = 256
    """Substitutions tried per step; fewer where tokens would merge."""
    top_k: int = 128
    """Substitutions are drawn from this many tokens per position, those with the steepest gradient."""
    check_every: int = 5
    """Steps between two looks at the completions; the search ends when none of them is a refusal."""
    max_new_tokens: int = 64
    """Maximum number of new tokens per completion."""
    ascii_only: bool = True
    """Use only tokens of ASCII characters."""
    seed: int = 0
    """Random seed of the search and of the suffixes that it is compared with."""
    batch_size: int | None = None
    """Rows per forward pass; changes results only by rounding. By default as many as fit into memory, at most 32."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "steps", "n_candidates", "top_k", "check_every", "max_new_tokens", "batch_size"):
            check_count(name, getattr(self, name))
