"""How well a number tells two classes apart: the area under the ROC curve, with an interval."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from jaxtyping import Float

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError

Z = 1.959963984540054
"""Of a 95 % interval."""
TINY = 1e-12


@checked
def auc(
    positive: Sequence[float] | Float[np.ndarray, " positive"],
    negative: Sequence[float] | Float[np.ndarray, " negative"],
) -> tuple[float, float, float]:
    """Area under the ROC curve, the share of pairs in which the positive number is larger (ties half), and its 95 % interval.

    The interval is Newcombe's (2006, method 5): every area A with `|Â − A| ≤ 1.96 √V(A)`, where Â is the one that was found and
    V(A) = A (1 − A) (1 + N (1 − A)/(2 − A) + N A/(1 + A)) / (m n), with N = (m + n)/2 − 1, after Hanley and McNeil. DeLong's
    interval and the bootstrap's have no width where the classes are separated, however few numbers there are.

    Args:
        positive: Numbers of the positive class.
        negative: Of the negative one.

    Returns:
        The area, and both ends of its interval.

    Raises:
        CosmicError: If a class has none, or one is not finite.

    Example:
        >>> [round(value, 3) for value in auc([2.0, 3.0, 4.0], [1.0, 2.0])]
        [0.917, 0.372, 0.995]
    """
    both = [np.asarray(some, dtype=float) for some in (positive, negative)]
    for name, some in zip(("positive", "negative"), both, strict=True):
        if not some.size or not np.isfinite(some).all():
            raise CosmicError(
                f"{name}: found {'none' if not some.size else 'NaN or infinite numbers'}; give finite numbers"
            )
    from scipy.optimize import brentq  # takes half a second to import

    m, n = len(both[0]), len(both[1])
    apart = np.sign(both[0][:, None] - both[1][None])
    found = float((1 + apart.mean()) / 2)
    more = (m + n) / 2 - 1

    def beyond(area: float) -> float:
        variance = area * (1 - area) * (1 + more * (1 - area) / (2 - area) + more * area / (1 + area)) / (m * n)
        return abs(found - area) - Z * sqrt(variance)

    # V is 0 at 0 and at 1, which are no ends of the interval.
    low = float(brentq(beyond, 0.0, min(found, 1 - TINY))) if found > 0 else 0.0
    high = float(brentq(beyond, max(found, TINY), 1.0)) if found < 1 else 1.0
    return found, low, high
