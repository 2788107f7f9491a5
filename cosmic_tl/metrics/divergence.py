"""Kullback-Leibler divergence between next-token distributions."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.border import checked

NEGLIGIBLE = 1e-7
"""Probability of all tokens together that a divergence may leave out."""


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
    p: Float[Tensor, "batch vocab"], eps: float = 1e-6, total: Float64[Tensor, " batch"] | None = None
) -> Callable[[Sequence[int], Float[Tensor, "some vocab"], Float64[Tensor, " some"] | None], Float64[Tensor, " some"]]:
    """`kl_divergence` from the same distributions to many others, without the tokens that have next to no probability in these.

    The tokens left out have 1e-7 together at most, and so change the divergence by 2e-6 nats at most.

    Args:
        p: Logits.
        eps: As for `kl_divergence`.
        total: Logarithm of the sum of their exponentials, if it is known already.

    Returns:
        A function of the rows of `p`, of the other logits, one row each, and of their `total`. Exactly 0 for the same logits and
        the same total.

    Example:
        >>> divergence_from(torch.zeros(2, 4))([1], torch.zeros(1, 4)).tolist()
        [0.0]
    """
    probable = p.double().softmax(-1).sort(dim=-1, descending=True)
    n = int((probable.values.cumsum(-1) < 1 - NEGLIGIBLE).sum(-1).max()) + 1
    index, mass = probable.indices[:, :n].clone(), probable.values[:, :n].clone()

    def cross(here: list[int], q: Tensor, total: Tensor | None) -> Tensor:
        total = q.logsumexp(-1).double() if total is None else total
        some = (q.gather(1, index[here]).double() - total[:, None]).exp()
        found: Tensor = torch.linalg.vecdot(mass[here], some.add_(eps).log_())
        return found

    own = cross(list(range(len(p))), p, total)

    def to(
        rows: Sequence[int], q: Float[Tensor, "some vocab"], total: Float64[Tensor, " some"] | None = None
    ) -> Float64[Tensor, " some"]:
        here = list(rows)
        return own[here] - cross(here, q, total)

    return to
