"""What an edit costs: cross-entropy on text, instructions and the model's own answers, and KL on harmless prompts."""

from collections.abc import Iterator, Mapping, Sequence
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
from cosmic_tl.generation.completions import complete
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.metrics.divergence import kl_divergence
from cosmic_tl.metrics.likelihood import continuation_token_nats, tokenize_pairs
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.model.load import TransformerBridge

BASELINE = "baseline"
CONTEXT = 1024
"""Tokens of a window of plain text, at most."""
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
            low, high = _interval((some.edited - some.baseline).to_numpy(float), tokens, self.seed)
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


def _interval(
    totals: Float[np.ndarray, " document"], tokens: Float[np.ndarray, " document"], seed: int
) -> tuple[float, float]:
    """95 % interval of `Σ totals / Σ tokens`, by the percentile bootstrap over documents."""
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


def windows(tokens: Sequence[int], context: int, stride: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Cut a document into windows of `context` tokens, each predicting `stride` tokens from those before them.

    Every token but the first is predicted once: the first window predicts all but its first, each further one the next
    `stride`, from at least `context − stride` tokens.

    Yields:
        Tokens to read, and the tokens after them to predict.

    Example:
        >>> [(list(read), list(predicted)) for read, predicted in windows(range(7), context=4, stride=2)]
        [([0], [1, 2, 3]), ([2, 3], [4, 5]), ([3, 4, 5], [6])]
    """
    end = min(context, len(tokens))
    yield tokens[:1], tokens[1:end]
    while end < len(tokens):
        start, end = end, min(end + stride, len(tokens))
        yield tokens[end - context : start], tokens[start:end]


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
    frames = []
    if texts is not None:
        frames.append(_texts(model, named, texts, context, stride, batch_size))
    if instructions is not None:
        asked, answers = [pair[0] for pair in instructions], [pair[1] for pair in instructions]
        if blank := [i for i, answer in enumerate(answers) if not answer.strip()]:
            raise CosmicError(f"instructions: response {blank[0]} is blank; remove the pair")
        frames.append(_pairs(model, named, "instructions", asked, answers, chat, batch_size))
    if prompts is not None:
        own = complete(
            model, prompts, (), chat=chat, max_new_tokens=max_new_tokens, batch_size=batch_size, label="own completions"
        )
        spoken = [i for i, text in enumerate(own) if text]
        if not spoken:
            raise CosmicError("prompts: the model completes each with nothing; give prompts that it answers")
        asked, answers = [prompts[i] for i in spoken], [own[i] for i in spoken]
        frames.append(_pairs(model, named, "completions", asked, answers, chat, batch_size))
        frames.append(_divergences(model, named, prompts, chat, batch_size))
    rows = pd.concat(frames).groupby(["condition", "measure", "document"], sort=False)
    return Cost(rows.sum().reset_index(), seed)  # a text's windows are one document


def _frame(
    measure: str,
    documents: Sequence[int],
    tokens: Sequence[int],
    baseline: Sequence[float],
    edited: Mapping[str, Sequence[float]],
) -> pd.DataFrame:
    columns = {"measure": measure, "document": documents, "tokens": tokens, "baseline": baseline}
    return pd.concat([pd.DataFrame({"condition": name, **columns, "edited": some}) for name, some in edited.items()])


def _cross_entropies(
    model: TransformerBridge,
    named: Mapping[str, Interventions],
    measure: str,
    documents: Sequence[int],
    heads: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    batch_size: int | None,
    plain_text: bool = False,
) -> pd.DataFrame:
    nats = {}
    for name, edit in {BASELINE: (), **named}.items():
        each = continuation_token_nats(
            model, heads, tails, edit, batch_size=batch_size, plain_text=plain_text, label=f"{measure}, {name}"
        )
        nats[name] = [sum(some) for some in each]
    return _frame(measure, documents, [len(tail) for tail in tails], nats.pop(BASELINE), nats)


def _texts(
    model: TransformerBridge,
    named: Mapping[str, Interventions],
    texts: Sequence[str],
    context: int | None,
    stride: int | None,
    batch_size: int | None,
) -> pd.DataFrame:
    limit = int(model.cfg.n_ctx)
    context = min(limit, CONTEXT) if context is None else context
    if not 2 <= context <= limit:
        raise CosmicError(f"context: found {context}; use 2 to {limit}, the model's context")
    stride = context // 2 if stride is None else stride
    if not 1 <= stride < context:
        raise CosmicError(f"stride: found {stride}; use 1 to {context - 1}, so that each window has tokens to read")
    tokenizer: Any = model.tokenizer
    documents, heads, tails = [], [], []
    for i, ids in enumerate(tokenizer(list(texts))["input_ids"]):
        if len(ids) < 2:
            raise CosmicError(f"texts: document {i} has nothing to predict; remove it")
        for head, tail in windows(ids, context, stride):
            documents.append(i)
            heads.append(head)
            tails.append(tail)
    return _cross_entropies(model, named, "texts", documents, heads, tails, batch_size, plain_text=True)


def _pairs(
    model: TransformerBridge,
    named: Mapping[str, Interventions],
    measure: str,
    asked: Sequence[str],
    answers: Sequence[str],
    chat: ChatFormat | None,
    batch_size: int | None,
) -> pd.DataFrame:
    heads, tails = tokenize_pairs(model, asked, answers, chat)
    return _cross_entropies(model, named, measure, range(len(tails)), heads, tails, batch_size)


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
    return _frame("kl", range(len(rows)), [1] * len(rows), [0.0] * len(rows), found)
