"""How far edits move the model on its own completions: KL divergence per token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.metrics.likelihood import continuation_logits
from cosmic_tl.model.load import TransformerBridge, has_float64


def token_divergences(
    model: TransformerBridge,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    edits: Sequence[Interventions],
    *,
    at_once: int | None = None,
    batch_size: int | None = None,
    label: str = "KL per token",
) -> list[list[Float64[Tensor, " token"]]]:
    """KL(edited ‖ unedited) of each token's distribution, in nats, given the tokens before it.

    The unedited model is run once for all edits, and no logits are kept beyond a batch.

    Args:
        model: A `TransformerBridge`.
        prompts: Token ids before the continuation, at least one per row.
        continuations: Token ids to predict, at least one per row.
        edits: Interventions, each alone.
        at_once: Number of edits that batches are sized for, so that the same edit has the same batches beside others. Default
            as many as are given.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        label: Name on the progress bar.

    Returns:
        For each edit, in the order of the rows, each token's divergence (float64, on the CPU).

    Raises:
        CosmicError: As `continuation_logits`.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> [[kl.shape for kl in rows] for rows in token_divergences(model, [[5], [6]], [[7, 8], [9]], [()])]
        [[torch.Size([2]), torch.Size([1])]]
    """
    found: list[list[Tensor]] = [[torch.empty(0, dtype=torch.float64)] * len(prompts) for _ in edits]
    n_passes = 1 + (len(edits) if at_once is None else at_once)
    passes = [
        continuation_logits(model, prompts, continuations, edit, batch_size=batch_size, at_once=n_passes, label=label)
        for edit in ((), *edits)
    ]
    for (row, clean), *edited in zip(*passes, strict=True):  # batches are the same for all
        reference = log_probabilities(clean)
        for k, (_, logits) in enumerate(edited):
            steered = log_probabilities(logits)
            found[k][row] = (steered.exp() * (steered - reference)).sum(-1).cpu()
    return found


def log_probabilities(logits: Float[Tensor, "token vocab"]) -> Float64[Tensor, "token vocab"]:
    """Log-probabilities in float64: in float32 rounding alone makes a divergence of 1e-6.

    Example:
        >>> log_probabilities(torch.zeros(1, 2)).exp().tolist()
        [[0.5, 0.5]]
    """
    return (logits if has_float64(logits.device) else logits.cpu()).double().log_softmax(-1)


def model_divergences(
    base: TransformerBridge,
    edited: TransformerBridge,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    interventions: Interventions = (),
    *,
    batch_size: int | None = None,
    label: str = "KL per token",
) -> list[tuple[Float64[Tensor, " token"], Float64[Tensor, " token"]]]:
    """KL of each token's distribution between two models with one vocabulary, in nats, given the tokens before it.

    Args:
        base: A `TransformerBridge`.
        edited: Another one, with the same tokens and as many logits.
        prompts: Token ids before the continuation, at least one per row.
        continuations: Token ids to predict, at least one per row.
        interventions: Edits that act in the edited model. Defaults to none.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        label: Name on the progress bar.

    Returns:
        For each row KL(edited ‖ base) and KL(base ‖ edited) of every token (float64, on the CPU).

    Raises:
        CosmicError: As `continuation_logits`.

    Example:
        >>> from cosmic_tl import load_model
        >>> demo, weak = (load_model(name, device="cpu") for name in ("demo", "demo-weak"))
        >>> ((there, back),) = model_divergences(demo, weak, [[5]], [[7, 8]])
        >>> there.shape, bool((there > 0).all())
        (torch.Size([2]), True)
    """
    found: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(prompts)
    passes = [
        continuation_logits(model, prompts, continuations, edit, batch_size=batch_size, at_once=2, label=label)
        for model, edit in ((base, ()), (edited, interventions))
    ]
    for (row, clean), (_, changed) in zip(*passes, strict=True):  # both sort the rows by their lengths
        reference, other = log_probabilities(clean).cpu(), log_probabilities(changed).cpu()
        difference = other - reference
        found[row] = (other.exp() * difference).sum(-1), -(reference.exp() * difference).sum(-1)
    return found
