"""What a causal map found: effects by place, mediated shares, and the places and tokens that do most."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.results import Result
from cosmic_tl.data.contrast_set import SIDES, Side
from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.experiments.causal_statistics import COLUMNS, DIRECTION, PLACEBO
from cosmic_tl.experiments.conditions import REFUSAL, Terms
from cosmic_tl.experiments.options import CausalPart, Span, TokenSpan, Treatment
from cosmic_tl.model.positions import Positions

GOAL = 0.9
"""Share of the effect at all tokens that is enough."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class CausalMap(Result):
    """What exchanging one place's contribution does, for every layer and position."""

    table: pd.DataFrame
    """One row per side, measure, treatment and place, with the columns side ("positive" where the behaviour is released,
    "negative" where it is restored), measure ("score" for the change of the refusal score towards the other class, "cosine" for
    the change of the cosine to the other class's mean at the evaluation layers, "kl" for the divergence from the clean model in
    nats), treatment ("direction", "placebo" or "whole"), layer, position, head (where single ones were exchanged), effect (mean
    over prompts, and over placebos), and low and high (95 % interval over prompts)."""
    shares: pd.DataFrame
    """The *mediated share*, what the direction alone does over what the whole activation does. One row per side, measure and
    place: side, measure, layer, position, head (as above), share, low and high; missing where the whole effect's interval
    contains 0."""
    part: CausalPart
    treatment: Treatment
    span: Span
    positions: Positions
    n_prompts: tuple[int, int]
    """Positive and negative prompts."""
    terms: Terms = field(default=REFUSAL)
    """What people are shown."""
    token_span: TokenSpan = "at"

    @property
    def what(self) -> str:
        """What was exchanged, in words.

        Example:
            >>> table = pd.DataFrame({"measure": ["kl"]})
            >>> CausalMap(table, table, "mlp", "interchange", "at", Positions(("a",)), (1, 1)).what
            'what the mlp adds'
        """
        if self.part == "stream":
            return "the stream that enters a block"
        return "what each head adds" if self.part == "head" else f"what the {self.part} adds"

    @property
    def place(self) -> list[str]:
        """The columns that name a place.

        Example:
            >>> table = pd.DataFrame({"layer": [3], "position": [-1], "effect": [0.5]})
            >>> CausalMap(table, table, "mlp", "interchange", "at", Positions(("a",)), (1, 1)).place
            ['layer', 'position']
        """
        return [name for name in COLUMNS if name in self.table]

    @property
    def measures(self) -> list[str]:
        """The measures, the first one being that of the figure.

        Example:
            >>> table = pd.DataFrame({"measure": ["score", "score", "kl"]})
            >>> CausalMap(table, table, "block", "interchange", "at", Positions(("a",)), (1, 1)).measures
            ['score', 'kl']
        """
        return list(self.table.measure.unique())

    def strongest(self, side: str = "positive", measure: str | None = None, n: int = 5) -> pd.DataFrame:
        """The places with the largest effects of the direction, beside their placebo and their share.

        Args:
            side: "positive" (default) or "negative".
            measure: Default the first one.
            n: Number of rows. Default 5.

        Raises:
            CosmicError: If there is no such side or measure.

        Example:
            >>> place = {"side": "positive", "measure": "kl", "layer": 3, "position": -1}
            >>> rows = [{**place, "treatment": name, "effect": 0.5, "low": 0.0, "high": 1.0} for name in (DIRECTION, PLACEBO)]
            >>> shares = pd.DataFrame([{**place, "share": 0.7, "low": 0.6, "high": 0.8}])
            >>> found = CausalMap(pd.DataFrame(rows), shares, "block", "interchange", "at", Positions(("a",)), (1, 1))
            >>> found.strongest().columns.tolist()
            ['layer', 'position', 'effect', 'low', 'high', 'placebo', 'share']
        """
        one_of("side", side, SIDES)
        measure = self.measures[0] if measure is None else measure
        if measure not in self.measures:
            raise CosmicError(f"measure: found {measure!r}; it has {', '.join(self.measures)}")

        def of(table: pd.DataFrame) -> pd.DataFrame:
            return table[(table.side == side) & (table.measure == measure)].set_index(self.place)

        own, shares = of(self.table), of(self.shares)
        found = own[own.treatment == DIRECTION][["effect", "low", "high"]]
        found = found.assign(placebo=own[own.treatment == PLACEBO].effect, share=shares.share)
        return found.sort_values("effect", ascending=False).head(n).reset_index()

    def fewest_tokens(self, side: Side = "positive", goal: float = GOAL) -> int:
        """How many of the last tokens suffice: the fewest whose exchange does nearly what the exchange at all of them does.

        Args:
            side: "positive" (default) or "negative".
            goal: Share of the effect that is enough. Default 0.9.

        Raises:
            CosmicError: If the map was made one token at a time, or the exchange at all tokens has no effect.

        Example:
            >>> rows = {"side": "positive", "measure": "score", "treatment": "direction", "layer": 0}
            >>> table = pd.DataFrame({**rows, "position": [-3, -2, -1], "effect": [2.0, 1.9, 0.5]})
            >>> about = "block", "interchange", "from", Positions(tuple("abc")), (1, 1)
            >>> found = CausalMap(table, table, *about, token_span="from")
            >>> found.fewest_tokens()
            2
        """
        one_of("side", side, SIDES)
        if not 0 < goal <= 1:
            raise CosmicError(f"goal: found {goal}; give a share above 0, at most 1")
        if self.token_span != "from":
            raise CosmicError("token_span: the map exchanges one token at a time; make one with token_span='from'")
        own = self.table[(self.table.side == side) & (self.table.measure == self.measures[0])]
        effects = own[own.treatment == DIRECTION].groupby("position").effect.max()  # of the layers that do most
        every = float(effects.loc[min(effects.index)])
        if every <= 0:
            raise CosmicError(f"side: on {side} prompts the exchange at all tokens changes the measure by {every:.2g}")
        return -int(max(position for position, effect in effects.items() if effect >= goal * every))

    def scopes(self) -> list[str]:
        """Which token scope suffices on each side, in sentences; none of a map that was made one token at a time.

        Example:
            >>> rows = {"side": "positive", "measure": "score", "treatment": "direction", "layer": 0}
            >>> table = pd.DataFrame({**rows, "position": [-2, -1], "effect": [2.0, 1.9]})
            >>> about = "block", "interchange", "from", Positions(tuple("ab")), (1, 1)
            >>> CausalMap(table, table, *about, token_span="from").scopes()
            ['Harmful prompts: the last token alone does at least 90% of what all 2 do.']
        """
        if self.token_span != "from":
            return []
        found, n = [], len(self.positions)
        for side in SIDES:
            own = self.table[(self.table.side == side) & (self.table.treatment == DIRECTION)]
            if own.empty:
                continue
            name = self.terms.sides[side].capitalize()
            try:
                k = self.fewest_tokens(side)
            except CosmicError:  # nothing to have a share of
                found.append(f"{name} prompts: the exchange at all {n} tokens has no effect.")
                continue
            some = "the last token alone does" if k == 1 else f"the last {k} tokens do"
            found.append(f"{name} prompts: {some} at least {GOAL:.0%} of what all {n} do.")
        return found

    def summary(self) -> dict[str, Any]:
        """The three strongest places per side, by the first measure, as plain values.

        Example:
            >>> place = {"side": "positive", "measure": "kl", "layer": 3, "position": -1}
            >>> rows = [{**place, "treatment": name, "effect": 0.5, "low": 0.0, "high": 1.0} for name in (DIRECTION, PLACEBO)]
            >>> shares = pd.DataFrame([{**place, "share": float("nan"), "low": 0.0, "high": 0.0}])
            >>> found = CausalMap(pd.DataFrame(rows), shares, "block", "interchange", "at", Positions(("a",)), (1, 1))
            >>> found.summary()["positive"]
            [{'layer': 3, 'position': -1, 'effect': 0.5, 'low': 0.0, 'high': 1.0, 'placebo': 0.5, 'share': None}]
        """
        sides = {side: self.strongest(side, n=3).to_dict("records") for side in self.table.side.unique()}
        plain = {
            side: [{name: None if value != value else value for name, value in row.items()} for row in rows]
            for side, rows in sides.items()
        }
        return {"measure": self.measures[0], "n": list(self.n_prompts), **plain}

    def _lines(self) -> list[str]:
        n, m = self.n_prompts
        return [
            f"CausalMap({self.treatment} of {self.what}, {self.span.replace('-', ' ')} each layer, {n} + {m} prompts)",
            *(f"  {sentence}" for sentence in self.scopes()),
        ]

    def _shown(self) -> pd.DataFrame:
        return pd.concat(
            [self.strongest(side).assign(side=side) for side in self.table.side.unique()], ignore_index=True
        )
