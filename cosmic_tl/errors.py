"""The one error type for input that cannot be worked with."""


class CosmicError(ValueError):
    """Bad input, said in one line: the argument, what was found, and what to do.

    Example:
        >>> str(CosmicError("alpha: expected a finite number, found nan; pass a float"))
        'alpha: expected a finite number, found nan; pass a float'
    """

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback: the message says what to do.
        return [f"{type(self).__name__}: {self}"]
