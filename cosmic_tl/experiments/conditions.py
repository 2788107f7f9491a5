"""Conditions: what is measured, on which prompts, and what it is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES, Side
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.errors import check_count, one_of
from cosmic_tl.interventions.edits import Intervention
from cosmic_tl.interventions.options import Mode
from cosmic_tl.judges.substring import REFUSAL_PHRASES
from cosmic_tl.selection.options import PLACEBOS
from cosmic_tl.selection.result import Selection, direction_and_edits

Row = dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """What is shown to people in place of the names in tables and files, which are those of refusal."""

    outcome: str
    """What is counted, in the plural."""
    rate: str
    """Its share of the completions."""
    sides: Mapping[str, str]
    """What the prompts of each side are called."""
    verdicts: Mapping[str, str]

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of `Effects` for people.

        Example:
            >>> row = {"side": "positive", "condition": "baseline", "rate": 1.0}
            >>> CONCEPT.of(pd.DataFrame([row])).to_dict("records")
            [{'prompts': 'positive', 'condition': 'baseline', 'answers with the concept': 1.0}]
        """
        named = table.assign(side=table.side.map(dict(self.sides)))
        named = named.rename(columns={"side": "prompts", "rate": self.rate})
        return named.rename(columns=lambda name: str(name).replace("_", " "))


REFUSAL = Terms(
    "refusals",
    "refusal rate",
    {"positive": "harmful", "negative": "harmless"},
    {"refusal": "refusal", "compliance": "compliance", "neither": "neither"},
)
CONCEPT = Terms(
    "answers with the concept",
    "answers with the concept",
    {"positive": "positive", "negative": "negative"},
    {"refusal": "with the concept", "compliance": "without", "neither": "too short to tell"},
)
"""Of any concept that phrases of its own show."""


def terms_of(phrases: Sequence[str] | None, labels: Sequence[str] | None = None) -> Terms:
    """Those of refusal, unless the concept has phrases of its own.

    Args:
        phrases: Those that are counted; None for refusals.
        labels: What the contrast set calls its sides. Defaults to the terms' own names.

    Example:
        >>> terms_of(None).outcome, terms_of(["ahoy"]).outcome
        ('refusals', 'answers with the concept')
        >>> terms_of(["ahoy"], ("pirates", "others")).sides
        {'positive': 'pirates', 'negative': 'others'}
    """
    terms = REFUSAL if phrases is None or tuple(phrases) == REFUSAL_PHRASES else CONCEPT
    return terms if labels is None else replace(terms, sides=dict(zip(SIDES, labels, strict=True)))


@checked
@dataclass(frozen=True)
class Condition:
    """One set of completions to make."""

    name: str
    side: Side
    interventions: tuple[Intervention, ...]
    seed: int | None = None
    """Of a placebo; conditions of the same name and other seeds are the same placebo again."""

    def __post_init__(self) -> None:
        one_of("side", self.side, get_args(Side))

    @property
    def label(self) -> str:
        """Side, name and seed, for people.

        Example:
            >>> Condition("random removal", "positive", (), seed=3).label
            'positive, random removal 3'
        """
        return f"{self.side}, {self.name}" + (f" {self.seed}" if self.seed is not None else "")


@checked
def standard_conditions(
    selection: Selection | Direction,
    *,
    mode: Mode | None = None,
    alpha: float | None = None,
    seed: int = 0,
    n_placebos: int = PLACEBOS,
) -> list[Condition]:
    """Baseline and removal on the positive side, baseline and induction on the negative side, each with its placebos.

    Placebos are a random direction of the same norm, and, with a selection, the difference in means of its training
    prompts with shuffled labels (those that it was asked to make, see `select_cosmic`). Of random removal there is one:
    taking out a random direction changes hardly anything by construction. `calibrate_placebos` has others, as strong as the
    real edits.

    Args:
        selection: What was chosen, with its mode and strength; or a bare direction together with a mode.
        mode: "linear" or "affine"; with a direction only.
        alpha: Strength of the induction. Defaults to the selection's, or to 1 for a direction.
        seed: Of the first random direction; the others count up from it.
        n_placebos: Seeds of each placebo but random removal. Default 5.

    Raises:
        CosmicError: If a direction comes without a mode, a selection with another mode than its own, or there is no placebo.

    Example:
        >>> import torch
        >>> direction = Direction(torch.ones(4), torch.zeros(4), 1, -1)
        >>> [c.name for c in standard_conditions(direction, mode="affine", n_placebos=1)]
        ['baseline', 'removal', 'random removal', 'baseline', 'induction', 'random induction']
        >>> [c.seed for c in standard_conditions(direction, mode="affine") if c.name == "random induction"]
        [0, 1, 2, 3, 4]
    """
    check_count("n_placebos", n_placebos)
    direction, edits = direction_and_edits(selection, mode, alpha)
    random = {one: random_direction(direction, one) for one in range(seed, seed + n_placebos)}
    shuffled = selection.candidates.shuffled_directions(direction) if isinstance(selection, Selection) else {}
    shuffled = dict(list(shuffled.items())[:n_placebos])
    return [
        Condition("baseline", "positive", ()),
        Condition("removal", "positive", (edits.removal(direction),)),
        Condition("random removal", "positive", (edits.removal(random[seed]),), seed),
        *(Condition("shuffled removal", "positive", (edits.removal(d),), one) for one, d in shuffled.items()),
        Condition("baseline", "negative", ()),
        Condition("induction", "negative", (edits.induction(direction),)),
        *(Condition("random induction", "negative", (edits.induction(d),), one) for one, d in random.items()),
        *(Condition("shuffled induction", "negative", (edits.induction(d),), one) for one, d in shuffled.items()),
    ]
