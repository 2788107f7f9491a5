"""Refusal direction optimisation (Wollschläger et al. 2025): a direction by gradient, from the one that was found."""

from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import Prompts
from cosmic_tl.directions.direction import Direction
from cosmic_tl.experiments.descent import BATCH, Schedule, descend
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Refined(Result):
    """A direction that gradient descent found, and how its loss fell."""

    best: Direction
    """The direction with the lowest loss on validation prompts; place, norm and reference are those of `start`."""
    start: Direction
    table: pd.DataFrame
    """One row per check: step, ablation and addition (cross-entropy of the targets, nats per token), retention (KL divergence,
    nats per token), loss (their weighted sum), all on validation prompts, and cosine (to the direction that it began with)."""

    @property
    def cosine(self) -> float:
        """Between the direction and the one that it began with.

        Example:
            >>> d = Direction(torch.ones(4), torch.zeros(4), 1, -1)
            >>> Refined(d, d, pd.DataFrame()).cosine
            1.0
        """
        return float(self.best.unit @ self.start.unit)

    def _lines(self) -> list[str]:
        return [f"Refined({self.best!r}, cosine {self.cosine:.3f} to the one that it began with)"]


@checked
def refine_direction(
    model: TransformerBridge,
    prompts: Prompts,
    direction: Direction,
    *,
    n_steps: int = 100,
    check_every: int = 10,
    n_train: int | None = None,
    n_val: int = 16,
    max_new_tokens: int = 30,
    batch_size: int = BATCH,
    chat: ChatFormat | None = None,
    seed: int = 0,
) -> Refined:
    """Optimise a direction for what it is to do, by gradient through the model.

    The loss has three parts. Ablation: the cross-entropy, with the direction ablated from positive prompts, of the answers that
    the model gives to them with the *start* ablated. Addition (weight 0.2): that of the answers to negative prompts with the
    start added at its layer. Retention: KL(unedited ‖ ablated) on the model's own answers to negative prompts. AdamW with
    learning rate 0.01 and betas (0.9, 0.98); the direction is kept at unit length, and is added at the start's norm. Of the
    checks the one with the lowest loss on validation prompts is returned, the start included.

    Weights do not change. Each step takes three passes with gradients.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: A contrast set (its training and validation prompts), or a pair of lists, whose last `n_val` of each are kept for
            validation.
        direction: Where it begins, such as a selection's; its norm is what is added.
        n_steps: Steps. Default 100.
        check_every: Steps between checks on validation prompts. Default 10.
        n_train: Training prompts per side. Default all.
        n_val: Validation prompts per side. Default 16.
        max_new_tokens: Tokens of the targets, at most. Default 30.
        batch_size: Prompts per step and side. Default 16.
        chat: Formatting. Defaults to the plain chat template.
        seed: Of the order of the prompts. Default 0.

    Raises:
        CosmicError: If a number is not positive, prompts are missing, or the model says nothing to them.

    Example:
        >>> from cosmic_tl import load_model, load_prompts, random_direction
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> d = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = refine_direction(model, prompts, d, n_steps=2, n_train=2, n_val=2, check_every=1, max_new_tokens=4)
        >>> found.table.step.tolist()
        [0, 1, 2]
    """
    schedule = Schedule(n_steps, check_every, n_train, n_val, max_new_tokens, batch_size, chat, seed)
    direction.check(model)
    basis = direction.unit.to(torch.device(str(model.cfg.device)))[None]

    def draw(basis: Tensor, generator: torch.Generator) -> list[Tensor]:
        return [basis]

    found = descend(model, prompts, direction, basis, draw, partial(normalize, dim=1), schedule)
    best = min(found, key=lambda one: one.loss).basis[0]
    rows = [{**one.row, "cosine": float(one.basis[0] @ direction.unit)} for one in found]
    refined = replace(direction, vector=best * direction.norm, method=f"refined {direction.method}")
    return Refined(refined, direction, pd.DataFrame(rows))
