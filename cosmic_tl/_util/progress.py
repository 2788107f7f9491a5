"""One progress bar for everything long: in notebooks and terminals, silent when piped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process; that its package is imported does not say so.

    Example:
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def track(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """Show progress towards `total`.

    Yields:
        A function that takes the number of units just done.

    Example:
        >>> with track(2, "batches") as advance:
        ...     _ = advance(2)
    """
    with tqdm(total=total, desc=label, disable=not (sys.stderr.isatty() or in_notebook()), leave=False) as bar:
        yield bar.update
