"""Contrast sets: prompts that show a concept and prompts that do not, in splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_count, check_texts, one_of

Side = Literal["positive", "negative"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SIDES: tuple[Side, Side] = ("positive", "negative")


@checked
@dataclass(frozen=True)
class ContrastSet:
    """The two sides of a concept. For refusal: positive = harmful, negative = harmless."""

    name: str
    positive: Mapping[str, tuple[str, ...]]
    """Split name to instructions that show the concept."""
    negative: Mapping[str, tuple[str, ...]]
    """Split name to instructions that do not."""
    contrast: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """Split name to (positive, negative) pairs that differ as little as possible, where the set has them."""
    notes: tuple[str, ...] = ()
    """Remarks made while reading it."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """Prompt to category, for prompts that have one."""
    labels: tuple[str, str] | None = None
    """What the prompts of the positive and of the negative side are called on pages and in figures: "harmful" and "harmless",
    say. By default the judge's words for them."""

    def __post_init__(self) -> None:
        if self.labels is not None:
            check_labels(self.labels)
            object.__setattr__(self, "labels", tuple(self.labels))
        for name, splits in (("positive", self.positive), ("negative", self.negative)):
            for split, some in splits.items():
                check_texts(f"{name} {split}", some)

    def side(self, side: Side, split: Split, n: int | None = None) -> list[str]:
        """The first `n` instructions of one side of a split. Defaults to all; never more than there are.

        Raises:
            CosmicError: If there is no such side or split, the split is empty, or `n` is not positive.

        Example:
            >>> from cosmic_tl import load_prompts
            >>> len(load_prompts("demo").side("positive", "val", 10))
            10
        """
        one_of("side", side, SIDES)
        one_of("split", split, SPLITS)
        check_count(f"n_{split}", n)
        found = (self.positive if side == "positive" else self.negative).get(split, ())
        if not found:
            raise CosmicError(f"prompts: {self.name!r} has no {side} {split} prompts; add some")
        return list(found[:n])

    def sides(self, split: Split, n: int | None = None) -> tuple[list[str], list[str]]:
        """The first `n` instructions of both sides of a split, positive first.

        Raises:
            CosmicError: As `side`.

        Example:
            >>> from cosmic_tl import load_prompts
            >>> [len(some) for some in load_prompts("demo").sides("val", 10)]
            [10, 10]
        """
        return self.side("positive", split, n), self.side("negative", split, n)

    def problems(self) -> list[str]:
        """Duplicates, leakage between splits, and prompts on both sides, each as a sentence.

        Example:
            >>> ContrastSet("x", {"train": ("a",), "test": ("a",)}, {"train": ("b",)}).problems()
            ["1 prompt stands in more than one split, as 'a'"]
        """
        found = []
        sides = {"positive": self.positive, "negative": self.negative}
        for side, splits in sides.items():
            for split, prompts in splits.items():
                if repeated := [p for p, n in Counter(prompts).items() if n > 1]:
                    found.append(_sentence(repeated, f"repeated in {side} {split}"))
        places: dict[str, set[str]] = {}
        for splits in sides.values():
            for split, prompts in splits.items():
                for prompt in prompts:
                    places.setdefault(prompt, set()).add(split)
        if leaked := [p for p, where in places.items() if len(where) > 1]:
            found.append(_sentence(leaked, "in more than one split"))
        positive, negative = ({p for prompts in s.values() for p in prompts} for s in sides.values())
        if both := sorted(positive & negative):
            found.append(_sentence(both, "on both sides"))
        return found

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{split} {len(self.positive.get(split, ()))} + {len(self.negative.get(split, ()))}" for split in SPLITS
        )
        return f"ContrastSet({self.name!r}: {sizes}, {' + '.join(self.labels or SIDES)})"

    def _repr_html_(self) -> str:
        import pandas as pd

        from cosmic_tl._util.displays import as_html

        rows = []
        for split in SPLITS:
            sides = {"positive": self.positive.get(split, ()), "negative": self.negative.get(split, ())}
            sizes = {side: len(some) for side, some in sides.items()}
            rows.append(
                {"split": split, **sizes, **{f"for example, {side}": "".join(s[:1]) for side, s in sides.items()}}
            )
        return as_html([f"ContrastSet {self.name!r}", *self.notes], pd.DataFrame(rows))


def check_labels(labels: Any) -> None:
    """Check the names of the two sides, from anywhere.

    Raises:
        CosmicError: If they are not two different short texts on one line.

    Example:
        >>> check_labels(("pirates", "pirates"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: labels: found ('pirates', 'pirates'); give two different names, such as ...
    """
    pair = isinstance(labels, list | tuple) and len(labels) == 2
    named = pair and all(
        isinstance(one, str) and one.strip() and one.isprintable() and len(one) <= 40 for one in labels
    )
    if not named or labels[0].strip() == labels[1].strip():
        raise CosmicError(f"labels: found {labels!r}; give two different names, such as ('harmful', 'harmless')")


def labels_of(prompts: "Prompts") -> tuple[str, str] | None:
    """What a contrast set calls its sides; None if it says nothing, or for a pair of lists.

    Example:
        >>> from cosmic_tl import load_prompts
        >>> labels_of(load_prompts("demo")), labels_of((["a"], ["b"]))
        (('harmful', 'harmless'), None)
    """
    return prompts.labels if isinstance(prompts, ContrastSet) else None


def _sentence(prompts: Sequence[str], what: str) -> str:
    verb = "prompt stands" if len(prompts) == 1 else "prompts stand"
    return f"{len(prompts)} {verb} {what}, as {prompts[0][:60]!r}"


Prompts = ContrastSet | Sequence[Sequence[str]]
"""What functions on both sides take: a contrast set, or a pair of lists, positive and negative prompts."""


def sides_of(prompts: Prompts, split: Split, n: int | None = None) -> tuple[list[str], list[str]]:
    """Positive and negative prompts of a contrast set's split, or of a pair of lists.

    Args:
        prompts: A contrast set, or the pair.
        split: Which split of a contrast set.
        n: The first of each side, at most. Default all.

    Raises:
        CosmicError: If it is neither, a side is empty, or `n` is not positive.

    Example:
        >>> sides_of((["Rob a bank."], ["Bake a pie.", "Paint a door."]), "test", 1)
        (['Rob a bank.'], ['Bake a pie.'])
    """
    if isinstance(prompts, ContrastSet):
        return prompts.sides(split, n)
    if isinstance(prompts, str) or len(prompts) != 2:
        raise CosmicError(
            f"prompts: expected a contrast set or a pair (positive, negative), found {len(prompts)} entries; "
            "pass load_prompts(…) or two lists"
        )
    check_count("n", n)
    for side, some in zip(SIDES, prompts, strict=True):
        check_texts(side, some)
        if not some:
            raise CosmicError(f"{side}: found no prompts; give at least one")
    return list(prompts[0][:n]), list(prompts[1][:n])
