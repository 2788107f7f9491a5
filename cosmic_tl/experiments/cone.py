"""Refusal cones (Wollschläger et al. 2025): several directions, any mixture of which does what one direction does."""

from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import Prompts
from cosmic_tl.directions.direction import Direction
from cosmic_tl.directions.subspace import Subspace
from cosmic_tl.errors import check_count
from cosmic_tl.experiments.descent import BATCH, Schedule, descend
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge

SAMPLES = 4
"""Random directions in the cone, per step and check."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Cone(Result):
    """Orthonormal directions whose mixtures with positive weights were optimised, and how their loss fell."""

    best: Subspace
    """Its basis spans the cone with the lowest loss on validation prompts; place and means are those of `start`."""
    start: Subspace
    norm: float
    """What is added along a direction of the cone, as long as the difference in means."""
    table: pd.DataFrame
    """One row per check: step, ablation, addition, retention (as for `Refined`, here means over the basis and over random
    directions in the cone), loss (their weighted sum), and worst (the highest loss of one of these directions), all on
    validation prompts."""

    def directions(self, n: int = 5, seed: int = 0) -> list[Direction]:
        """Random directions in the cone, for any edit of one direction.

        Args:
            n: How many. Default 5.
            seed: Of the random weights. Default 0.

        Raises:
            CosmicError: If `n` is not positive.

        Example:
            >>> zero = torch.zeros(3, dtype=torch.float64)
            >>> plane = Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 4, "example")
            >>> some = Cone(plane, plane, 2.0, pd.DataFrame()).directions(3)
            >>> [bool((one.vector >= 0).all()) for one in some], round(some[0].norm, 6)
            ([True, True, True], 2.0)
        """
        check_count("n", n)
        units = mixtures(self.best.basis.float(), n, torch.Generator().manual_seed(seed))
        place = self.best
        return [
            Direction(
                unit * self.norm,
                place.reference.float(),
                layer=place.layer,
                position=-1,
                method=place.method,
                fingerprint=place.fingerprint,
                model=place.model,
            )
            for unit in units
        ]

    def _lines(self) -> list[str]:
        return [f"Cone({self.best!r})"]


@checked
def refine_cone(
    model: TransformerBridge,
    prompts: Prompts,
    start: Subspace,
    *,
    n_samples: int = SAMPLES,
    n_steps: int = 100,
    check_every: int = 10,
    n_train: int | None = None,
    n_val: int = 16,
    max_new_tokens: int = 30,
    batch_size: int = BATCH,
    chat: ChatFormat | None = None,
    seed: int = 0,
) -> Cone:
    """Optimise several directions together, so that each of them and each of their mixtures does what one direction does.

    The loss of `refine_direction`, half of it as a mean over the basis and half over random unit vectors of the cone (mixtures
    with positive weights, uniform on that part of the sphere), drawn anew in each step. After each step the basis is made
    orthonormal again (Gram-Schmidt, in order). Targets are the answers under the difference in means, whose length is what is
    added. As a placebo give `start.random(seed)`, and read its step 0: mixtures of directions without the concept.

    Weights do not change. Each step takes three passes with gradients per direction: `rank + n_samples` times those of
    `refine_direction`.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: A contrast set (its training and validation prompts), or a pair of lists, whose last `n_val` of each are kept for
            validation.
        start: Where the basis begins, such as `class_subspace` or `stacked_subspace`; each direction is turned so that it points
            to the positive class.
        n_samples: Random directions in the cone, per step and check. Default 4.
        n_steps: Steps. Default 100.
        check_every: Steps between checks on validation prompts. Default 10.
        n_train: Training prompts per side. Default all.
        n_val: Validation prompts per side. Default 16.
        max_new_tokens: Tokens of the targets, at most. Default 30.
        batch_size: Prompts per step and side. Default 16.
        chat: Formatting. Defaults to the plain chat template.
        seed: Of the order of the prompts and the random directions. Default 0.

    Raises:
        CosmicError: If a number is not positive, prompts are missing, or the model says nothing to them.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> from cosmic_tl.directions import class_subspace
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> plane = class_subspace(model, prompts, 3, k=2, n_train=8)
        >>> cone = refine_cone(model, prompts, plane, n_samples=1, n_steps=1, n_train=2, n_val=2, max_new_tokens=4)
        >>> cone.best.rank, cone.table.step.tolist()
        (2, [0, 1])
    """
    check_count("n_samples", n_samples)
    schedule = Schedule(n_steps, check_every, n_train, n_val, max_new_tokens, batch_size, chat, seed)
    towards = torch.where(start.basis @ start.difference < 0, -1.0, 1.0)
    basis = (start.basis * towards[:, None]).float().to(torch.device(str(model.cfg.device)))
    mean = Direction(
        start.difference.float(),
        start.reference.float(),
        layer=start.layer,
        position=-1,
        method="difference in means",
        fingerprint=start.fingerprint,
        model=start.model,
    )
    mean.check(model)

    def draw(basis: Tensor, generator: torch.Generator) -> list[Tensor]:
        return [basis, mixtures(basis, n_samples, generator)]

    found = descend(model, prompts, mean, basis, draw, orthonormal, schedule)
    best = orthonormal(min(found, key=lambda one: one.loss).basis.double())
    rows = [{**one.row, "worst": one.worst} for one in found]
    return Cone(replace(start, basis=best, method=f"cone of {start.method}"), start, mean.norm, pd.DataFrame(rows))


def mixtures(basis: Float[Tensor, "rank d_model"], n: int, generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    """Random unit vectors with positive weights on an orthonormal basis.

    Example:
        >>> mixtures(torch.eye(2, 3), 1, torch.Generator().manual_seed(0)).norm(dim=1).round(decimals=5)
        tensor([1.])
    """
    weights = torch.randn(n, len(basis), generator=generator).abs().to(basis)
    return normalize(weights @ basis, dim=1)


def orthonormal(basis: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """Gram-Schmidt, in order: each row keeps what is new in it, and its sign.

    Example:
        >>> orthonormal(torch.tensor([[-2.0, 0.0], [1.0, -3.0]]))
        tensor([[-1., 0.],
                [-0., -1.]])
    """
    columns, upper = torch.linalg.qr(basis.T)
    found: Tensor = (columns * upper.diagonal().sign()).T.contiguous()
    return found
