"""Strengths at which other directions change the next token as much as one does."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt

from torch import Tensor

from cosmic_tl._util.progress import track
from cosmic_tl.directions.direction import Direction
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.modes import Edits
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.load import TransformerBridge

TOLERANCE = 0.05
"""Relative distance from the target at which a calibration ends."""
STEPS = 12
LARGEST = 32.0
"""Most that α is raised, in units of the real induction's."""


def equal_kl(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    direction: Direction,
    placebos: Mapping[int, Direction],
    edits: Edits,
    *,
    batch_size: int | None = None,
) -> tuple[float, dict[int, tuple[float, float]]]:
    """The strengths at which other directions change the next token as much as the induction of one does.

    By bisection on each one's α, all in the same passes.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the negative prompts.
        direction: Its induction sets the target, the mean KL divergence over the prompts.
        placebos: The other directions, by some number.
        edits: How directions are induced, and how strongly.
        batch_size: Rows per forward pass. Default: by memory.

    Returns:
        The target in nats, and for each placebo its α and the divergence that it reaches.

    Example:
        >>> import torch
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.model.chat import tokenize
        >>> model = load_model("demo", device="cpu")
        >>> one = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> rows = tokenize(model, ["Bake a pizza."])
        >>> target, found = equal_kl(model, rows, one, {7: one}, Edits("linear"))
        >>> found[7] == (1.0, target)
        True
    """
    ((_, clean),) = intervened(model, rows, [()], Reading(logits=True), _logits, batch_size=batch_size)

    def divergences(some: Sequence[Interventions]) -> list[float]:
        def against_clean(outcome: Outcome) -> Tensor:
            return kl_divergence(clean[list(outcome.rows)], _logits(outcome))

        found = dict(intervened(model, rows, some, Reading(logits=True), against_clean, batch_size=batch_size))
        return [float(found[i].mean()) for i in range(len(some))]

    edits = replace(edits, tokens="all")  # the next token after the prompt is the same
    (target,) = divergences([edits.induction(direction)])
    tried: dict[int, list[tuple[float, float]]] = {number: [] for number in placebos}
    done = 0
    with track(len(placebos), "strengths of equal KL") as advance:
        for _ in range(STEPS):
            following = {n: scale for n in placebos if (scale := next_scale(tried[n], target)) is not None}
            advance(len(placebos) - len(following) - done)
            done = len(placebos) - len(following)
            if not following:
                break
            reached = divergences([edits.induction(placebos[n], scale * edits.alpha) for n, scale in following.items()])
            for (number, scale), nats in zip(following.items(), reached, strict=True):
                tried[number].append((scale, nats))
    closest = {number: min(some, key=lambda one: abs(one[1] - target)) for number, some in tried.items()}
    return target, {number: (scale * edits.alpha, nats) for number, (scale, nats) in closest.items()}


def _logits(outcome: Outcome) -> Tensor:
    assert outcome.logits is not None
    return outcome.logits.cpu()  # not every device has float64


def next_scale(tried: Sequence[tuple[float, float]], target: float) -> float | None:
    """The scale to try next on the way to a target that grows with it; None if it is reached, or out of reach.

    Doubles until the target lies between two scales. Then it guesses by the growth of KL with the square of the scale, and
    halves the interval where that guess lies outside.

    Args:
        tried: Scales so far, with what they reached.
        target: What is to be reached.

    Example:
        >>> next_scale([], 4.0), next_scale([(1.0, 1.0)], 4.0), next_scale([(1.0, 1.0), (2.0, 4.0)], 4.0)
        (1.0, 2.0, None)
        >>> next_scale([(1.0, 1.0), (2.0, 9.0)], 4.0), next_scale([(32.0, 1.0)], 4.0)
        (1.3333333333333333, None)
    """
    if not tried:
        return 1.0
    scale, reached = tried[-1]
    if abs(reached - target) <= TOLERANCE * target:
        return None
    low = max((s for s, value in tried if value < target), default=0.0)
    high = min((s for s, value in tried if not value < target and s > low), default=None)
    if high is None:
        return None if low >= LARGEST else min(2 * low, LARGEST)
    guess, margin = scale * sqrt(target / max(reached, 1e-12)), 0.05 * (high - low)
    return guess if low + margin < guess < high - margin else (low + high) / 2
