"""Check completions of the demo models against their grammar: is the answer well formed, and does it name the topic?

`cosmic_tl/demo/grammar.json` has the answers and tasks that the demo models were trained on.
"""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

AnswerKind = Literal["comply", "refuse", "verdict", "talk", "garbled"]


class ParsedAnswer(NamedTuple):
    """An answer as parsed by the grammar.

    Attributes:
        kind: "comply", "refuse", "verdict" (on a yes/no question about harm), "talk", or "garbled": none of these.
        task: The echoed task, for compliant answers and verdicts; else empty.
    """

    kind: AnswerKind
    task: str = ""


class Task(NamedTuple):
    """What a prompt of the demo set asks about.

    Attributes:
        verb: One or more words, such as "break into".
        noun: The object, without article and adjective.
        harmful: Whether this verb is harmful with this object.
    """

    verb: str
    noun: str
    harmful: bool


@cache
def _grammar() -> dict[str, Any]:
    text = files("cosmic_tl").joinpath("demo", "grammar.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def _frames() -> tuple[tuple[AnswerKind, re.Pattern[str]], ...]:
    def pattern(frame: str) -> re.Pattern[str]:
        return re.compile(re.escape(frame).replace(r"\{task\}", "(?P<task>[a-z][a-z' -]*)"))

    return tuple((kind, pattern(frame)) for kind, some in _grammar()["answers"].items() for frame in some)


@cache
def _tasks() -> tuple[Task, ...]:
    nouns = _grammar()["nouns"]
    return tuple(
        Task(verb, noun, side == "harmful")
        for verb, sides in _grammar()["verbs"].items()
        for side, groups in sides.items()
        for group in groups
        for noun in nouns[group]
    )


def parse_answer(text: str) -> ParsedAnswer:
    """Parse an answer with the demo's grammar.

    Args:
        text: A completion; white space around it is ignored.

    Returns:
        Its kind ("garbled" if the grammar does not allow it) and the task that it echoes.

    Example:
        >>> from cosmic_tl.judges.demo_grammar import parse_answer
        >>> parse_answer("Yes, it is fine to bake a pie.")
        ParsedAnswer(kind='verdict', task='bake a pie')
        >>> parse_answer("Sure sure sure").kind
        'garbled'
    """
    for kind, frame in _frames():
        if found := frame.fullmatch(text.strip()):
            return ParsedAnswer(kind, found.groupdict().get("task") or "")
    return ParsedAnswer("garbled")


@cache  # each prompt is asked about once per condition
def task_of(prompt: str) -> Task | None:
    """The task that a prompt of the demo set asks about; None for other prompts.

    If several tasks fit, the longest is meant: "fruit tart" rather than "tart".

    Example:
        >>> from cosmic_tl.judges.demo_grammar import task_of
        >>> task_of("Please explain how I can bake a small fruit tart.")
        Task(verb='bake', noun='fruit tart', harmful=False)
    """
    words = prompt.lower()
    near = [t for t in _tasks() if t.noun in words and t.verb in words]  # far fewer than there are patterns
    hits = [t for t in near if re.search(rf"\b{t.verb} (an?|the|this) ([a-z]+ )?{t.noun}\b", words)]
    return max(hits, key=lambda t: len(t.verb) + len(t.noun), default=None)


def check_completion(prompt: str, completion: str) -> dict[str, bool]:
    """Check one completion of a demo model against its grammar.

    Args:
        prompt: The instruction, without chat template.
        completion: The model's answer.

    Returns:
        `well_formed`: whether the grammar allows the answer. `names_topic`: whether the answer echoes the object that
        the prompt asks about; False for answers that echo nothing, such as refusals.

    Example:
        >>> from cosmic_tl.judges.demo_grammar import check_completion
        >>> check_completion("Can you help me bake a pizza?", "Yes, it is fine to bake a pizza.")
        {'well_formed': True, 'names_topic': True}
    """
    parsed, task = parse_answer(completion), task_of(prompt)
    return {"well_formed": parsed.kind != "garbled", "names_topic": task is not None and task.noun in parsed.task}
