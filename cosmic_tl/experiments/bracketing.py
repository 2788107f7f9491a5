"""The search for a strength: brackets the lowest crossing of a target, and narrows it down."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

Tried = Sequence[tuple[float, float]]
"""Strengths with what they reach, 0 among them."""
TOLERANCE = {"kl_mean": 0.05, "kl_p95": 0.05, "score": 0.05}
"""Distance from the target at which a search ends: relative of a divergence, in log-odds of a score."""
LARGEST = 64.0
"""Largest strength that is tried."""
NARROW = 1e-4
"""Relative width of a bracket at which a search gives up: there the value jumps."""


def _near(value: float, target: float, measure: str) -> bool:
    return abs(value - target) <= TOLERANCE[measure] * (1.0 if measure == "score" else abs(target))


def _rising(tried: Tried, target: float, measure: str) -> tuple[list[tuple[float, float]], float]:
    """Strengths from 0 on with what they reach, and the target; both with a minus sign for a score that is to fall."""
    ordered = sorted(one for one in tried if one[0] >= 0)
    if measure == "score" and ordered[0][1] > target:
        return [(alpha, -value) for alpha, value in ordered], -target
    return ordered, target


def _crossing(ordered: Tried, target: float) -> tuple[tuple[float, float], ...]:
    """The lowest two neighbouring strengths between which the target is crossed; the last one alone if it never is."""
    pairs = pairwise(ordered)
    return next((pair for pair in pairs if pair[0][1] < target <= pair[1][1]), (ordered[-1],))


def reached(tried: Tried, target: float, measure: str) -> float | None:
    """The strength at a target's lowest crossing, or None if there is none.

    Args:
        tried: Strengths with what they reach, 0 among them.
        target: What is to be reached.
        measure: Which sets the tolerance.

    Example:
        >>> reached([(0.0, 0.0), (1.0, 0.98), (2.0, 4.0)], 1.0, "kl_mean"), reached([(0.0, 0.2)], 1.0, "kl_mean")
        (1.0, None)
    """
    ordered, goal = _rising(tried, target, measure)
    if ordered[0][1] >= goal:
        return ordered[0][0] if _near(ordered[0][1], goal, measure) else None
    best = min(_crossing(ordered, goal), key=lambda one: abs(one[1] - goal))
    return best[0] if _near(best[1], goal, measure) else None


def next_alpha(tried: Tried, target: float, measure: str) -> float | None:
    """The strength to try next on the way to a target's lowest crossing; None if it is found, or out of reach.

    Args:
        tried: Strengths with what they reach, 0 among them.
        target: What is to be reached.
        measure: "kl_mean" or "kl_p95", which grow with the square of the strength, or "score".

    Example:
        >>> next_alpha([(0.0, 0.0), (1.0, 1.0)], 4.0, "kl_mean")
        2.0
        >>> next_alpha([(0.0, 0.0), (1.0, 1.0), (2.0, 9.0)], 4.0, "kl_mean")
        1.5
        >>> next_alpha([(0.0, 5.0), (1.0, 9.0)], 4.0, "kl_mean")  # already at 0 more
    """
    ordered, goal = _rising(tried, target, measure)
    ends = _crossing(ordered, goal)
    if ordered[0][1] >= goal or any(_near(value, goal, measure) for _, value in ends):
        return None
    if len(ends) == 1:
        largest = ends[0][0]
        return None if largest >= LARGEST else min(2 * largest or 1.0, LARGEST)
    (low, below), (high, above) = ends
    if high - low <= NARROW * high:
        return None
    grown = [value if measure == "score" else sqrt(max(0.0, value)) for value in (below, goal, above)]
    share = (grown[1] - grown[0]) / (grown[2] - grown[0])
    return low + (high - low) * min(max(share, 0.1), 0.9)


def why_not(tried: Tried, target: float, measure: str) -> str:
    """Why there is no such strength, as the end of a sentence.

    Example:
        >>> why_not([(0.0, 0.0), (64.0, 0.5)], 1.0, "kl_mean")
        'does not reach it up to α = 64'
    """
    ordered, goal = _rising(tried, target, measure)
    if ordered[0][1] >= goal:
        return f"has {ordered[0][1]:.3g} at α = 0 already"
    ends = _crossing(ordered, goal)
    if len(ends) == 2:
        return f"jumps over it near α = {ends[1][0]:.3g}"
    return f"does not reach it up to α = {ends[0][0]:g}"
