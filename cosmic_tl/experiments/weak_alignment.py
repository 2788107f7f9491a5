"""Weakly aligned models: restore what a model hardly expresses, in two rounds (Siu et al. 2025, section 6).

Round one finds a direction as usual, with the first half of the layers left out of the ranking. Round two finds another
in the model that the first one steers: means, layer ranking and scores are all taken under that intervention. Then the
strength of the steering is swept, and refusal is counted on harmful prompts, and false refusal on harmless ones.

Two procedures:

===============  ==================================  ========================================
`edit`           between the rounds                  the sweep
===============  ==================================  ========================================
"affine"         ACE with α = 0 (the concept out)    ACE with α
"amplification"  amplification with α = 1            amplification with α
===============  ==================================  ========================================

The sweep is made with the first direction, with the second, and with the second on top of the edit between the rounds.

"affine" is what the paper's released program does, which sweeps the last of the three. ACE sets every prompt's component
along `r̂` to the same value, whatever it was: it cannot tell harmful prompts from harmless ones by that component, and
where the component is what tells them apart, it restores refusal of both or of neither. "amplification" is ours: it adds
`r` in proportion to how much of it is there, and so leaves harmless prompts alone. It is the default.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd
import torch

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import stage
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, ContrastSet, Side, Split
from cosmic_tl.directions.direction import Direction
from cosmic_tl.errors import check_alpha, check_alphas, check_count, one_of
from cosmic_tl.experiments.conditions import REFUSAL, Condition, Terms, terms_of
from cosmic_tl.experiments.effects import Effects, measure_effects
from cosmic_tl.generation.sampling import Sampling
from cosmic_tl.interventions.affine_map import AffineMap
from cosmic_tl.interventions.edits import AffineEdit, Intervention, Interventions, MapEdit, as_sequence
from cosmic_tl.interventions.steer import steering
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.hooks import Scope
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.cosmic import select_cosmic
from cosmic_tl.selection.options import CosmicOptions
from cosmic_tl.selection.result import Selection

Strengthening = Literal["amplification", "affine", "ace"]
"""What strengthens the concept; "ace" is accepted for "affine"."""
Which = Literal["none", "first", "second", "both"]
"""Which directions steer: none, the first round's, the second's, or the second's on top of the edit between the rounds."""
CHOSEN_ON: Split = "val"
REPORTED_ON: Split = "test"
"""α is chosen on the one and reported on the other."""


@checked
def amplification(direction: Direction, alpha: float, tokens: Scope = "all") -> MapEdit:
    """`x' = x + α ((x − nu)·r̂) r̂`: addition in proportion to how much of the concept is there.

    A typical positive prompt gets `α r`, a typical negative one nothing. α = 0 changes nothing, and α = −1 is ACE with
    its α = 0.

    Args:
        direction: With its reference `nu`.
        alpha: In units of `r`, for a typical positive prompt.
        tokens: Which tokens are edited. Default all.

    Raises:
        CosmicError: If alpha is not finite.

    Example:
        >>> direction = Direction(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 5.0]), layer=0, position=-1)
        >>> amplification(direction, alpha=1.0).map(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        tensor([[1., 7.],
                [5., 7.]])
    """
    check_alpha("alpha", alpha)
    unit = direction.unit
    offset = torch.tensor([-alpha * float(direction.known_reference().double() @ unit.double())], dtype=torch.float64)
    found = AffineMap(unit[None], -alpha * unit[None], offset, direction.fingerprint, direction.model)
    return MapEdit(found, direction.layer, tokens)


def _edit(edit: Strengthening, direction: Direction, alpha: float) -> Intervention:
    return amplification(direction, alpha) if edit == "amplification" else AffineEdit(direction, alpha)


def best_setting(table: pd.DataFrame) -> tuple[Which, float]:
    """Direction and α with the highest refusal rate on harmful minus that on harmless **validation** prompts.

    Of equal ones the earliest: no steering before steering, the first direction before the second, small α before large.

    Args:
        table: With split, set, direction, alpha and refusal_rate, as in `TwoRounds`.

    Example:
        >>> rates = {"set": ["positive", "negative"] * 2, "alpha": [1.0, 1.0, 2.0, 2.0], "rate": [0.9, 0.1, 1.0, 0.9]}
        >>> best_setting(pd.DataFrame({"split": "val", "direction": "first", **rates}))
        ('first', 1.0)
    """
    rates = _by_setting(table[table.split == CHOSEN_ON])
    which, alpha = (rates.positive - rates.negative).idxmax()
    return which, float(alpha)


