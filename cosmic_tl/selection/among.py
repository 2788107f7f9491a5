"""The best of several generators' candidates: filters apply within each, and the highest score of all is chosen."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from typing import Generic, TypeVar

from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.directions.names import DIM
from cosmic_tl.errors import NoCandidateError
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import Products, ScoreKey, Scores

V = TypeVar("V")


class Named(MutableMapping[ScoreKey, V], Generic[V]):
    """The part of a log that belongs to one generator, whose name is in its keys.

    Example:
        >>> log = {(3, -1, "kl"): 0.5}
        >>> Named(log, "pca")[3, -1, "kl"] = 0.25
        >>> log, len(Named(log, "pca"))
        ({(3, -1, 'kl'): 0.5, (3, -1, 'pca/kl'): 0.25}, 1)
    """

    def __init__(self, log: MutableMapping[ScoreKey, V], generator: str) -> None:
        self.log, self.prefix = log, f"{generator}/"

    def _key(self, key: ScoreKey) -> ScoreKey:
        return key[0], key[1], self.prefix + key[2]

    def __getitem__(self, key: ScoreKey) -> V:
        return self.log[self._key(key)]

    def __setitem__(self, key: ScoreKey, value: V) -> None:
        self.log[self._key(key)] = value

    def __delitem__(self, key: ScoreKey) -> None:
        del self.log[self._key(key)]

    def __iter__(self) -> Iterator[ScoreKey]:
        for layer, position, measure in self.log:
            if measure.startswith(self.prefix):
                yield layer, position, measure.removeprefix(self.prefix)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def best_of(
    candidates: Mapping[str, Candidates],
    choose: Callable[[Candidates, Scores | None, Products | None], Selection],
    scores: Scores | None,
    products: Products | None,
) -> Selection:
    """Choose among each generator's candidates, and then the best of these.

    Args:
        candidates: By generator; "" for those that were given without a name.
        choose: Chooses among some candidates, with their part of the logs.
        scores: What is already known, of all generators.
        products: The same of what scores follow from.

    Raises:
        NoCandidateError: If the filters leave nothing of any generator; the message is the only or the first one's.
    """
    found: dict[str, Selection] = {}
    failures: dict[str, NoCandidateError] = {}
    for name, some in candidates.items():
        bare = name in ("", DIM)
        known = scores if bare or scores is None else Named(scores, name)
        kept = products if bare or products is None else Named(products, name)
        try:
            found[name] = replace(choose(some, known, kept), generator=name)
        except NoCandidateError as error:
            failures[name] = error
    if not found:
        first, *others = failures.items()
        more = "; so it is with " + ", ".join(name for name, _ in others) if others else ""
        raise NoCandidateError(f"{first[1]}{more}") from first[1]
    best = max(found, key=lambda name: float(found[name].winner.score))
    return replace(
        found[best],
        rivals={name: one for name, one in found.items() if name != best},
        failures={name: str(error) for name, error in failures.items()},
    )
