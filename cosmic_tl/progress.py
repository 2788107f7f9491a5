"""One progress bar for everything long: in notebooks and terminals, silent when piped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def track(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """Show progress towards `total`.

    Yields:
        A function that takes the number of units just done.

    Example:
        >>> with track(2, "batches") as advance:
        ...     _ = advance(2)
    """
    shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(total=total, desc=label, disable=not shown, leave=False) as bar:
        yield bar.update