def _by_setting(table: pd.DataFrame) -> pd.DataFrame:
    return table.pivot_table("rate", ["direction", "alpha"], "set", sort=False)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class TwoRounds(Result):
    """Two selections, and what steering by them does."""

    first: Selection
    second: Selection
    """Made while `between` steers the model."""
    edit: Strengthening
    between: tuple[Intervention, ...]
    """The intervention that is in place during round two."""
    table: pd.DataFrame
    """One row per split, set (positive, negative, and on test contrast positive, contrast negative), direction (none, first,
    second, both) and α: n, refusal_rate with its Wilson interval (low, high), cross_entropy under the unsteered model, garbled,
    and with the demo models well_formed and names_topic."""
    completions: pd.DataFrame
    """One row per completion: split, set, direction, alpha, prompt, completion, verdict."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How completions were generated, as in `Effects`."""
    terms: Terms = REFUSAL
    """What people are shown."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings and notes of both rounds, each beginning with its round."""
        rounds = {"first": self.first, "second": self.second}
        return tuple(f"{name}: {one}" for name, selection in rounds.items() for one in selection.remarks)

    @property
    def best(self) -> tuple[Which, float]:
        """Direction and α by `best_setting`."""
        return best_setting(self.table)

    def edits(self, which: Which | None = None, alpha: float | None = None) -> tuple[Intervention, ...]:
        """The interventions of one setting of the sweep; of the best one by default.

        Args:
            which: "none", "first", "second" or "both".
            alpha: Strength.

        Raises:
            CosmicError: If there is no such direction.
        """
        which, alpha = which or self.best[0], self.best[1] if alpha is None else alpha
        one_of("which", which, get_args(Which))
        if which == "none":
            return ()
        selection = self.first if which == "first" else self.second
        return (*(self.between if which == "both" else ()), _edit(self.edit, selection.direction, alpha))

    def rates(self, split: Split = "test") -> pd.DataFrame:
        """Refusal rates of a split, one row per direction and α, one column per set.

        Args:
            split: "test" (default) or "val".
        """
        return _by_setting(self.table[self.table.split == split])

    def _lines(self) -> list[str]:
        which, alpha = self.best
        rounds = [(s.direction.layer, s.direction.position) for s in (self.first, self.second)]
        cosine = float(self.first.direction.unit @ self.second.direction.unit)
        lines = [
            f"TwoRounds({self.edit}): first layer {rounds[0][0]}, position {rounds[0][1]}; second layer {rounds[1][0]}, "
            f"position {rounds[1][1]}; cosine {cosine:.2f}"
        ]
        for name, some in (("unsteered", ("none", 0.0)), (f"best: {which}, α = {alpha:g}", (which, alpha))):
            rows = self.table[
                (self.table.split == REPORTED_ON) & (self.table.direction == some[0]) & (self.table.alpha == some[1])
            ]
            found = [f"{r['set']} {r.rate:.1%} [{r.low:.1%}, {r.high:.1%}]" for _, r in rows.iterrows()]
            lines.append(f"  {name}: refused {', '.join(found)}")
        return [*lines, *(f"  {remark}" for remark in self.remarks)]

    def _shown(self) -> pd.DataFrame:
        return self.rates().reset_index()


