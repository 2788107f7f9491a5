"""How much to steer: the strength of an edit at a given cost or a given effect, so that edits are compared at equal cost."""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from math import isfinite, isnan, nan
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl.directions.direction import Direction
from cosmic_tl.engine import Outcome, Reading, intervened
from cosmic_tl.errors import CosmicError, check_alphas, check_texts, one_of
from cosmic_tl.experiments.bracketing import next_alpha
from cosmic_tl.experiments.cost_curves import CostCurves
from cosmic_tl.experiments.sweep_methods import METHODS
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.metrics.likelihood import tokenize_pairs
from cosmic_tl.metrics.refusal_score import RefusalTokens, log_odds
from cosmic_tl.metrics.token_divergence import token_divergences
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.result import Selection

Statistic = Literal["mean", "p95"]
"""Of the divergences of all tokens: their mean, or their 95th percentile."""
Strength = Callable[[float], Interventions]
"""α to an edit."""
Row = dict[str, Any]
ALPHAS = (0.0, 0.025, 0.05, 0.25, 0.5, 1.0, 2.0)
"""Strengths that every curve has; the smallest show the growth near 0."""
STEPS = 16
"""Strengths that a search tries after those, at most."""


@checked
def calibrate(
    model: TransformerBridge,
    prompts: Sequence[str],
    edits: Mapping[str, Strength] | Direction | Selection,
    *,
    nats: float | None = None,
    score: float | None = None,
    statistic: Statistic = "p95",
    tokens: RefusalTokens | None = None,
    alphas: Sequence[float] = ALPHAS,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    known: Sequence[Row] = (),
    on_row: Callable[[Row], object] = lambda row: None,
) -> CostCurves:
    """Find the strength at which edits cost as much, or do as much.

    The cost is KL(edited ‖ unedited) per token over the unedited model's own greedy completions of the prompts. By default the
    strength is found at which its 95th percentile is 1 nat: where one token in twenty is pushed noticeably. The effect is the
    mean refusal score on the same prompts. Every edit is measured at the strengths of `alphas`; then the lowest crossing of the
    target is bracketed, doubling the largest strength while none is seen, and narrowed down to 5 % (0.05 log-odds of a score).
    A target that is below the value at α = 0 can only be a score, which is then to fall. Nothing is drawn at random.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions, such as the negative side's test prompts.
        edits: Name to a function of α that gives interventions; a direction, for addition, ablation + addition and affine editing
            with it; or a selection, for its own induction.
        nats: The cost to reach. Default 1, unless a score is given.
        score: The effect to reach instead: a mean refusal score.
        statistic: Which cost: "p95" (default) or "mean" over tokens.
        tokens: From `find_refusal_tokens`; a score needs them. With a cost they add the effect to the curves.
        alphas: Strengths that every curve has; 0 is among them in any case. Default 0 to 2.
        chat: Formatting. Defaults to the plain chat template.
        max_new_tokens: Maximum number of tokens of an own completion. Default 64.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        known: Rows of `CostCurves.points` that are already measured, with the same settings.
        on_row: Called with each new row, so that a search can be resumed.

    Raises:
        CosmicError: If both or an impossible target are given, tokens are missing, known rows are of other completions, the model
            says nothing to the prompts, or as `steering`.

    Example:
        >>> from cosmic_tl import Addition, Direction, load_model
        >>> d = Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1)
        >>> found = calibrate(load_model("demo", device="cpu"), ["Bake a pie."], {"addition": lambda a: Addition(d, a)})
        >>> bool(abs(found.table.kl_p95[0] - 1) <= 0.05)
        True
    """
    measure, target = target_of(nats, score, statistic)
    if score is not None and tokens is None:
        raise CosmicError("tokens: found none, and a score is of refusal tokens; take them from find_refusal_tokens(…)")
    check_texts("prompts", prompts)
    if not prompts:
        raise CosmicError("prompts: found none; give at least one")
    check_alphas(alphas)
    strengths = sorted({0.0, *map(float, alphas)})
    named = _named(edits)
    own = complete(
        model, prompts, (), chat=chat, max_new_tokens=max_new_tokens, batch_size=batch_size, label="own completions"
    )
    spoken = [i for i, text in enumerate(own) if text]
    if not spoken:
        raise CosmicError("prompts: the model completes each with nothing; give prompts that it answers")
    heads, tails = tokenize_pairs(model, [prompts[i] for i in spoken], [own[i] for i in spoken], chat)
    rows = tokenize(model, prompts, chat) if tokens is not None else []
    points: dict[str, list[Row]] = {name: [] for name in named}
    n_tokens = sum(map(len, tails))
    for row in known:
        if row["n_tokens"] != n_tokens or isnan(row["score"]) != (tokens is None):
            found = f"{row['n_tokens']} tokens {'without' if isnan(row['score']) else 'with'} a score"
            raise CosmicError(
                f"known: found a row of {found}, and these completions have {n_tokens} "
                f"{'without' if tokens is None else 'with'} one; leave it out"
            )
    ready = {(str(row["edit"]), float(row["alpha"])): row for row in known}

    def measured(wanted: Sequence[tuple[str, float]]) -> None:
        done = {i for i, one in enumerate(wanted) if one in ready}
        every_edit = [named[name](alpha) for name, alpha in wanted]
        some = [edit for i, edit in enumerate(every_edit) if i not in done]
        kl = token_divergences(model, heads, tails, some, at_once=len(named), batch_size=batch_size) if some else []
        # What is known is batched with the rest, so that a stopped search goes on with the very same numbers.
        scores = _scores(model, rows, every_edit, done, tokens, batch_size) if tokens is not None and some else {}
        new = [one for one in wanted if one not in ready]
        for (name, alpha), each in zip(new, kl, strict=True):
            every, value = torch.cat(each), scores.get(wanted.index((name, alpha)), nan)
            row = {
                "edit": name,
                "alpha": alpha,
                "kl_mean": float(every.mean()),
                "kl_p95": float(every.quantile(0.95)),
                "n_tokens": len(every),
                "score": value,
            }
            on_row({**row, "score": None if isnan(value) else value})  # JSON has no NaN
            ready[name, alpha] = row
        for name, alpha in wanted:
            points[name].append(ready[name, alpha])

    with track(len(named), "strengths") as advance:
        for alpha in strengths:
            measured([(name, alpha) for name in named])
        done = 0
        for _ in range(STEPS):
            following = {}
            for name, some in points.items():
                tried = [(row["alpha"], row[measure]) for row in some]
                if (following_alpha := next_alpha(tried, target, measure)) is not None:
                    following[name] = following_alpha
            advance(len(named) - len(following) - done)
            done = len(named) - len(following)
            if not following:
                break
            measured(list(following.items()))
    frame = pd.DataFrame([row for some in points.values() for row in sorted(some, key=lambda row: row["alpha"])])
    return CostCurves(frame, measure, target, len(prompts))


