"""Kullback-Leibler divergence between next-token distributions."""

from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.border import checked


@checked
def kl_divergence(
    p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"], eps: float = 1e-6
) -> Float64[Tensor, " batch"]:
    """`Σ p·(log(p + ε) − log(q + ε))` between the distributions of two sets of logits, in float64.

    Example:
        >>> import torch
        >>> kl_divergence(torch.zeros(1, 4), torch.zeros(1, 4)).tolist()
        [0.0]
    """
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return (p * ((p + eps).log() - (q + eps).log())).sum(-1)
