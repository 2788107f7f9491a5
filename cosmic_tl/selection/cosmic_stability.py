"""What COSMIC would have chosen on other validation prompts, from the passes that its choice was made of."""

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import pandas as pd

from cosmic_tl.selection.cosmic_scores import CosmicScorer
from cosmic_tl.selection.options import Cell, CosmicOptions
from cosmic_tl.selection.plan import COSMIC_MEASURES, Plan
from cosmic_tl.selection.resampling import (
    Resampled,
    Rules,
    Weights,
    draw_weights,
    weighted_lengths,
    weighted_scores,
    winners,
)
from cosmic_tl.selection.scores import KL, ScoreKey, parts, undefined
from cosmic_tl.selection.stability import Stability, stability_of

SEED = 0
"""Of the draws."""


class Resamples:
    """Scores of a scorer under other weights of the prompts; each is worked out once.

    Args:
        scorer: With its products.
        weights: Of the prompts.
        positions: Of the candidates, counted from the end.
        n_layers: Layers of the candidates.
    """

    def __init__(self, scorer: CosmicScorer, weights: Weights, positions: Sequence[int], n_layers: int) -> None:
        self.scorer, self.weights, self.positions = scorer, weights, tuple(positions)
        removed, induced, _ = scorer.measures
        positive, negative = scorer.clean_positive, scorer.clean_negative
        self._sides = {
            removed: (weights.positive, weights.negative, weighted_lengths(negative @ negative.T, weights.negative)),
            induced: (weights.negative, weights.positive, weighted_lengths(positive @ positive.T, weights.positive)),
        }
        shape = len(weights.positive), len(positions), n_layers
        self._grids = {measure: np.full(shape, nan) for measure in scorer.measures}
        self._done: set[ScoreKey] = set()

    def found(self) -> Resampled:
        """All that the scorer knows by now and was asked for."""
        products = self.scorer.products or {}
        for key in [key for key in self.scorer.scores if key not in self._done and key in products]:
            layer, position, measure = key
            product = products[key].double()
            if measure in self._sides:
                values = weighted_scores(product, *self._sides[measure], self.scorer.target)
            else:
                values = (self.weights.negative @ product).nan_to_num(nan=inf)  # which no filter lets pass
            self._grids[measure][:, self.positions.index(position), layer] = values.numpy()
            self._done.add(key)
        comply, refuse, kl = (self._grids[measure] for measure in self.scorer.measures)
        return Resampled(comply, refuse, kl, self.positions)


def cosmic_stability(
    scorer: CosmicScorer,
    plan: Plan,
    table: pd.DataFrame,
    chosen: Cell,
    options: CosmicOptions,
    prompts: tuple[Sequence[str], Sequence[str]],
) -> Stability:
    """Choose again on validation prompts that are drawn again, with all filters.

    Computes what only these choices depend on: divergences of other candidates that win, and the late layers' scores where the
    position −1 rule hangs on them.

    Args:
        scorer: With what the choice was made of, products included.
        plan: The selection's.
        table: With `kept`.
        chosen: Layer and position of the choice.
        options: The selection's.
        prompts: The positive and the negative validation prompts.
    """
    n_layers = int(table.layer.max()) + 1
    positions = tuple(sorted(table.position.unique().tolist()))
    weights = draw_weights(len(prompts[0]), len(prompts[1]), options.n_resamples, SEED)
    rules = Rules(options.max_layer_share, options.max_kl, options.last_position_rule)
    nowhere = np.array([[undefined(scorer.candidates, (layer, k)) for layer in range(n_layers)] for k in positions])
    before = set(scorer.scores)
    resamples = Resamples(scorer, weights, positions, n_layers)
    while True:
        found = resamples.found()
        choices, free, admitted = winners(found, rules, nowhere)
        # Induction first, which is cheap: one median at a candidate's layer or above is enough to keep it.
        late = [m for m in ("s_refuse", "s_comply") if any((*c, m) not in scorer.scores for c in plan.of(m, "lazy"))]
        indices = set(choices.tolist()) | (set(free.tolist()) if late else set())
        likely = [(i % n_layers, positions[i // n_layers]) for i in sorted(indices - {-1})]
        if unknown := [cell for cell in likely if (*cell, KL) not in scorer.scores]:
            scorer.compute(KL, unknown)
        elif late and (choices != free).any():
            scorer.compute(late[0], plan.of(late[0], "lazy"))
        else:
            break
    more = [key[2] for key in set(scorer.scores) - before]
    passes = {measure: more.count(parts(measure)[0]) for measure in COSMIC_MEASURES}
    return stability_of(
        found, weights, chosen, choices, prompts, admitted, SEED, options.max_kl, scorer.candidates.names, passes
    )