def read_point(row: Row) -> Row:
    """A row of `CostCurves.points` from a log.

    Raises:
        ValueError: If it is none.

    Example:
        >>> read_point({"edit": "addition", "alpha": 1.0})
        Traceback (most recent call last):
        ValueError: it has no numbers of an edit's strength
    """
    names = ("alpha", "kl_mean", "kl_p95", "score")
    fits = set(row) == {"edit", "n_tokens", *names} and isinstance(row["edit"], str) and type(row["n_tokens"]) is int
    if not fits or not all(type(row[name]) is float for name in names if name != "score" or row[name] is not None):
        raise ValueError("it has no numbers of an edit's strength")
    if not all(isfinite(row[name]) for name in names if row[name] is not None):
        raise ValueError("it has numbers that are not finite")
    return {**row, "score": nan if row["score"] is None else row["score"]}


def target_of(nats: float | None, score: float | None, statistic: Statistic) -> tuple[str, float]:
    """What is to be measured, and the value to reach.

    Raises:
        CosmicError: If both are given, or one cannot be reached.

    Example:
        >>> target_of(None, None, "p95"), target_of(None, 0.5, "p95")
        (('kl_p95', 1.0), ('score', 0.5))
    """
    one_of("statistic", statistic, ("mean", "p95"))
    if nats is not None and score is not None:
        raise CosmicError(f"nats, score: found {nats} and {score}; give one of them")
    if score is not None:
        if not isfinite(score):
            raise CosmicError(f"score: expected a finite number, found {score}")
        return "score", float(score)
    nats = 1.0 if nats is None else nats
    if not 0 < nats < float("inf"):
        raise CosmicError(f"nats: expected a positive number, found {nats}")
    return f"kl_{statistic}", float(nats)


def _named(edits: Mapping[str, Strength] | Direction | Selection) -> dict[str, Strength]:
    if isinstance(edits, Direction):
        return {name: partial(method, edits) for name, method in METHODS.items()}
    if isinstance(edits, Selection):
        return {"induction": edits.induction}
    if not edits:
        raise CosmicError("edits: found none; give at least one, by name")
    return dict(edits)


def _scores(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    edits: Sequence[Interventions],
    known: Container[int],
    tokens: RefusalTokens,
    batch_size: int | None,
) -> dict[int, float]:
    def score(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        return log_odds(outcome.logits.cpu(), tokens.ids)

    found = intervened(model, rows, edits, Reading(logits=True), score, batch_size=batch_size, known=known)
    return {i: float(values.mean()) for i, values in found if i not in known}
