"""Progress of everything long, in terminals and notebooks: which stage runs, and one bar for what it does. Silent when piped."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

LOADING = "loading the model"
"""The stage that commands begin with."""
ACTIVATIONS = "activations of the training prompts"
SCORES = "scores of the candidates"
_BAR = "{desc}: {bar} {n_fmt} of {total_fmt}, {elapsed} so far, about {remaining} left"
T = TypeVar("T")


@dataclass
class _Plan:
    """The stages that there are, and which of them runs."""

    names: tuple[str, ...]
    label: str = ""


_plan: ContextVar[_Plan | None] = ContextVar("plan", default=None)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process; that its package is imported does not say so.

    Example:
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def stages(*names: str) -> Iterator[None]:
    """Say which stages there will be, so that `stage` can number them.

    Inside of others that have all of them, these are a part of those: the stages of `run` on the command line, say, which
    loads a model first.

    Args:
        *names: What is done, in words and in order.

    Example:
        >>> with stages("activations", "scores"):
        ...     stage("scores")  # a terminal shows [2/2] scores
    """
    outer = _plan.get()
    token = None if outer is not None and set(names) <= set(outer.names) else _plan.set(_Plan(names))
    try:
        yield
    finally:
        if token is not None:
            _plan.reset(token)


def stage(name: str) -> None:
    """Say which stage runs from now on. Without `stages` around it that have it, nothing is said.

    Args:
        name: One of the names that `stages` was given.

    Example:
        >>> stage("scores")
    """
    if (plan := _plan.get()) is None or name not in plan.names:
        return
    label = f"[{plan.names.index(name) + 1}/{len(plan.names)}] {name}"
    if label != plan.label:
        remark(label)
    plan.label = label


def remark(text: str, always: bool = False) -> None:
    """Say something beside the progress, in a terminal.

    Args:
        text: What.
        always: Also where there is no terminal.

    Example:
        >>> remark("A worker died, and another is started.")
    """
    if sys.stderr.isatty():
        from tqdm.auto import tqdm  # here and below: it takes longer to import than a command line may

        tqdm.write(text, file=sys.stderr)
    elif always:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def track(total: int | None, label: str) -> Iterator[Callable[[int], object]]:
    """Show progress towards `total`, and an estimate of the time that is left.

    Args:
        total: How many units there are; None if that is not known.
        label: What is done, in words.

    Yields:
        A function that takes the number of units just done.

    Example:
        >>> with track(2, "batches") as advance:
        ...     _ = advance(2)
    """
    from tqdm.auto import tqdm

    notebook, plan = in_notebook(), _plan.get()
    if notebook and plan is not None and plan.label:  # a notebook has no lines of its own for stages
        label = f"{plan.label}, {label}"
    shown = sys.stderr.isatty() or notebook
    with tqdm(total=total, desc=label, disable=not shown, leave=False, bar_format=_BAR) as bar:
        yield bar.update


def each(items: Collection[T], label: str) -> Iterator[T]:
    """The items, with progress over them.

    Args:
        items: What is worked on, one after the other.
        label: What they are, in words.

    Example:
        >>> list(each(["a", "b"], "letters"))
        ['a', 'b']
    """
    with track(len(items), label) as advance:
        for item in items:
            yield item
            advance(1)
