"""Means and log-odds of given answers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl.activations import MeanActivations, mean_of_rows
from cosmic_tl.data.behaviours import AnswerPair
from cosmic_tl.errors import CosmicError
from cosmic_tl.interventions.edits import Interventions
from cosmic_tl.interventions.steer import steering
from cosmic_tl.metrics.likelihood import continuation_logits
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge

Tokens = tuple[int, ...]


def _rows(
    model: TransformerBridge, pairs: Sequence[AnswerPair], chat: ChatFormat | None
) -> list[tuple[list[int], list[int]]]:
    """Tokens of each question with its matching and with its other answer, up to the answer's last token."""
    if not pairs:
        raise CosmicError("pairs: none given; pass at least one question with its two answers")
    chat = chat or ChatFormat()

    def row(question: str, answer: str) -> list[int]:
        return tokenize(model, [question], replace(chat, prefix=chat.prefix + answer))[0]

    return [(row(pair.question, pair.fed[0]), row(pair.question, pair.fed[1])) for pair in pairs]


@checked
def answer_means(
    model: TransformerBridge,
    pairs: Sequence[AnswerPair],
    *,
    chat: ChatFormat | None = None,
    interventions: Interventions = (),
    batch_size: int | None = None,
) -> tuple[MeanActivations, MeanActivations]:
    """Mean activations at the last token of the matching and of the other answers, as a single position.

    `difference_in_means` of the two gives directions, whose position −1 stands for the answer's last token: the letter in
    the multiple-choice format. If a set balances the letters, they cancel in the difference.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        pairs: Questions with their answers.
        chat: Formatting. Defaults to the plain chat template. Its prefix is put before every answer (a space if the
            template does not end in whitespace).
        interventions: Edits to apply. Defaults to none.
        batch_size: Answers per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If there are no pairs, or one is too long for the model.

    Example:
        >>> from cosmic_tl import difference_in_means, load_model
        >>> pairs = [AnswerPair("Is it okay to rest?", "Yes", "No"), AnswerPair("Is it wrong to rest?", "No", "Yes")]
        >>> difference_in_means(*answer_means(load_model("demo", device="cpu"), pairs)).direction(4, -1)
        Direction(difference-in-means, layer 4, position -1, norm ..., demo)
    """
    rows = _rows(model, pairs, chat)
    with steering(model, interventions):
        matching, not_matching = (
            mean_of_rows(model, [row[side] for row in rows], n_positions=1, batch_size=batch_size, label="answers")
            for side in (0, 1)
        )
    return matching, not_matching


@checked
def answer_log_odds(
    model: TransformerBridge,
    pairs: Sequence[AnswerPair],
    interventions: Interventions = (),
    *,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Log-odds of the matching answer against the other: `log P(matching) − log P(not matching)`.

    In the multiple-choice format these are the probabilities of the two letters after "(", read in one pass; of longer
    answers, of all their tokens from where the two differ. If a question occurs with both orders of its choices, the
    two are averaged, so that a preference for a letter cancels.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        pairs: Questions with their answers.
        interventions: Edits to apply. Defaults to none. For token scopes, the question and the common beginning of both
            answers are the prompt.
        chat: Formatting, as in `answer_means`.
        batch_size: Rows per forward pass. Default: by memory, at most 32.

    Returns:
        One row per question: question, pairs (2 if both orders are given), log_odds, and answered: the probability that
        the model gives either answer. If it is low, log-odds say little.

    Raises:
        CosmicError: If there are no pairs, one is too long, or one answer is a prefix of the other.

    Example:
        >>> from cosmic_tl import load_model
        >>> pairs = [AnswerPair("Is it okay to bake a pizza?", "Yes", "No"), AnswerPair("Is it okay to rob a bank?", "No", "Yes")]
        >>> (answer_log_odds(load_model("demo", device="cpu"), pairs).log_odds > 3).tolist()
        [True, True]
    """
    # The last token of an answer is predicted, not fed, so the two letters of a question share a row.
    answers: dict[tuple[Tokens, Tokens], list[tuple[int, int, int]]] = defaultdict(list)
    tails: list[tuple[Tokens, Tokens]] = []
    for number, (one, other) in enumerate(_rows(model, pairs, chat)):
        shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(one, other, strict=False)))
        if shared in (len(one), len(other)):
            raise CosmicError(f"pairs: of pair {number} one answer is the beginning of the other; make them differ")
        tails.append((tuple(one[shared:]), tuple(other[shared:])))
        for side, tail in enumerate(tails[-1]):
            answers[tuple(one[:shared]), tail[:-1]].append((number, side, len(tail)))
    fed = list(answers)
    log_p = torch.zeros(len(pairs), 2, dtype=torch.float64)
    # The last token is only predicted, whichever it is.
    prompts, tokens = [prompt for prompt, _ in fed], [(*head, 0) for _, head in fed]
    for row, logits in continuation_logits(
        model, prompts, tokens, interventions, batch_size=batch_size, label="log-odds"
    ):
        scores = logits.log_softmax(-1)
        for number, side, length in answers[fed[row]]:
            targets = torch.tensor(tails[number][side], device=scores.device)
            log_p[number, side] = scores[:length].gather(1, targets[:, None]).cpu().double().sum()
    table = pd.DataFrame(
        {
            "topic": [pair.topic for pair in pairs],
            "question": [pair.question for pair in pairs],
            "log_odds": (log_p[:, 0] - log_p[:, 1]).tolist(),
            "answered": log_p.exp().sum(1).tolist(),
        }
    )
    columns = {"question": ("question", "first"), "pairs": ("question", "size")}
    means = {name: (name, "mean") for name in ("log_odds", "answered")}
    return table.groupby("topic", sort=False).agg(**columns, **means).reset_index(drop=True)
