"""What a procedure would have chosen on other validation prompts, from the passes that its choice was made of."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cosmic_tl.selection.options import Cell, CommonOptions
from cosmic_tl.selection.resampling import Resampled, Rules, Weights, draw_weights, winners
from cosmic_tl.selection.scores import ScoreKey, Scorer, parts, undefined
from cosmic_tl.selection.stability import Stability, stability_of

SEED = 0
"""Of the draws."""
Late = Mapping[str, Sequence[Cell]]
"""Measure to the late candidates whose scores only the position −1 rule looks at, in the order in which to compute them."""


class Resamples:
    """Measures of a scorer under other weights of the prompts; each is worked out once.

    Args:
        scorer: With its products.
        weights: Of the prompts.
        positions: Of the candidates, counted from the end.
        n_layers: Layers of the candidates.
    """

    def __init__(self, scorer: Scorer, weights: Weights, positions: Sequence[int], n_layers: int) -> None:
        self.scorer, self.positions = scorer, tuple(positions)
        self._weigh = scorer.weighing(weights)
        shape = len(weights.positive), len(positions), n_layers
        self._grids = {measure: np.full(shape, np.nan) for measure in scorer.measures}
        self._done: set[ScoreKey] = set()

    def found(self) -> Resampled:
        """All that the scorer knows by now and was asked for."""
        products = self.scorer.products or {}
        for key in [key for key in self.scorer.scores if key not in self._done and key in products]:
            layer, position, measure = key
            values = self._weigh(measure, products[key].double())
            self._grids[measure][:, self.positions.index(position), layer] = values.numpy()
            self._done.add(key)
        return Resampled(self._grids, self.scorer.score(self._grids), self.positions)


def redrawn_stability(
    scorer: Scorer,
    rules: Rules,
    table: pd.DataFrame,
    chosen: Cell,
    options: CommonOptions,
    prompts: tuple[Sequence[str], Sequence[str]],
    *,
    lazy: Sequence[str],
    late: Late | None = None,
) -> Stability:
    """Choose again on validation prompts that are drawn again, with all filters.

    Computes what only these choices depend on: lazy measures of other candidates that win, and the late layers' scores where
    the position −1 rule hangs on them.

    Args:
        scorer: With what the choice was made of, products included.
        rules: The filters.
        table: With `kept`.
        chosen: Layer and position of the choice.
        options: The selection's.
        prompts: The positive and the negative validation prompts.
        lazy: Measures that are computed only of candidates that win without them, in this order.
        late: What the position −1 rule may look at beside.
    """
    n_layers = int(table.layer.max()) + 1
    positions = tuple(sorted(table.position.unique().tolist()))
    weights = draw_weights(len(prompts[0]), len(prompts[1]), options.n_resamples, SEED)
    nowhere = np.array([[undefined(scorer.candidates, (layer, k)) for layer in range(n_layers)] for k in positions])
    before = set(scorer.scores)
    resamples = Resamples(scorer, weights, positions, n_layers)

    def unknown(measure: str, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if (*cell, measure) not in scorer.scores]

    while True:
        found = resamples.found()
        choices, free, admitted = winners(found, rules, nowhere)
        open_ = [measure for measure, cells in (late or {}).items() if unknown(measure, cells)]
        indices = set(choices.tolist()) | (set(free.tolist()) if open_ else set())
        likely = [(i % n_layers, positions[i // n_layers]) for i in sorted(indices - {-1})]
        if needed := next((measure for measure in lazy if unknown(measure, likely)), None):
            scorer.compute(needed, unknown(needed, likely))
        elif late and open_ and (choices != free).any():
            scorer.compute(open_[0], late[open_[0]])
        else:
            break
    more = [key[2] for key in set(scorer.scores) - before]
    passes = {measure: more.count(parts(measure)[0]) for measure in scorer.measures}
    return stability_of(
        found, weights, chosen, choices, prompts, admitted, SEED, rules.limits, scorer.candidates.names, passes
    )
