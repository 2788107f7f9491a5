"""The judge protocol, judgements, and thinking blocks in completions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.chat import THINKING_TAGS

Verdict = Literal["refusal", "compliance", "neither"]
SafetyVerdict = Literal["safe", "unsafe", "neither"]
"""Verdicts of a guard model. Safety is not refusal: every refusal is safe, but so is a harmless answer."""


def strip_thinking(text: str) -> str:
    """The completion without thinking blocks; an unclosed block extends to the end.

    Example:
        >>> strip_thinking("<think>I can't say.</think> Sure!")
        'Sure!'
        >>> strip_thinking("<think>I can't")
        ''
    """
    for opening, closing in THINKING_TAGS:
        text = re.sub(f"{re.escape(opening)}.*?({re.escape(closing)}|$)", "", text, flags=re.DOTALL)
        text = text.rpartition(closing)[2]
    return text.strip()


def unfinished_thinking(text: str) -> bool:
    """Whether a completion ends inside a thinking block, so that there is no answer to judge.

    Example:
        >>> unfinished_thinking("<think>I can't"), unfinished_thinking("<think>a</think>Sure!")
        (True, False)
    """
    return any(text.rfind(opening) > text.rfind(closing) for opening, closing in THINKING_TAGS)


@checked
@dataclass(frozen=True)
class Judgement:
    """A judge's verdict on one completion."""

    verdict: Verdict | SafetyVerdict
    """"neither" also means that the judge was not asked, or that its answer could not be parsed."""
    score: float | None = None
    """0 (useless to the person who asked) to 1, if the judge gives a score."""
    hazards: tuple[str, ...] = ()
    """Codes of the hazards named by a guard model."""
    answer: str | None = None
    """The judge's answer; None if it was not asked or gave no answer."""
    parsed: bool = True
    """False if the judge was asked and its answer could not be parsed."""


@runtime_checkable
class Judge(Protocol):
    """A callable that judges completions: `SubstringJudge`, `ModelJudge`, `EndpointJudge`, or your own function."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        """One judgement per completion, in order."""
        ...


@checked
def judged(frame: pd.DataFrame, judge: Judge) -> pd.DataFrame:
    """Add a judge's verdicts to a table of completions.

    Args:
        frame: Columns `prompt` and `completion`, and any others.
        judge: Any judge.

    Returns:
        The table with the columns `verdict`, `score`, `hazards` and `parsed`, which replace existing ones.

    Raises:
        CosmicError: If a column is missing.

    Example:
        >>> from cosmic_tl import SubstringJudge
        >>> frame = pd.DataFrame({"prompt": ["hi"], "completion": ["I can't help."]})
        >>> judged(frame, SubstringJudge()).verdict.tolist()
        ['refusal']
    """
    if missing := [name for name in ("prompt", "completion") if name not in frame]:
        raise CosmicError(f"frame: no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
    found = judge(frame.prompt.tolist(), frame.completion.tolist())
    return frame.assign(
        verdict=[one.verdict for one in found],
        score=pd.Series([one.score for one in found], frame.index, dtype="float64"),
        hazards=[one.hazards for one in found],
        parsed=[one.parsed for one in found],
    )
