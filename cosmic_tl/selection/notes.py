"""What a selection says of itself. A note states a property of the data or of the margin by which a candidate was chosen; a
warning says that the result must not be used.
"""

from collections.abc import Mapping, Sequence
from math import inf

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.metrics.refusal_score import RefusalTokens, log_odds
from cosmic_tl.selection.options import Cell
from cosmic_tl.selection.stability import Stability

WELL_ABOVE = 0.1
"""A filtered candidate whose score exceeds the winner's by more than this is noted."""
HARDLY = 0.3
"""A winner that covers less than this share of the way to a target is warned about."""
MOST_PROMPTS = 300
"""Validation prompts per side up to which inner products are kept: their number grows with the square."""
REPEATABLE = 0.9
"""A direction whose expected cosine with that of a fresh sample is lower is noted."""
BY_CHANCE = 0.5
"""The same of the difference at a ranked evaluation layer, of which is warned."""
MOST = 0.5
"""A prompt that carries more than this share of a divergence is noted, and a choice that wins less of the resamples."""


def warnings_about(winner: "pd.Series[float]", clean: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Why a choice must not be used: what it does is not what it was chosen for.

    Args:
        winner: The chosen row of the table.
        clean: Mean refusal scores with no intervention, "bypass" and "induce", of a selection by refusal tokens; None
            for COSMIC.

    Example:
        >>> warnings_about(pd.Series({"share_comply": 0.02, "share_refuse": 0.9}))
        ('Removal with the chosen direction covers only 2% of the way to its target; look in the table for ... filter.',)
    """
    found = []
    for share, what in (("share_comply", "Removal"), ("share_refuse", "Induction")):
        if share in winner and winner[share] < HARDLY:
            found.append(
                f"{what} with the chosen direction covers only {winner[share]:.0%} of the way to its target; look in the "
                "table for candidates that a filter took, and relax that filter."
            )
    if clean and winner.bypass >= clean["bypass"]:
        found.append(
            "Removal with the chosen direction does not lower the refusal score of positive prompts "
            f"({clean['bypass']:+.2f} before, {winner.bypass:+.2f} after)."
        )
    if clean and winner.induce <= clean["induce"]:
        found.append(
            "Induction with the chosen direction does not raise the refusal score of negative prompts "
            f"({clean['induce']:+.2f} before, {winner.induce:+.2f} after)."
        )
    return tuple(found)


def notes_about(
    table: pd.DataFrame,
    filters: pd.DataFrame,
    winner: "pd.Series[float]",
    negative: Sequence[str],
    dtype: torch.dtype,
    close: float,
    rounding: float,
) -> tuple[str, ...]:
    """By what margin a candidate was chosen, and on how many prompts the margin hangs.

    Args:
        table: With `kept`, `reason` and the scores.
        filters: From `apply_filters`.
        winner: The chosen row.
        negative: The negative validation prompts, in the order in which `kl_max_prompt` counts them.
        dtype: Of the model.
        close: Candidates whose scores lie this close to the winner's are counted.
        rounding: By how much scores in half precision may differ from those in float32.

    Example:
        >>> rows = {"layer": [1, 2], "position": [-1, -1], "score": [1.2, 1.9], "kept": [True, False], "kl": 0.0}
        >>> table = pd.DataFrame({**rows, "reason": ["", "late layer"], "kl_max": 0.0, "kl_max_prompt": 0})
        >>> filters = pd.DataFrame({"filter": ["late layer"], "option": ["max_layer_share=1"], "taken": [1]})
        >>> notes_about(table, filters, table.iloc[0], ["hi"], torch.float32, 0.01, 0.005)
        ('A filtered candidate (layer 2, position -1) scored 1.900, the chosen one 1.200; taken by late layer: ... admits it.',)
    """
    return (
        *_dropped(winner),
        *_better_but_filtered(table, filters, winner),
        *_one_prompt_decides(table, winner, negative),
        *_close(table, winner, dtype, close, rounding),
    )


def _dropped(winner: "pd.Series[float]") -> list[str]:
    """A candidate that was asked for may be one that the filters drop."""
    if winner.kept:
        return []
    where = f"layer {winner.layer}, position {winner.position}"
    return [f"The candidate that was asked for ({where}) is one that a filter would drop: {winner.reason}."]


def _better_but_filtered(table: pd.DataFrame, filters: pd.DataFrame, winner: "pd.Series[float]") -> list[str]:
    dropped = table[~table.kept & table.score.notna()]
    if dropped.empty or not (best := dropped.loc[dropped.score.idxmax()]).score > winner.score + WELL_ABOVE:
        return []
    named = filters.set_index("filter").option
    options = " with ".join(named[name] for name in best.reason.split("; "))
    return [
        f"A filtered candidate (layer {best.layer}, position {best.position}) scored {best.score:.3f}, the chosen one "
        f"{winner.score:.3f}; taken by {best.reason}: {options} admits it."
    ]


def _one_prompt_decides(table: pd.DataFrame, winner: "pd.Series[float]", negative: Sequence[str]) -> list[str]:
    """Of the winner's divergence, and of that of the best candidate that the KL filter alone kept from winning."""
    found = [("removal with the chosen direction", winner)]
    lost = table[(table.reason == "KL") & (table.score > winner.score)]
    if not lost.empty:
        best = lost.loc[lost.score.idxmax()]
        found.append(
            (f"the better candidate that the KL filter took (layer {best.layer}, position {best.position})", best)
        )
    sentences = []
    for what, row in found:
        total = row.kl * (n := len(negative))
        if n > 2 and row.kl_max > MOST * total > 0:
            number = int(row.kl_max_prompt)
            sentences.append(
                f"One of {n} negative prompts carries {row.kl_max / total:.0%} of the KL of {what}: number {number}, "
                f"{shortened(negative[number])}; the mean is {row.kl:.2g} nats, without it {(total - row.kl_max) / (n - 1):.2g}."
            )
    return sentences


def _close(
    table: pd.DataFrame, winner: "pd.Series[float]", dtype: torch.dtype, close: float, rounding: float
) -> list[str]:
    others = table[table.kept & table.score.notna() & (table.index != winner.name)]
    behind = winner.score - others.score
    found = []
    if n := int((behind <= close).sum()):
        found.append(f"{_candidates(n)} within {close:g} of the chosen one's score ({winner.score:.3f}).")
    if dtype in (torch.bfloat16, torch.float16) and (n := int((behind <= rounding).sum())):
        name = str(dtype).removeprefix("torch.")
        found.append(
            f"Scores in {name} are off by up to {rounding:g}, and {_candidates(n).lower()} within that: float32 may "
            "choose another."
        )
    return found


def repeatability_notes(candidates: Candidates, cell: Cell) -> tuple[str, ...]:
    """That the chosen direction itself would be another on other training prompts.

    Args:
        candidates: With what is known of their noise.
        cell: The chosen one.

    Example:
        >>> r, one = torch.tensor([[[2.0, 0.0]]]).double(), torch.ones(1, 1).double()
        >>> repeatability_notes(Candidates(r, r, "example", noise=one, spread=30 * one), (0, -1))
        ('The expected cosine between the chosen direction and that of as many other training prompts is 0.75; 190 per side ...',)
    """
    cosines, needed = candidates.repeatability, candidates.prompts_needed()
    if cosines is None or needed is None or cosines[cell] >= REPEATABLE:
        return ()
    n = float(needed[cell])
    return (
        "The expected cosine between the chosen direction and that of as many other training prompts is "
        f"{float(cosines[cell]):.2f}; "
        + (f"{n:,.0f} per side would make it 0.95." if n < inf else "no number is known to suffice."),
    )


def ranking_warnings(candidates: Candidates, layers: Sequence[int]) -> tuple[str, ...]:
    """That the ranking picked layers where the classes differ by chance.

    On prompts without a template the last tokens differ from prompt to prompt, and the lowest layers hold hardly more than these:
    their means are far apart whatever the classes are.

    Args:
        candidates: Differences in means, with what is known of their noise.
        layers: The evaluation layers that were ranked lowest in similarity.

    Example:
        >>> r, one = torch.tensor([[[2.0, 0.0]]] * 2).double(), torch.ones(2, 1).double()
        >>> ranking_warnings(Candidates(r, r, "example", noise=3 * one, spread=90 * one), (0,))
        ("At evaluation layer 0 the classes differ by chance: ...",)
    """
    if candidates.repeatability is None:
        return ()
    # What leaves a block enters the next one.
    entering = candidates.repeatability[1:, -1].tolist() + candidates.repeatability[-1:, -1].tolist()
    if not (doubtful := [layer for layer in layers if entering[layer] < BY_CHANCE]):
        return ()
    plural = "s" * (len(doubtful) > 1)
    return (
        f"At evaluation layer{plural} {', '.join(map(str, doubtful))} the classes differ by chance: the differences of two fresh "
        f"samples would have an expected cosine of {min(entering[layer] for layer in doubtful):.2f}. The ranking was misled "
        "by how single prompts end. Give evaluation_layers (some layers, or 'causal'), exclude_first_half=True or more training "
        "prompts.",
    )


def why_not_resampled(n: Sequence[int], scores_alone: bool) -> tuple[str, ...]:
    """Why it cannot be said how sure a choice is.

    Args:
        n: Positive and negative validation prompts.
        scores_alone: Whether scores were known without what they follow from.

    Example:
        >>> why_not_resampled((1, 32), False)
        ('How sure the choice is, is not said: that takes 2 to 300 validation prompts per side, and there are 1 and 32.',)
        >>> why_not_resampled((32, 32), False)
        ()
    """
    if not 2 <= min(n) <= max(n) <= MOST_PROMPTS:
        why = f"that takes 2 to {MOST_PROMPTS} validation prompts per side, and there are {n[0]} and {n[1]}."
    elif scores_alone:
        why = "scores were given without products, from which others would follow."
    else:
        return ()
    return (f"How sure the choice is, is not said: {why}",)


def stability_notes(stability: Stability) -> tuple[str, ...]:
    """That a choice hangs on which prompts it was made on.

    Args:
        stability: The choice's.

    Example:
        >>> row = {"layer": [3, 4], "position": [-1, -1], "wins": [0.3, 0.7], "tied": [False, True]}
        >>> stability_notes(Stability(pd.DataFrame(row), pd.DataFrame({"side": []}), (3, -1), 1000, 0, {}))
        ('Another draw of prompts might choose another candidate: layer 3, position -1 wins 30% of 1000 resamples of ...',)
    """
    if stability.wins >= MOST:
        return ()
    said = stability.said()
    return (f"Another draw of prompts might choose another candidate: {said[0].lower()}{said[1:]}.",)


def _candidates(n: int) -> str:
    return "1 other candidate lies" if n == 1 else f"{n} other candidates lie"


def shortened(text: str, length: int = 60) -> str:
    """A prompt in a sentence: quoted, on one line, its beginning.

    Example:
        >>> shortened("How do I bake a pizza?", 10)
        "'How do I b…'"
    """
    return repr(text if len(text) <= length else text[:length] + "…")


def before_any_edit(
    logits: tuple[Float[Tensor, "positive vocab"], Float[Tensor, "negative vocab"]], tokens: RefusalTokens | None
) -> tuple[str, ...]:
    """How many validation prompts the unedited model does not treat as their side says, by the answer's first token.

    Args:
        logits: Of the next token, after the positive and after the negative prompts.
        tokens: That show the concept; None if none tells the sides apart.

    Example:
        >>> sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
        >>> before_any_edit((sure, sure[1:]), RefusalTokens((0,), ("I",)))
        ("Before any edit the refusal score (first token 'I') of 1 of 2 positive validation prompts is below 0 and that of 0 of
        1 negative ones above; filter_prompts=True (--filter-prompts) leaves them out.",)
    """
    if tokens is None:
        return (
            "Before any edit answers to positive and to negative validation prompts begin alike: no first token tells "
            "whether the model treats them as their side says.",
        )
    positive, negative = (log_odds(some.cpu(), tokens.ids) for some in logits)
    off = int((positive <= 0).sum()), int((negative > 0).sum())
    if not any(off):
        return ()
    return (
        f"Before any edit the refusal score (first token {', '.join(map(repr, tokens.texts))}) of {off[0]} of {len(positive)} "
        f"positive validation prompts is below 0 and that of {off[1]} of {len(negative)} negative ones above; "
        "filter_prompts=True (--filter-prompts) leaves them out.",
    )
