"""What is measured at the last token: how far prompts come towards the other class."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cosmic_tl.engine import Outcome, Reading
from cosmic_tl.metrics.divergence import divergence_from
from cosmic_tl.metrics.refusal_score import RefusalTokens
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.patching import unpatched

TOWARDS = (-1, 1)
"""Positive prompts are to lose their refusal score, negative ones to win it."""


def measuring(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    sides: Sequence[int],
    tokens: RefusalTokens | None,
    layers: tuple[int, ...],
    *,
    n_changed: int | None = None,
    batch_size: int | None = None,
) -> Callable[[Outcome], Float64[Tensor, "prompt measure"]]:
    """How far prompts come towards the other class, prompt by prompt: refusal score, cosine at some layers, and KL.

    Args:
        model: A `TransformerBridge`.
        rows: Token ids of the prompts.
        sides: Of each prompt: 0 for a positive one, 1 for a negative one. Cosines need both.
        tokens: Whose log-odds are the refusal score; None for no such measure.
        layers: Where cosines are taken; none for no such measure.
        n_changed: How many of the rows, from the first one on, `patched` is given. Default all. The same ones share a clean
            pass here, so that what a change does not reach is the same to the last bit.
        batch_size: Rows per pass, as for `patched`.
    """
    logits: list[Tensor] = []
    streams: list[Tensor] = []
    n_changed = len(rows) if n_changed is None else n_changed
    for some in (rows[:n_changed], rows[n_changed:]):
        if some:
            width = int(model.cfg.d_model) if layers else 0
            found = unpatched(
                model, some, Reading(layers, logits=True), lambda o: _both(o, layers), batch_size=batch_size
            )
            streams.append(found[:, :width])
            logits.append(found[:, width:].float())
    before, stream = torch.cat(logits)[:n_changed], torch.cat(streams)
    of_side = torch.tensor(sides)
    towards = torch.tensor(TOWARDS)[of_side]
    odds, total = _odds(before, tokens)
    divergence = divergence_from(before, total=total)
    if layers:
        target = torch.stack([stream[of_side == 1].mean(0), stream[of_side == 0].mean(0)])[of_side]
        cosines = cosine_similarity(stream, target, dim=1)

    def measured(outcome: Outcome) -> Tensor:
        assert outcome.logits is not None
        here, now = list(outcome.rows), outcome.logits.cpu()
        columns = []
        found, now_total = _odds(now, tokens)
        if found is not None and odds is not None:
            columns.append(towards[here] * (found - odds[here]))
        if layers:
            moved = cosine_similarity(_over_layers(outcome, layers), target[here], dim=1)
            columns.append(moved - cosines[here])
        columns.append(divergence(here, now, now_total))
        return torch.stack(columns, dim=1)

    return measured


def _odds(
    logits: Float[Tensor, "prompt vocab"], tokens: RefusalTokens | None
) -> tuple[Float64[Tensor, " prompt"] | None, Float64[Tensor, " prompt"]]:
    """The refusal score as `log_odds` gives it, and the logarithm of the sum of all exponentials, from one pass over the
    vocabulary in float32: in float64 it would take as long as the blocks.
    """
    if tokens is None:
        return None, logits.logsumexp(-1).double()
    chosen = list(set(tokens.ids))
    inside = logits[:, chosen].double().logsumexp(-1)
    others = logits.clone()
    others[:, chosen] = -torch.inf
    outside = others.logsumexp(-1).double()
    return inside - outside, torch.logaddexp(inside, outside)


def _over_layers(outcome: Outcome, layers: tuple[int, ...]) -> Float64[Tensor, "prompt d_model"]:
    """The mean over layers of `y[l, -1]`."""
    return torch.stack([outcome.resid_post[layer][:, -1].cpu().double() for layer in layers]).mean(0)


def _both(outcome: Outcome, layers: tuple[int, ...]) -> Float64[Tensor, "prompt value"]:
    """Stream and logits side by side."""
    assert outcome.logits is not None
    stream = [_over_layers(outcome, layers)] if layers else []
    return torch.cat([*stream, outcome.logits.cpu().double()], dim=1)
