"""Where to edit: a few places whose exchange does what the exchange of all of them does."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import pandas as pd
from torch import Tensor

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, Prompts, Side
from cosmic_tl.directions.direction import Direction, random_direction
from cosmic_tl.engine import Reading
from cosmic_tl.errors import CosmicError, check_count, one_of
from cosmic_tl.experiments.causal_measures import Measures
from cosmic_tl.experiments.causal_prompts import prompts_of
from cosmic_tl.experiments.causal_statistics import interval, resamples
from cosmic_tl.experiments.exchange import mean_of, written
from cosmic_tl.interventions.options import WrittenPart
from cosmic_tl.metrics.refusal_score import RefusalTokens
from cosmic_tl.model.chat import ChatFormat, tokenize
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.model.positions import post_instruction_positions
from cosmic_tl.patching import Change, Patch, patched

Place = tuple[int, int]
"""Layer and position."""
GOAL = 0.9
"""Share of the full exchange's effect at which the search ends."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SmallestEdit(Result):
    """Places in the order in which a greedy search took them."""

    table: pd.DataFrame
    """One row per number of places, and a last one for all of them: n, layer and position (of the place that was added; missing
    in the last row), effect (change of the refusal score towards the other class, on held-out prompts) with low and high (95 %
    interval over prompts), share (of the effect of all places; missing where that
    one's interval contains 0), kl (nats, from the clean model) and placebo (effect of the same
    displacements in a random direction)."""
    side: Side
    part: WrittenPart
    n_prompts: int
    """Held-out prompts, on which effects are measured."""

    @property
    def places(self) -> list[Place]:
        """The places that were taken, in order.

        Example:
            >>> rows = {"n": [1, 40], "layer": pd.array([3, None], "Int64"), "position": pd.array([-1, None], "Int64")}
            >>> SmallestEdit(pd.DataFrame(rows), "positive", "block", 8).places
            [(3, -1)]
        """
        taken = self.table.dropna(subset="layer")
        return [(int(row.layer), int(row.position)) for row in taken.itertuples()]

    def _lines(self) -> list[str]:
        all_of, last = self.table.iloc[-1], self.table.iloc[-2]
        share = "an unknown share" if isnan(last.share) else f"{last.share:.0%}"
        return [
            f"SmallestEdit: {len(self.places)} of {int(all_of.n)} places do {share} of what all do ({self.side} "
            f"prompts; KL {last.kl:.3g} in place of {all_of.kl:.3g} nats)"
        ]


