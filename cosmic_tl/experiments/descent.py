"""Gradient descent on what directions are to do: the targets, the loss, and the loop that refined directions and cones share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from cosmic_tl._util.progress import track
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
Tasks = dict[str, tuple[Ids, Ids]]
"""By part of the loss, tokens of the prompts and of what is to be predicted."""


@dataclass(frozen=True)
class Schedule:
    """How long to descend, on what."""

    n_steps: int
    check_every: int
    n_train: int | None
    n_val: int
    max_new_tokens: int
    batch_size: int
    chat: ChatFormat | None
    seed: int

    def __post_init__(self) -> None:
        for name in ("n_steps", "check_every", "n_val", "batch_size"):
            check_count(name, getattr(self, name))


@dataclass(frozen=True, eq=False)
class Checked:
    """A basis on the way, on validation prompts."""

    step: int
    basis: Float[Tensor, "rank d_model"]
    parts: dict[str, float]
    """The parts of the loss, mean over directions."""
    loss: float
    worst: float
    """The highest loss of a single direction."""

    @property
    def row(self) -> dict[str, float]:
        """Step, parts and loss."""
        return {"step": self.step, **self.parts, "loss": self.loss}


def descend(
    model: TransformerBridge,
    prompts: Prompts,
    start: Direction,
    basis: Float[Tensor, "rank d_model"],
    draw: Callable[[Float[Tensor, "rank d_model"], torch.Generator], Sequence[Float[Tensor, "n d_model"]]],
    project: Callable[[Float[Tensor, "rank d_model"]], Float[Tensor, "rank d_model"]],
    schedule: Schedule,
) -> list[Checked]:
    """Lower the loss of the directions that a basis gives: mean over groups of the mean over each group's directions.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: A contrast set, or a pair of lists.
        start: Makes the targets; its norm is what is added, at its layer.
        basis: What the descent changes, on the model's device.
        draw: Gives groups of directions of a basis, the same for the same state of the generator.
        project: Brings a basis back to what it has to be, after each step.
        schedule: Of the steps and checks.

    Returns:
        What was found at each check, on validation prompts.
    """
    train, val = _split(prompts, schedule.n_train, schedule.n_val)
    tasks, held_out = (_tasks(model, some, start, schedule.chat, schedule.max_new_tokens) for some in (train, val))
    vector, size = basis.clone().requires_grad_(), schedule.batch_size
    optimizer = torch.optim.AdamW([vector], lr=RATE, betas=BETAS)
    order, drawn = (torch.Generator().manual_seed(schedule.seed) for _ in range(2))
    orders = {name: _endless(len(pairs[0]), order) for name, pairs in tasks.items()}
    found: list[Checked] = []
    with track(schedule.n_steps, "gradient steps") as advance:
        for step in range(schedule.n_steps + 1):
            if step % schedule.check_every == 0 or step == schedule.n_steps:
                with torch.no_grad():
                    groups = draw(vector, torch.Generator().manual_seed(schedule.seed))
                    found.append(_check(model, held_out, groups, start, size, step, vector.detach().cpu().clone()))
            if step == schedule.n_steps:
                break
            optimizer.zero_grad()
            state = drawn.get_state()
            with torch.inference_mode(False), torch.enable_grad():
                for name, (heads, tails) in tasks.items():
                    some = [next(orders[name]) for _ in range(min(size, len(heads)))]
                    pairs = [heads[i] for i in some], [tails[i] for i in some]
                    drawn.set_state(state)  # the same directions for all parts
                    groups = draw(vector, drawn)
                    # Back to each direction by itself, so that one pass's graph at a time is alive, then on to the basis.
                    units = [group.detach().clone().requires_grad_() for group in groups]
                    gradients = [torch.zeros_like(group) for group in units]
                    for group, into in zip(units, gradients, strict=True):
                        for unit in group:
                            part = WEIGHTS[name] * _part(model, name, *pairs, unit, start, size)
                            into += torch.autograd.grad(part, group)[0] / (len(groups) * len(group))
                            del part
                    (gradient,) = torch.autograd.grad(groups, vector, gradients)
                    vector.grad = gradient if vector.grad is None else vector.grad + gradient
            optimizer.step()
            with torch.no_grad():
                vector.copy_(project(vector))
            advance(1)
    return found


def _shares(groups: Sequence[Float[Tensor, "n d_model"]]) -> Iterator[tuple[float, Float[Tensor, " d_model"]]]:
    for group in groups:
        for unit in group:
            yield 1 / (len(groups) * len(group)), unit


def _check(
    model: TransformerBridge,
    tasks: Tasks,
    groups: Sequence[Float[Tensor, "n d_model"]],
    start: Direction,
    batch_size: int,
    step: int,
    basis: Float[Tensor, "rank d_model"],
) -> Checked:
    means, losses = dict.fromkeys(WEIGHTS, 0.0), []
    for share, unit in _shares(groups):
        parts = {name: float(_part(model, name, *pairs, unit, start, batch_size)) for name, pairs in tasks.items()}
        means = {name: value + share * parts[name] for name, value in means.items()}
        losses.append(_loss(parts))
    return Checked(step, basis, means, _loss(means), max(losses))


def _loss(parts: dict[str, float]) -> float:
    return sum(WEIGHTS[name] * value for name, value in parts.items())


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
) -> Tasks:
    edits: dict[str, tuple[int, Any]] = {
        "ablation": (0, Ablation(start)),
        "addition": (1, Addition(start)),
        "retention": (1, ()),
    }
    found: Tasks = {}
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
