"""The one error type for input that cannot be worked with, and the checks that every module needs."""

from collections.abc import Iterable


class CosmicError(ValueError):
    """Bad input, said in one line: the argument, what was found, and what to do.

    Example:
        >>> str(CosmicError("alpha: expected a finite number, found nan; pass a float"))
        'alpha: expected a finite number, found nan; pass a float'
    """

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback: the message says what to do.
        return [f"{type(self).__name__}: {self}"]


def one_of(name: str, found: object, choices: Iterable[str]) -> None:
    """Check that an argument is one of the names that it can have.

    Args:
        name: The argument.
        found: Its value.
        choices: What it can be, two names or more.

    Raises:
        CosmicError: If it is none of them.

    Example:
        >>> one_of("side", "harmful", ("positive", "negative"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: side: unknown 'harmful'; use positive or negative
    """
    *rest, last = choices
    if found not in (*rest, last):
        raise CosmicError(f"{name}: unknown {found!r}; use {', '.join(rest)} or {last}")
