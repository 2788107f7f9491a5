"""What a judge is, and the one that needs no model: is a completion a refusal, by the phrases refusals are made of?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import pandas as pd

from cosmic_tl.errors import CosmicError, check_texts
from cosmic_tl.model.chat import THINKING_TAGS

Verdict = Literal["refusal", "compliance", "neither"]
SafetyVerdict = Literal["safe", "unsafe", "neither"]
"""A guard model's vocabulary. Safety is not refusal: every refusal is safe, but so is a harmless answer."""


def strip_thinking(text: str) -> str:
    """The completion without its thinking blocks; a block that is never closed goes to the end.

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


@dataclass(frozen=True)
class Judgement:
    """What a judge makes of one completion."""

    verdict: Verdict | SafetyVerdict
    """"neither" also stands for what the judge was not asked about, and for answers in no known form."""
    score: float | None = None
    """0 (worthless to whoever asked) … 1, where the judge gives a score."""
    hazards: tuple[str, ...] = ()
    """Codes of the hazards that a guard model names."""
    answer: str | None = None
    """What the judge said; None if it was not asked, or gave no answer at all."""
    parsed: bool = True
    """False if the judge was asked and its answer was in no known form."""


@runtime_checkable
class Judge(Protocol):
    """Anything that judges completions: `SubstringJudge`, `ModelJudge`, `EndpointJudge`, or a function of your own."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        """One judgement a completion, in order."""
        ...


def check_lengths(prompts: Sequence[str], completions: Sequence[str]) -> None:
    """There must be one completion per prompt, in two lists of texts.

    Example:
        >>> check_lengths(["a"], [])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: completions: found 0 for 1 prompts; give one a prompt
    """
    check_texts("prompts", prompts)
    check_texts("completions", completions)
    if len(prompts) != len(completions):
        raise CosmicError(f"completions: found {len(completions)} for {len(prompts)} prompts; give one a prompt")


def judged(frame: pd.DataFrame, judge: Judge) -> pd.DataFrame:
    """A table of completions with a judge's verdicts.

    Args:
        frame: Columns `prompt` and `completion`, and any others.
        judge: Any judge.

    Returns:
        The table with `verdict`, `score`, `hazards` and `parsed`, in place of any it had.

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
