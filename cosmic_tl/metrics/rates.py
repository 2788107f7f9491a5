"""Rates with confidence intervals."""

from dataclasses import dataclass

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count


@checked
@dataclass(frozen=True)
class Rate:
    """A share of completions with its Wilson 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __repr__(self) -> str:
        return f"Rate({self}, n = {self.n})"

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@checked
def rate(count: int, n: int) -> Rate:
    """`count` of `n`, with the Wilson score interval at 95 %.

    Raises:
        CosmicError: If there are none, or more than all of them are counted.

    Example:
        >>> str(rate(95, 100))
        '95.0% [88.8%, 97.8%]'
    """
    check_count("n", n)
    if not 0 <= count <= n:
        raise CosmicError(f"count: found {count} of {n}; it cannot be below 0 or above n")
    from scipy.stats import binomtest  # takes half a second to import

    interval = binomtest(count, n).proportion_ci(method="wilson")
    return Rate(count / n, float(interval.low), float(interval.high), n)
