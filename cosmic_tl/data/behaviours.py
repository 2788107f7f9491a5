"""Behaviours other than refusal: pairs of answers to one question (contrastive activation addition).

Rimsky et al. 2024, "Steering Llama 2 via contrastive activation addition", and Marshall et al. 2025 read the activation
at the answer's last token. In the multiple-choice format that is the letter. Of the answer "(A)" the model is given
"(A", so that the letter is both the token that is read and the token that is predicted.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SPLITS, Split
from cosmic_tl.data.prompts import split_prompts
from cosmic_tl.data.readers import read_json
from cosmic_tl.errors import CosmicError, check_count, one_of

KEYS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
"""Entries of one pair in the JSON of the CAA data sets."""
_CHOICE = re.compile(r"\(([A-Z])\)")


@checked
@dataclass(frozen=True)
class AnswerPair:
    """One question with an answer that shows the behaviour and one that does not.

    Answers are texts ("open-ended"), or letters in parentheses that name choices in the question ("A/B").
    """

    question: str
    matching: str
    not_matching: str

    @property
    def fed(self) -> tuple[str, str]:
        """The two answers as they are given to the model: "(A)" without its closing parenthesis.

        Example:
            >>> AnswerPair("Is it? (A) Yes (B) No", "(A)", "(B)").fed
            ('(A', '(B')
        """
        matching, not_matching = (
            text.removesuffix(")") if _CHOICE.fullmatch(text) else text for text in (self.matching, self.not_matching)
        )
        return matching, not_matching

    @property
    def topic(self) -> str:
        """The text and sorted choices of a multiple-choice question: the same for both orders of its choices.

        Example:
            >>> AnswerPair("Is it? (A) Yes (B) No", "(A)", "(B)").topic == AnswerPair("Is it? (A) No (B) Yes", "(B)", "(A)").topic
            True
        """
        head, *choices = re.split(r"\([A-Z]\)", self.question)
        return " | ".join([head.strip(), *sorted(choice.strip() for choice in choices)])


@checked
@dataclass(frozen=True)
class BehaviourSet:
    """A behaviour as pairs of answers, in splits."""

    name: str
    pairs: Mapping[str, tuple[AnswerPair, ...]]
    """Split name to pairs."""
    notes: tuple[str, ...] = ()
    """Remarks made while reading it."""

    def split(self, split: Split, n: int | None = None) -> list[AnswerPair]:
        """The first `n` pairs of a split. Defaults to all; never more than there are.

        Raises:
            CosmicError: If the split is empty, or `n` is not positive.

        Example:
            >>> BehaviourSet("x", {"train": (AnswerPair("Well?", "Yes", "No"),)}).split("train")
            [AnswerPair(question='Well?', matching='Yes', not_matching='No')]
        """
        check_count(f"n_{split}", n)
        if not (found := self.pairs.get(split, ())):
            raise CosmicError(f"behaviour: {self.name!r} has no {split} pairs; add some")
        return list(found[:n])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self.pairs.get(split, ()))}" for split in SPLITS)
        return f"BehaviourSet({self.name!r}: {sizes} pairs)"


@checked
def load_behaviour(source: str | Path, *, seed: int = 0) -> BehaviourSet:
    """Read a behaviour from a JSON file in the format of the CAA data sets.

    Args:
        source: A list of objects with the keys of `KEYS`, or a mapping from split ("train", "val", "test") to such
            lists. Answers are either all letters in parentheses or all texts. A file without splits is shuffled and
            split (half, a quarter, a quarter); both orders of a question stay together.
        seed: Seed of the shuffle. Default 0.

    Raises:
        CosmicError: If the file is missing or malformed; the message names the entry.

    Example:
        >>> import json, tempfile
        >>> pairs = [dict(zip(KEYS, (f"Question {i}?", "Yes.", "No."))) for i in range(8)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "agreement.json").write_text(json.dumps(pairs))
        ...     load_behaviour(f"{folder}/agreement.json")
        BehaviourSet('agreement': train 4, val 2, test 2 pairs)
    """
    path = Path(source)
    if not path.is_file():
        raise CosmicError(f"behaviour: no file {str(source)!r}; give the path of a JSON file of answer pairs")
    data = read_json(path, "behaviour")
    if isinstance(data, dict):
        for split in data:
            one_of(f"behaviour: split of {path.name}", split, SPLITS)
        return _with_leaks_told(
            path.stem, {split: _pairs(some, f"{path.name}, {split}") for split, some in data.items()}, ()
        )
    pairs = _pairs(data, path.name)
    unique = tuple(dict.fromkeys(pairs))
    repeats = len(pairs) - len(unique)
    notes = (f"{repeats} repeated {'pair was' if repeats == 1 else 'pairs were'} dropped",) if repeats else ()
    topics = split_prompts(list(dict.fromkeys(pair.topic for pair in unique)), seed)
    place = {topic: split for split, some in topics.items() for topic in some}
    splits = {str(split): tuple(pair for pair in unique if place[pair.topic] == split) for split in SPLITS}
    return _with_leaks_told(path.stem, splits, notes)


def _pairs(data: Any, where: str) -> tuple[AnswerPair, ...]:
    if not isinstance(data, list) or not data:
        raise CosmicError(f"behaviour: {where} must be a list of objects with the keys {', '.join(KEYS)}")
    found = []
    for number, entry in enumerate(data, 1):
        texts = [entry.get(key) if isinstance(entry, dict) else None for key in KEYS]
        if bad := [key for key, text in zip(KEYS, texts, strict=True) if not isinstance(text, str) or not text.strip()]:
            raise CosmicError(f"behaviour: entry {number} of {where} has no text under {bad[0]!r}; add it")
        pair = AnswerPair(*(str(text).strip() for text in texts))
        if pair.matching == pair.not_matching:
            raise CosmicError(f"behaviour: entry {number} of {where} has the same answer twice; fix it")
        for answer in (pair.matching, pair.not_matching):
            if _CHOICE.fullmatch(answer) and answer not in pair.question:
                raise CosmicError(
                    f"behaviour: entry {number} of {where} has no choice {answer}; list it in the question"
                )
        found.append(pair)
    if len({bool(_CHOICE.fullmatch(answer)) for pair in found for answer in (pair.matching, pair.not_matching)}) > 1:
        raise CosmicError(f"behaviour: {where} mixes letters and texts as answers; put them into two files")
    return tuple(found)


def _with_leaks_told(name: str, splits: Mapping[str, tuple[AnswerPair, ...]], notes: tuple[str, ...]) -> BehaviourSet:
    places: dict[str, set[str]] = defaultdict(set)
    for split, some in splits.items():
        for pair in some:
            places[pair.topic].add(split)
    if leaked := [topic for topic, where in places.items() if len(where) > 1]:
        notes = (*notes, f"{len(leaked)} of the questions in more than one split, as {leaked[0][:60]!r}")
    return BehaviourSet(name, splits, notes)
