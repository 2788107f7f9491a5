"""Work on one model that may be spread over several copies of it; without any, it is done where it stands."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

PIECES_PER_WORKER = 4
"""Several, so that no worker waits long for the slowest."""


@dataclass(frozen=True)
class Piece:
    """A part of some work that one worker does at once."""

    name: str
    """For people."""
    args: tuple[Any, ...]
    """What the function takes after the model and what all pieces share."""
    key: Any = None
    """What tells its result from any other's, as JSON holds it; the result, a dictionary of tensors, can then be kept. None if
    whoever asks for the piece keeps its result anyway."""


@runtime_checkable
class Spread(Protocol):
    """Copies of a model that share work."""

    @property
    def count(self) -> int:
        """Number of copies."""

    @property
    def model(self) -> tuple[str, ...]:
        """What tells the model that they are of from others."""

    def map(
        self, stage: str, function: Callable[..., Any], shared: tuple[Any, ...], pieces: Sequence[Piece]
    ) -> Iterator[tuple[int, Any]]:
        """`function(model, *shared, *piece.args)` for all pieces, in the order in which they are done.

        A worker gets its next piece when the iterator goes on, and not before.

        Args:
            stage: What is done, in a word.
            function: One of a module, since it runs in other processes.
            shared: What all pieces take.
            pieces: The pieces.

        Yields:
            A piece's number and its result.
        """


_spread: ContextVar[Spread | None] = ContextVar("spread", default=None)


@contextmanager
def _during(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def spread_over(copies: Spread | None) -> AbstractContextManager[None]:
    """Let copies of the model share the work that can be spread.

    Args:
        copies: They; None for this process alone.

    Example:
        >>> with spread_over(None):
        ...     current_spread()
    """
    return _during(_spread, copies)


def current_spread() -> Spread | None:
    """The copies that share the work now; None for this process alone.

    Example:
        >>> current_spread()
    """
    return _spread.get()


_kept: ContextVar[dict[Any, Any] | None] = ContextVar("kept", default=None)


def keeping(kept: dict[Any, Any]) -> AbstractContextManager[None]:
    """Let a piece find what the last one left, and leave something for the next, on one copy whose weights do not change.

    Args:
        kept: What was left, by all that it depends on.

    Example:
        >>> with keeping({}):
        ...     kept_by_pieces()
        {}
    """
    return _during(_kept, kept)


def kept_by_pieces() -> dict[Any, Any] | None:
    """What pieces on this copy have left to each other; None outside of pieces.

    Example:
        >>> kept_by_pieces()
    """
    return _kept.get()


def contiguous(costs: Sequence[float], n: int) -> list[range]:
    """Cut a sequence into at most `n` runs of neighbours that cost about the same.

    Args:
        costs: Of its items.
        n: Number of runs.

    Example:
        >>> contiguous([4, 2, 1, 1], 2)
        [range(0, 1), range(1, 4)]
    """
    runs: list[range] = []
    total, start = sum(costs), 0
    for end, reached in enumerate(accumulate(costs), 1):
        # An item belongs to the run in which its middle lies.
        if end == len(costs) or (len(runs) < n - 1 and (reached + costs[end] / 2) * n >= (len(runs) + 1) * total):
            runs.append(range(start, end))
            start = end
    return runs
