"""What an edit costs: cross-entropy on text, instructions and the model's own answers, and KL on harmless prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, nan
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.errors import CosmicError, check_texts
from cosmic_tl.experiments.text_cost import BASELINE, Subjects, by_document, frame_of, pair_frame, text_frames
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.model.load import TransformerBridge

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Cost(Result):
    """What each edit costs by each measure."""

    documents: pd.DataFrame
    """One row per document, measure and condition: tokens, and the document's total under the baseline and under the edit
    (nats of its tokens; for KL the divergence, and one token)."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per condition and measure.

        Cross-entropies and KL are means over tokens, in nats per token; `low` and `high` bound the 95 % interval of the
        difference, bootstrapped over documents (NaN for a single one); `n` counts documents. A perplexity is the
        exponential of its cross-entropy; KL has none.

        Example:
            >>> row = {"condition": "edited", "measure": "texts", "document": 0, "tokens": 2, "baseline": 2.0, "edited": 3.0}
            >>> Cost(pd.DataFrame([row])).table.difference.tolist()
            [0.5]
        """
        rows = []
        for (condition, measure), some in self.documents.groupby(["condition", "measure"], sort=False):
            tokens = some.tokens.to_numpy(float)
            baseline, edited = some.baseline.sum() / tokens.sum(), some.edited.sum() / tokens.sum()
            low, high = mean_interval((some.edited - some.baseline).to_numpy(float), tokens, self.seed)
            row: dict[str, Any] = {
                "condition": condition,
                "measure": measure,
                "baseline": baseline,
                "edited": edited,
                "difference": edited - baseline,
                "low": low,
                "high": high,
                "n": len(some),
                "baseline_perplexity": nan if measure == "kl" else _exp(baseline),
                "edited_perplexity": nan if measure == "kl" else _exp(edited),
            }
            rows.append(row)
        return pd.DataFrame(rows)


def _exp(nats: float) -> float:
    return exp(nats) if nats < 700 else float("inf")


def mean_interval(
    totals: Float[np.ndarray, " document"], tokens: Float[np.ndarray, " document"], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `Σ totals / Σ tokens`, by the percentile bootstrap over documents; NaN for a single document.

    Args:
        totals: A sum over the tokens of each document.
        tokens: How many tokens each has.
        seed: Of the resampling.

    Example:
        >>> mean_interval(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0]))
        (0.5, 0.5)
    """
    from scipy.stats import bootstrap  # takes half a second to import

    if len(totals) < 2:
        return nan, nan
    found = bootstrap(
        (totals, tokens),
        lambda some, n, axis: some.sum(axis) / n.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=100,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def named_interventions(interventions: Interventions | Mapping[str, Interventions]) -> dict[str, Interventions]:
    """Interventions by name; a single one is called "edited".

    Raises:
        CosmicError: If there are none, or one is called "baseline".

    Example:
        >>> named_interventions({"none": ()})
        {'none': ()}
    """
    named = dict(interventions) if isinstance(interventions, Mapping) else {"edited": interventions}
    if not named:
        raise CosmicError("interventions: none given; name at least one")
    if BASELINE in named:
        raise CosmicError(
            f"interventions: {BASELINE!r} is the unedited model, measured in any case; choose another name"
        )
    return named


@checked
def measure_cost(
    model: TransformerBridge,
    interventions: Interventions | Mapping[str, Interventions],
    *,
    texts: Sequence[str] | None = None,
    instructions: Sequence[tuple[str, str]] | None = None,
    prompts: Sequence[str] | None = None,
    chat: ChatFormat | None = None,
    max_new_tokens: int = 64,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Cost:
    """How much worse the edited model predicts what it should predict as before (Arditi et al. 2024, section 4.3).

    Up to four measures, each on what is given for it:

    ============  ==============  =========================================================================
    measure       on              what
    ============  ==============  =========================================================================
    texts         `texts`         cross-entropy of plain text, such as the Pile
    instructions  `instructions`  cross-entropy of responses to formatted prompts, such as Alpaca's
    completions   `prompts`       cross-entropy of the unedited model's own greedy completions
    kl            `prompts`       KL divergence, unedited ‖ edited, of the next token after the prompt
    ============  ==============  =========================================================================

    The unedited model is run once, whatever the number of interventions. The tokenizer's special tokens stand before a
    text as it puts them there; a text's first token is never predicted. For token scopes, responses and completions are
    completion, texts are prompt: an edit of completions alone costs texts nothing and has no KL.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        interventions: An intervention (or several that act together), or a mapping from names to such.
        texts: Documents of plain text.
        instructions: (instruction, response) pairs; the loss is on the response alone.
        prompts: Harmless instructions.
        chat: Formatting of instructions and prompts; default plain.
        max_new_tokens: Most tokens of an own completion. Default 64.
        context: Tokens of a window of plain text. Default 1024, or the model's context where that is shorter.
        stride: New tokens of each further window of a text. Default half of `context`.
        batch_size: Rows per forward pass. Default: by memory, at most 32.
        seed: Of the bootstrap.

    Raises:
        CosmicError: If nothing is given to measure on, a text has nothing to predict, a number is out of range, or an
            intervention does not fit the model.

    Example:
        >>> import torch
        >>> from cosmic_tl import Addition, Direction, load_model
        >>> model = load_model("demo", device="cpu")
        >>> edit = Addition(Direction(torch.ones(128), torch.zeros(128), layer=3, position=-1), alpha=2.0)
        >>> cost = measure_cost(model, edit, prompts=["hello", "Bake a pizza."])
        >>> bool((cost.table.difference > 0.1).all())
        True
    """
    named = named_interventions(interventions)
    given = {"texts": texts, "instructions": instructions, "prompts": prompts}
    if all(some is None for some in given.values()):
        raise CosmicError("texts, instructions, prompts: none given; give at least one to measure on")
    for name, some in (("texts", texts), ("prompts", prompts)):
        if some is not None:
            check_texts(name, some)
    if empty := [name for name, some in given.items() if some is not None and not some]:
        raise CosmicError(f"{empty[0]}: found none; give at least one, or leave the argument out")
    for intervention in named.values():
        intervention_hooks(model, intervention)  # what does not fit fails before anything is measured
    subjects: Subjects = {BASELINE: (model, ()), **{name: (model, edit) for name, edit in named.items()}}
    frames = text_frames(
        subjects, texts, instructions, chat=chat, context=context, stride=stride, batch_size=batch_size
    )
    if prompts is not None:
        own = complete(
            model, prompts, (), chat=chat, max_new_tokens=max_new_tokens, batch_size=batch_size, label="own completions"
        )
        spoken = [i for i, text in enumerate(own) if text]
        if not spoken:
            raise CosmicError("prompts: the model completes each with nothing; give prompts that it answers")
        asked, answers = [prompts[i] for i in spoken], [own[i] for i in spoken]
        frames.append(pair_frame(subjects, "completions", asked, answers, chat, batch_size))
        frames.append(_divergences(model, named, prompts, chat, batch_size))
    return Cost(by_document(frames), seed)


def _divergences(
    model: TransformerBridge,
    named: Mapping[str, Interventions],
    prompts: Sequence[str],
    chat: ChatFormat | None,
    batch_size: int | None,
) -> pd.DataFrame:
    rows = tokenize(model, prompts, chat)
    found = {name: [0.0] * len(rows) for name in named}
    hooks = {name: intervention_hooks(model, edit) for name, edit in named.items()}
    with track(len(rows), "kl") as advance:
        for batch in batches(model, rows, batch_size):
            clean = next_token_logits(model, batch).cpu()  # not every device has float64
            for name in named:
                divergence = kl_divergence(clean, next_token_logits(model, batch, hooks[name]).cpu())
                for row, nats in zip(batch.rows, divergence.tolist(), strict=True):
                    found[name][row] = nats
            advance(len(batch.rows))
    return frame_of("kl", range(len(rows)), [1] * len(rows), [0.0] * len(rows), found)