@checked
def two_rounds(
    model: TransformerBridge,
    prompts: ContrastSet,
    options: CosmicOptions | None = None,
    *,
    chat: ChatFormat | None = None,
    alphas: Sequence[float] = (1.0, 2.0, 3.0),
    edit: Strengthening = "amplification",
    between: Callable[[Direction], Interventions] | None = None,
    n: int = 100,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> TwoRounds:
    """Find a direction, find another in the model that it steers, and sweep the strength of steering by each.

    Args:
        model: A model that hardly expresses the concept.
        prompts: The concept's contrast set. Where it has contrast pairs, they are reported apart.
        options: Settings of both selections. Default: the paper's for weakly aligned models (`exclude_first_half`).
        chat: Formatting. Defaults to the plain chat template.
        alphas: Strengths of the sweep. Default 1, 2, 3, in units of `r`.
        edit: "amplification" (default) or "affine"; the module's text has what each is.
        between: The intervention during round two, made of round one's direction. By default what `edit` says.
        n: Prompts of each set, at most. Default 100.
        max_new_tokens: Maximum number of new tokens. Default 64.
        batch_size: Rows per forward pass. Default: by memory.
        temperature: 0 (default) is greedy.
        seed: For sampling.
        sampling: Top-k, top-p and repetition penalty. Default none of them.

    Raises:
        NoCandidateError: If a selection's filters leave nothing.
        CosmicError: If there are no alphas, one is not finite, or as `select_cosmic`.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> options = CosmicOptions(n_train=16, n_val=4, n_positions=1, exclude_first_half=True, max_kl=10.0)
        >>> model, prompts = load_model("demo-weak", device="cpu"), load_prompts("demo")
        >>> found = two_rounds(model, prompts, options, alphas=[1.0], n=2, max_new_tokens=8)
        >>> found.rates().shape  # none and three directions at one α, four sets
        (4, 4)
        >>> found.edits("first", 2.0)[0].layer == found.first.direction.layer
        True
    """
    edit = "affine" if edit == "ace" else edit
    one_of("edit", edit, ("amplification", "affine"))
    check_alphas(alphas)
    check_count("n", n)
    check_count("max_new_tokens", max_new_tokens)
    (sampling or Sampling()).check(temperature)
    options = options or CosmicOptions(exclude_first_half=True)
    stage("first round")
    first = select_cosmic(model, prompts, options, chat=chat, batch_size=batch_size)
    make = between or (lambda direction: _edit(edit, direction, 1.0 if edit == "amplification" else 0.0))
    kept = as_sequence(make(first.direction))
    stage("second round")
    with steering(model, kept):
        second = select_cosmic(model, prompts, options, chat=chat, batch_size=batch_size)
    settings: list[tuple[str, float, tuple[Intervention, ...]]] = [("none", 0.0, ())]
    for which, selection, under in (("first", first, ()), ("second", second, ()), ("both", second, kept)):
        settings += [(which, alpha, (*under, _edit(edit, selection.direction, alpha))) for alpha in alphas]
    sides = [_sets(prompts, side, n) for side in (0, 1)]
    conditions = [Condition(f"{which}|{alpha!r}", side, edits) for side in SIDES for which, alpha, edits in settings]
    asked = [[prompt for _, _, some in side for prompt in some] for side in sides]
    stage("completions")
    effects = measure_effects(
        model,
        (asked[0], asked[1]),
        conditions=conditions,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        sampling=sampling,
    )
    completions = _labelled(effects.completions, dict(zip(SIDES, sides, strict=True)))
    rates = [
        Effects(some).table.assign(split=split, set=name)
        for (split, name), some in completions.groupby(["split", "set"], sort=False)
    ]
    return TwoRounds(
        first,
        second,
        edit,
        kept,
        _by_direction(pd.concat(rates, ignore_index=True)),
        _by_direction(completions),
        effects.generation,
        terms_of(None, prompts.labels),
    )


def _sets(prompts: ContrastSet, side: Literal[0, 1], n: int) -> list[tuple[Split, str, list[str]]]:
    """Split, prefix of the name, and prompts of every set of one side, positive (0) or negative."""
    which: tuple[Side, Side] = ("positive", "negative")
    found = [(split, "", prompts.side(which[side], split, n)) for split in (CHOSEN_ON, REPORTED_ON)]
    if pairs := prompts.contrast.get(REPORTED_ON, ())[:n]:
        found.append((REPORTED_ON, "contrast ", [pair[side] for pair in pairs]))
    return found


def _labelled(completions: pd.DataFrame, sets: Mapping[Side, list[tuple[Split, str, list[str]]]]) -> pd.DataFrame:
    """Completions, which stand in the order of the prompts under every condition, with their split and set."""
    labels = {
        side: [(split, prefix + side) for split, prefix, some in found for _ in some] for side, found in sets.items()
    }
    number = completions.groupby(["side", "condition"]).cumcount()
    found = [labels[side][i] for side, i in zip(completions.side, number, strict=True)]
    return completions.assign(split=[split for split, _ in found], set=[name for _, name in found])


def _by_direction(table: pd.DataFrame) -> pd.DataFrame:
    """A table with direction and α in place of the condition, what it is about first."""
    setting = table.condition.str.split("|", expand=True)
    about = table[["split", "set"]].assign(direction=setting[0], alpha=setting[1].astype(float))
    return pd.concat([about, table.drop(columns=["split", "set", "side", "condition"])], axis=1)
