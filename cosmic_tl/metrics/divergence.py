"""Kullback-Leibler divergence between next-token distributions."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.border import checked


@checked
def kl_divergence(
    p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"], eps: float = 1e-6
) -> Float64[Tensor, " batch"]:
    """`Σ p·(log(p + ε) − log(q + ε))` between the distributions of two sets of logits, in float64.

    Example:
        >>> kl_divergence(torch.zeros(1, 4), torch.zeros(1, 4)).tolist()
        [0.0]
    """
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return (p * ((p + eps).log() - (q + eps).log())).sum(-1)


def divergence_from(
    p: Float[Tensor, "batch vocab"], eps: float = 1e-6
) -> Callable[[Sequence[int], Float[Tensor, "some vocab"]], Float64[Tensor, " some"]]:
    """`kl_divergence` from the same distributions to many others; terms that depend on `p` alone are computed once.

    Args:
        p: Logits.
        eps: As for `kl_divergence`.

    Returns:
        A function of the rows of `p`, and of the other logits, one row each.

    Example:
        >>> divergence_from(torch.zeros(2, 4))([1], torch.zeros(1, 4)).round(decimals=9).abs().tolist()
        [0.0]
    """
    there = p.double().softmax(-1)
    own = (there * (there + eps).log()).sum(-1)

    def to(rows: Sequence[int], q: Float[Tensor, "some vocab"]) -> Float64[Tensor, " some"]:
        here = list(rows)
        logs = q.double().softmax(-1).add_(eps).log_()
        found: Tensor = own[here] - torch.linalg.vecdot(there[here], logs)
        return found

    return to
