"""The one error type for input that cannot be worked with."""


class CosmicError(ValueError):
    """Bad input, said in one line: the argument, what was found, and what to do.

    Example:
        >>> str(CosmicError("alpha: expected a finite number, found nan; pass a float"))
        'alpha: expected a finite number, found nan; pass a float'
    """