@checked
def smallest_edit(
    model: TransformerBridge,
    prompts: Prompts,
    direction: Direction,
    tokens: RefusalTokens,
    *,
    side: Side = "positive",
    part: WrittenPart = "block",
    goal: float = GOAL,
    most: int = 8,
    n_train: int | None = None,
    n_val: int | None = None,
    n_positions: int | None = None,
    chat: ChatFormat | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> SmallestEdit:
    """A few layers and tokens at which to exchange what is written along a direction, for the effect of doing so everywhere.

    Greedy, so there may be a smaller set: in each round the place is added whose exchange, together with those taken so far,
    changes the refusal score most. The places are chosen, and the goal is judged, on training prompts; effects are measured on
    validation prompts.

    Args:
        model: A `TransformerBridge`.
        prompts: A contrast set, or a pair of lists, on which it is then also chosen.
        direction: Along which is exchanged, as in `causal_map`.
        tokens: Whose log-odds are the refusal score.
        side: Which prompts are moved: "positive" (default; the behaviour is released) or "negative" (restored).
        part: What is exchanged: what the whole "block" adds (default), what its "attention" or its "mlp" adds.
        goal: Share of the effect of all places at which the search ends. Default 0.9.
        most: Places at most. Default 8.
        n_train: Training prompts per side, of a contrast set. Default all.
        n_val: Validation prompts per side. Default all.
        n_positions: How many of the last positions. Default every post-instruction token.
        chat: Formatting. Defaults to the plain chat template.
        batch_size: Rows (prompts times patches) per pass. Default: by available memory.
        seed: Of the placebo and the resampling. Default 0.

    Raises:
        CosmicError: If a number is out of range, or the exchange of all places has no effect.

    Example:
        >>> from cosmic_tl import load_model, load_prompts
        >>> from cosmic_tl.metrics import refusal_tokens
        >>> from cosmic_tl.selection import select_cosmic, CosmicOptions
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> direction = select_cosmic(model, prompts, CosmicOptions(n_train=16, n_val=8, n_resamples=0)).direction
        >>> tokens = refusal_tokens(model, ["I'm sorry"])
        >>> found = smallest_edit(model, prompts, direction, tokens, n_train=8, n_val=4, n_positions=1, most=2)
        >>> len(found.places) <= 2
        True
    """
    one_of("side", side, SIDES)
    check_count("most", most)
    if part == "stream":
        raise CosmicError(
            "part: the stream at one place holds all that was written before; use block, attention or mlp"
        )
    if not 0 < goal <= 1:
        raise CosmicError(f"goal: found {goal}; give a share above 0, at most 1")
    direction.check(model)
    positions = post_instruction_positions(model, chat, n_positions)
    train, val = prompts_of(prompts, n_train, n_val)
    number = SIDES.index(side)
    rows = [[tokenize(model, some, chat) for some in split] for split in (train, val)]
    layers = range(int(model.cfg.n_layers))
    other = mean_of(written(model, rows[0][1 - number], part, layers, len(positions), batch_size))
    every = [(layer, position) for layer in layers for position in positions.indices]

    def patch(places: Sequence[Place], write: Tensor | None = None) -> Patch:
        unit = direction.unit
        changes = [Change(layer, part, other[layer][position][0], unit, write, position) for layer, position in places]
        return Patch(min(position for _, position in places), tuple(changes))

    ends = [split[number] for split in rows]
    measures = [Measures([number] * len(some), tokens, ()) for some in ends]

    def effects(split: int, patches: Sequence[Patch]) -> list[Tensor]:
        """Of each patch `[prompt, measure]`: change of the score, and KL."""
        some, reading = rows[split][number], Reading(logits=True)
        own = measures[split]
        found = dict(patched(model, some, patches, reading, own, on_clean=own.keep, batch_size=batch_size))
        return [found[i] for i in range(len(patches))]

    full = float(effects(0, [patch(every)])[0][:, 0].mean())
    if full <= 0:
        raise CosmicError(
            f"direction: exchanging it at all places changes the score by {full:.2g}, away from the other class; there is "
            "nothing to find places for"
        )
    taken: list[Place] = []
    with track(min(most, len(every)), "places") as advance:
        while len(taken) < min(most, len(every)):
            left = [place for place in every if place not in taken]
            gains = [float(one[:, 0].mean()) for one in effects(0, [patch([*taken, place]) for place in left])]
            best = int(np.argmax(gains))
            taken.append(left[best])
            advance(1)
            if gains[best] >= goal * full:
                break
    random = random_direction(direction, seed).unit
    sets = [taken[: n + 1] for n in range(len(taken))] + [every]
    own, placebo = (effects(1, [patch(some, write) for some in sets]) for write in (None, random))
    n = len(rows[1][number])
    weights = resamples(n, seed)
    whole = float(own[-1][:, 0].mean())
    around = interval(weights @ own[-1][:, 0].numpy())
    defined = not around[0] <= 0 <= around[1]
    rows_of = []
    for some, one, by_random in zip(sets, own, placebo, strict=True):
        low, high = interval(weights @ one[:, 0].numpy())
        added = some[-1] if some is not every else (pd.NA, pd.NA)
        effect = float(one[:, 0].mean())
        rows_of.append(
            {"n": len(some), "layer": added[0], "position": added[1], "effect": effect, "low": low, "high": high}
            | {
                "share": effect / whole if defined else nan,
                "kl": float(one[:, 1].mean()),
                "placebo": float(by_random[:, 0].mean()),
            }
        )
    frame = pd.DataFrame(rows_of).astype({"layer": "Int64", "position": "Int64"})
    return SmallestEdit(frame, side, part, n)
