"""Refusal direction optimisation (Wollschläger et al. 2025): a direction by gradient, from the one that was found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import ContrastSet, Prompts, sides_of
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import CosmicError, check_count
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Ablation, Addition
from cosmic_tl.metrics.likelihood import continuation_batches, tokenize_pairs
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.forward import last_logits
from cosmic_tl.model.hooks import Hook, hook_name
from cosmic_tl.model.load import TransformerBridge

WEIGHTS = {"ablation": 1.0, "addition": 0.2, "retention": 1.0}
"""Of the three parts of the loss."""
RATE, BETAS, BATCH = 1e-2, (0.9, 0.98), 16
"""AdamW's learning rate and betas, and prompts per step."""
Ids = Sequence[Sequence[int]]


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
    for name, number in (
        ("n_steps", n_steps),
        ("check_every", check_every),
        ("n_val", n_val),
        ("batch_size", batch_size),
    ):
        check_count(name, number)
    direction.check(model)
    train, val = _split(prompts, n_train, n_val)
    tasks = [_tasks(model, some, direction, chat, max_new_tokens) for some in (train, val)]
    device = torch.device(str(model.cfg.device))
    vector = direction.unit.to(device).clone().requires_grad_()
    optimizer = torch.optim.AdamW([vector], lr=RATE, betas=BETAS)
    generator = torch.Generator().manual_seed(seed)
    orders = {name: _endless(len(pairs[0]), generator) for name, pairs in tasks[0].items()}
    rows: list[dict[str, float]] = []
    best: tuple[float, Tensor] | None = None
    with track(n_steps, "gradient steps") as advance:
        for step in range(n_steps + 1):
            if step % check_every == 0 or step == n_steps:
                with torch.no_grad():
                    parts = {
                        name: float(_part(model, name, *pairs, vector, direction, batch_size))
                        for name, pairs in tasks[1].items()
                    }
                    unit = normalize(vector, dim=0).detach().cpu()
                loss = sum(WEIGHTS[name] * value for name, value in parts.items())
                rows.append({"step": step, **parts, "loss": loss, "cosine": float(unit @ direction.unit)})
                if best is None or loss < best[0]:
                    best = loss, unit.clone()
            if step == n_steps:
                break
            optimizer.zero_grad()
            with torch.inference_mode(False), torch.enable_grad():
                for name, (heads, tails) in tasks[0].items():
                    some = [next(orders[name]) for _ in range(min(batch_size, len(heads)))]
                    part = _part(
                        model, name, [heads[i] for i in some], [tails[i] for i in some], vector, direction, batch_size
                    )
                    (gradient,) = torch.autograd.grad(WEIGHTS[name] * part, vector)
                    vector.grad = gradient if vector.grad is None else vector.grad + gradient
            optimizer.step()
            with torch.no_grad():
                vector.copy_(normalize(vector, dim=0))
            advance(1)
    assert best is not None
    found = replace(direction, vector=best[1] * direction.norm, method=f"refined {direction.method}")
    return Refined(found, direction, pd.DataFrame(rows))


def _split(prompts: Prompts, n_train: int | None, n_val: int) -> tuple[list[list[str]], list[list[str]]]:
    if isinstance(prompts, ContrastSet):
        return list(prompts.sides("train", n_train)), list(prompts.sides("val", n_val))
    sides = sides_of(prompts, "train")
    if short := [side for side, some in zip(("positive", "negative"), sides, strict=True) if len(some) <= n_val]:
        raise CosmicError(
            f"{short[0]}: found too few prompts to keep {n_val} for validation; give more, or a smaller n_val"
        )
    return [some[:-n_val][:n_train] for some in sides], [some[-n_val:] for some in sides]


def _tasks(
    model: TransformerBridge, sides: Sequence[Sequence[str]], start: Direction, chat: ChatFormat | None, n: int
) -> dict[str, tuple[Ids, Ids]]:
    """By part of the loss, tokens of the prompts and of what is to be predicted."""
    edits: dict[str, tuple[int, Any]] = {
        "ablation": (0, Ablation(start)),
        "addition": (1, Addition(start)),
        "retention": (1, ()),
    }
    found: dict[str, tuple[Ids, Ids]] = {}
    for name, (side, edit) in edits.items():
        texts = complete(model, sides[side], edit, chat=chat, max_new_tokens=n, label=f"targets, {name}")
        heads, tails = tokenize_pairs(model, sides[side], texts, chat)
        kept = [i for i, tail in enumerate(tails) if tail]
        if not kept:
            raise CosmicError(f"prompts: the model says nothing to any of them ({name}); give others")
        found[name] = [heads[i] for i in kept], [tails[i] for i in kept]
    return found


def _endless(n: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


def _hooks(model: TransformerBridge, name: str, vector: Tensor, start: Direction) -> list[Hook]:
    """Ablation or addition of the vector's direction, through which gradients pass."""
    unit = normalize(vector, dim=0)
    norm = start.norm

    def ablate(x: Tensor, hook: Any) -> Tensor:
        along = unit.to(x)
        return x - (x @ along)[..., None] * along

    def add(x: Tensor, hook: Any) -> Tensor:
        return x + norm * unit.to(x)

    if name == "addition":
        return [(hook_name(model, start.layer, "hook_resid_pre"), add)]
    points = Ablation(start).points(int(model.cfg.n_layers))
    return [(hook_name(model, layer, site), ablate) for layer, site in points]


def _part(
    model: TransformerBridge,
    name: str,
    heads: Ids,
    tails: Ids,
    vector: Tensor,
    start: Direction,
    batch_size: int,
) -> Float[Tensor, ""]:
    """One part of the loss: nats per token, mean over all tokens."""
    total: Any = 0.0
    loss = _divergence if name == "retention" else _cross_entropy
    for rows, batch, n_tail, _ in continuation_batches(model, heads, tails, batch_size):
        clean: Sequence[Tensor | None] = [None] * len(rows)
        if name == "retention":
            with torch.no_grad():
                clean = list(last_logits(model, batch, n_tail))
        with model.hooks(fwd_hooks=_hooks(model, name, vector, start)):
            logits = last_logits(model, batch, n_tail)
        for row, edited, before in zip(rows, logits, clean, strict=True):
            n = len(tails[row])
            total = total + loss(edited[:n].float(), torch.tensor(tails[row], device=edited.device), before)
    return total / sum(map(len, tails))  # type: ignore[no-any-return]


def _cross_entropy(logits: Tensor, targets: Tensor, clean: Tensor | None) -> Tensor:
    return cross_entropy(logits, targets, reduction="sum")


def _divergence(logits: Tensor, targets: Tensor, clean: Tensor | None) -> Tensor:
    assert clean is not None
    before = clean[: len(logits)].float().log_softmax(-1)
    return kl_div(logits.log_softmax(-1), before, reduction="sum", log_target=True)
