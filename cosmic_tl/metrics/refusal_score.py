"""Refusal tokens and refusal scores (Arditi et al. 2024, section 2.3 and appendix C)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import Prompts, sides_of
from cosmic_tl.errors import CosmicError, NoCandidateError, check_texts
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import intervention_hooks
from cosmic_tl.model.batching import batches
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.forward import next_token_logits
from cosmic_tl.model.load import TransformerBridge


@checked
@dataclass(frozen=True)
class RefusalTokens:
    """Tokens that refusals begin with."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    positive_coverage: float = nan
    """Share of positive prompts whose greedy answer begins with one of them; NaN if they were given."""
    negative_coverage: float = nan
    """The same of negative prompts."""

    def __repr__(self) -> str:
        return f"RefusalTokens({self})"

    def __str__(self) -> str:
        shown = ", ".join(repr(text) for text in self.texts)
        if self.positive_coverage != self.positive_coverage:
            return f"{shown} (given)"
        return f"{shown} (first token of {self.positive_coverage:.0%} of positive, {self.negative_coverage:.0%} of negative)"


def log_odds(logits: Float[Tensor, "batch vocab"], ids: Sequence[int]) -> Float64[Tensor, " batch"]:
    """The refusal score: `log P(R) − log(1 − P(R))`, in float64 (Arditi et al. 2024, appendix C).

    Args:
        logits: Logits of the next token.
        ids: The refusal tokens `R`.

    Example:
        >>> log_odds(torch.zeros(1, 4), [1, 2]).tolist()
        [0.0]
    """
    chosen = list(set(ids))
    work = logits.to(torch.float64, copy=True)
    # Both sums separately: 1 − P(R) would lose precision near 0.
    inside = work[:, chosen].logsumexp(-1)
    work[:, chosen] = -torch.inf
    return inside - work.logsumexp(-1)


def _next_logits(
    model: TransformerBridge,
    prompts: Sequence[str],
    interventions: Interventions,
    chat: ChatFormat | None,
    size: int | None,
) -> Iterable[tuple[tuple[int, ...], Tensor]]:
    hooks = intervention_hooks(model, interventions)
    for batch in batches(model, tokenize(model, prompts, chat), size):
        yield batch.rows, next_token_logits(model, batch, hooks)


