"""What steering does to a behaviour given by answers: log-odds by layer and strength, with nothing generated."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cosmic_tl._util.border import checked
from cosmic_tl._util.progress import track
from cosmic_tl._util.results import Result
from cosmic_tl.data.behaviours import BehaviourSet
from cosmic_tl.directions.difference_in_means import difference_in_means
from cosmic_tl.directions.direction import random_direction
from cosmic_tl.errors import CosmicError, check_alphas
from cosmic_tl.experiments.sweep_methods import Method
from cosmic_tl.interventions.edits import AffineEdit, Interventions
from cosmic_tl.metrics.answers import answer_log_odds, answer_means
from cosmic_tl.metrics.rates import rate
from cosmic_tl.model.chat import ChatFormat
from cosmic_tl.model.load import TransformerBridge
from cosmic_tl.selection.scores import undefined


@checked
@dataclass(frozen=True, eq=False, repr=False)
class BehaviourSweep(Result):
    """Log-odds of the matching answer under every direction, layer and strength."""

    table: pd.DataFrame
    """One row per edit: direction ("none", "found" or "random": of the same norm and place), layer, alpha, log_odds (nats, mean
    over questions), sem (its standard error), matching (share of questions whose matching answer is the likelier), low and high
    (Wilson's interval at 95 %), answered (mean probability of either answer), n (questions)."""
    behaviour: str
    """Its name."""

    def _lines(self) -> list[str]:
        return [f"BehaviourSweep: {self.behaviour}, questions: {', '.join(map(str, self.table.n.unique()))}"]


@checked
def sweep_behaviour(
    model: TransformerBridge,
    behaviour: BehaviourSet,
    *,
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    layers: Sequence[int] | None = None,
    method: Method = AffineEdit,
    n: int | None = None,
    chat: ChatFormat | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> BehaviourSweep:
    """Log-odds of the matching answer on test questions, under the directions that training answers give.

    Args:
        model: A `TransformerBridge` with a tokenizer.
        behaviour: From `load_behaviour`.
        alphas: Strengths. Default 0, 0.5 and 1: of ACE, from the other answer's mean to the matching one's.
        layers: Where directions are taken and act. Default all that have one.
        method: Default ACE; `Addition` for multiples of the difference.
        n: Test pairs, at most. Default all.
        chat: Formatting. Defaults to the plain chat template.
        seed: Of the random directions.
        batch_size: Rows per forward pass. Default: by memory, at most 32.

    Raises:
        CosmicError: If a split is empty, there is no strength, a layer is outside the model or has no direction, or as
            `answer_log_odds`.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.data import AnswerPair
        >>> pairs = (AnswerPair("Is it okay to rest?", "Yes", "No"), AnswerPair("Is it wrong to rest?", "Yes", "No"))
        >>> behaviour = BehaviourSet("yes", {"train": pairs, "test": pairs})
        >>> found = sweep_behaviour(load_model("demo", device="cpu"), behaviour, alphas=[0.0, 1.0], layers=[4])
        >>> found.table.direction.tolist()
        ['none', 'found', 'found', 'random', 'random']
    """
    check_alphas(alphas)
    questions = behaviour.split("test", n)
    candidates = difference_in_means(*answer_means(model, behaviour.split("train"), chat=chat, batch_size=batch_size))
    n_layers = len(candidates.vectors)
    places = [layer for layer in range(n_layers) if not undefined(candidates, (layer, -1))]
    for layer in layers or ():
        if layer not in places:
            raise CosmicError(
                f"layers: found {layer}, and the answers give directions at {', '.join(map(str, places)) or 'none'}"
            )
    rows = []

    def measure(name: str, layer: int | None, alpha: float, edit: Interventions) -> None:
        found = answer_log_odds(model, questions, edit, chat=chat, batch_size=batch_size)
        share = rate(int((found.log_odds > 0).sum()), len(found))
        row = {"direction": name, "layer": layer, "alpha": alpha, "log_odds": found.log_odds.mean()}
        row |= {"sem": found.log_odds.sem(), "matching": share.value, "low": share.low, "high": share.high}
        rows.append(row | {"answered": found.answered.mean(), "n": share.n})

    wanted = places if layers is None else list(layers)
    with track(len(wanted) * len(alphas) * 2 + 1, "layers and strengths") as advance:
        measure("none", None, 0.0, ())
        advance(1)
        for layer in wanted:
            direction = candidates.direction(layer, -1, model)
            for name, one in (("found", direction), ("random", random_direction(direction, seed))):
                for alpha in alphas:
                    measure(name, layer, alpha, method(one, alpha))
                    advance(1)
    return BehaviourSweep(pd.DataFrame(rows).astype({"layer": "Int64"}), behaviour.name)