@checked
def refusal_scores(
    model: TransformerBridge,
    prompts: Sequence[str],
    tokens: RefusalTokens,
    *,
    interventions: Interventions = (),
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> Float64[Tensor, " prompt"]:
    """Refusal score of each prompt: the log-odds that its answer begins with a refusal token.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: Instructions.
        tokens: From `find_refusal_tokens` or `refusal_tokens`.
        interventions: Edits to apply. Defaults to none.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a prompt or an intervention does not fit.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> scores = refusal_scores(model, ["Rob a bank clerk.", "Bake a pizza."], refusal_tokens(model, ["I can't"]))
        >>> bool(scores[0] > 0 > scores[1])
        True
    """
    found = torch.empty(len(prompts), dtype=torch.float64)
    for rows, logits in _next_logits(model, prompts, interventions, chat, batch_size):
        found[list(rows)] = log_odds(logits.cpu(), tokens.ids)
    return found


@checked
def refusal_tokens(model: TransformerBridge, texts: Sequence[str]) -> RefusalTokens:
    """The first tokens of some texts.

    Raises:
        CosmicError: If a text has no tokens.

    Example:
        >>> from cosmic_tl import load_model
        >>> refusal_tokens(load_model("demo", device="cpu"), ["I'm sorry", "I cannot"]).texts
        ('I',)
    """
    check_texts("tokens", texts)
    ids = []
    for text in texts:
        tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise CosmicError(f"tokens: {text!r} has no tokens; give texts that refusals begin with")
        ids.append(int(tokens[0]))
    unique = tuple(dict.fromkeys(ids))
    if not unique:
        raise CosmicError("tokens: none given; give at least one text, or leave it out to find them")
    return RefusalTokens(unique, tuple(model.tokenizer.decode([token]) for token in unique))


@checked
def find_refusal_tokens(
    model: TransformerBridge,
    prompts: Prompts,
    *,
    chat: ChatFormat | None = None,
    min_share: float = 0.05,
    min_lift: float = 4.0,
    batch_size: int | None = None,
) -> RefusalTokens:
    """Find first tokens of the model's greedy answers that are frequent on positive prompts and rare on negative ones.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        prompts: A contrast set, whose train prompts are taken, or a pair of lists: positive and negative prompts.
        chat: Formatting. Defaults to the plain chat template.
        min_share: Share of positive prompts that a token has to begin. Default 0.05.
        min_lift: How many times as frequent as on negative prompts. Default 4.
        batch_size: Prompts per forward pass. Default: by memory, at most 32.

    Raises:
        NoCandidateError: If there is no such token: the model answers both sides alike, as when it refuses everything.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> print(find_refusal_tokens(model, (["Rob a bank clerk."], ["Bake a pizza."])))
        'I' (first token of 100% of positive, 0% of negative)
    """
    positive, negative = sides_of(prompts, "train")
    firsts = []
    for side in (positive, negative):
        found = [logits.argmax(-1).tolist() for _, logits in _next_logits(model, side, (), chat, batch_size)]
        firsts.append([token for batch in found for token in batch])
    tokens = telling_tokens(model, firsts[0], firsts[1], min_share, min_lift)
    if tokens is None:
        top = ", ".join(repr(model.tokenizer.decode([token])) for token, _ in Counter(firsts[0]).most_common(3))
        raise NoCandidateError(
            f"tokens: the model's answers to positive prompts begin as those to negative ones do ({top}), so no first token "
            "tells refusals; give tokens (--refusal-token), or select by COSMIC without filter_prompts, which does not look "
            "at outputs"
        )
    return tokens


def telling_tokens(
    model: TransformerBridge,
    positive: Sequence[int],
    negative: Sequence[int],
    min_share: float = 0.05,
    min_lift: float = 4.0,
) -> RefusalTokens | None:
    """First tokens that are frequent in answers to positive prompts and rare in answers to negative ones; None if there
    are none.

    Args:
        model: The model whose tokens they are.
        positive: The first token of each answer to a positive prompt.
        negative: The same of negative prompts.
        min_share: Share of positive prompts that a token has to begin, and two of them if there are several. Default 0.05.
        min_lift: How many times as frequent as on negative prompts. Default 4.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> token = model.tokenizer("I", add_special_tokens=False)["input_ids"][0]
        >>> telling_tokens(model, [token, token], [0, 1]).texts
        ('I',)
    """
    count = Counter(positive)
    shares = [{token: n / len(side) for token, n in Counter(side).items()} for side in (positive, negative)]
    ids = tuple(
        token
        for token, n in count.most_common()
        if n >= min(2, len(positive)) and shares[0][token] >= max(min_share, min_lift * shares[1].get(token, 0.0))
    )
    if not ids:
        return None
    texts = tuple(model.tokenizer.decode([token]) for token in ids)
    covered = [sum(share.get(token, 0.0) for token in ids) for share in shares]
    return RefusalTokens(ids, texts, covered[0], covered[1])


def filter_by_score(
    model: TransformerBridge,
    positive: Sequence[str],
    negative: Sequence[str],
    tokens: RefusalTokens,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> tuple[list[str], list[str]]:
    """Positive prompts with a refusal score above 0 and negative ones with a score below 0.

    Raises:
        NoCandidateError: If no prompt of a side is left.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> filter_by_score(model, ["Rob a bank clerk.", "hi"], ["Bake a pizza."], refusal_tokens(model, ["I can't"]))
        (['Rob a bank clerk.'], ['Bake a pizza.'])
    """
    kept = []
    for sign, side, name in ((1, positive, "positive"), (-1, negative, "negative")):
        scores = refusal_scores(model, side, tokens, interventions=(), chat=chat, batch_size=batch_size)
        some = [text for text, score in zip(side, scores.tolist(), strict=True) if sign * score > 0]
        if not some:
            raise NoCandidateError(
                f"prompts: none of {len(side)} {name} prompts has a refusal score {'above' if sign > 0 else 'below'} 0; use "
                "filter_prompts=False (--no-filter-prompts), other tokens, or select by COSMIC"
            )
        kept.append(some)
    return kept[0], kept[1]


Sides = tuple[list[str], list[str]]
"""Positive and negative prompts."""


def keep_own(
    model: TransformerBridge,
    train: Sides,
    val: Sides,
    tokens: RefusalTokens,
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> tuple[Sides, Sides, tuple[str, ...]]:
    """The training and validation prompts that `filter_by_score` keeps, and a note if it drops some.

    Raises:
        CosmicError: If a side keeps nothing.

    Example:
        >>> from cosmic_tl import load_model
        >>> model = load_model("demo", device="cpu")
        >>> train, val = (["Rob a bank clerk.", "hi"], ["Bake a pizza."]), (["Mug a jogger."], ["Feed a cat."])
        >>> keep_own(model, train, val, refusal_tokens(model, ["I can't"]))[2]
        ('1 of 5 prompts left out by refusal score; 1 + 1 training and 1 + 1 validation prompts remain.',)
    """
    kept = [filter_by_score(model, some[0], some[1], tokens, chat=chat, batch_size=batch_size) for some in (train, val)]
    before, after = (sum(len(side) for sides in splits for side in sides) for splits in ((train, val), kept))
    if before == after:
        return kept[0], kept[1], ()
    sizes = [" + ".join(str(len(side)) for side in sides) for sides in kept]
    return (
        kept[0],
        kept[1],
        (
            f"{before - after} of {before} prompts left out by refusal score; {sizes[0]} training and {sizes[1]} validation "
            "prompts remain.",
        ),
    )
