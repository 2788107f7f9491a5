"""The one error type for input that cannot be worked with, and the checks that every module needs."""

from collections.abc import Iterable, Sequence
from math import isfinite


class CosmicError(ValueError):
    """Bad input, said in one line: the argument, what was found, and what to do.

    Example:
        >>> str(CosmicError("alpha: expected a finite number, found nan; pass a float"))
        'alpha: expected a finite number, found nan; pass a float'
    """

    def __init__(self, message: str = "") -> None:
        # What was found may hold line breaks, and comes from anywhere.
        super().__init__("\\n".join(message.splitlines()))

    def _render_traceback_(self) -> list[str]:
        # IPython shows this in place of a traceback: the message says what to do.
        return [f"{type(self).__name__}: {self}"]


class NoCandidateError(CosmicError):
    """No direction can be chosen: every candidate was filtered out, or no prompt or first token tells the classes apart.

    Example:
        >>> issubclass(NoCandidateError, CosmicError)
        True
    """


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


def check_texts(name: str, found: object) -> None:
    """Check that an argument is a list of texts, and no single text, which would be taken for a list of characters.

    Args:
        name: The argument.
        found: Its value.

    Raises:
        CosmicError: If it is anything else.

    Example:
        >>> check_texts("prompts", "Bake a pie.")
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: prompts: must be a list of texts, found the text 'Bake a pie.'; pass ['Bake a pie.']
    """
    if isinstance(found, str):
        text = found if len(found) <= 40 else f"{found[:40]}…"
        raise CosmicError(f"{name}: must be a list of texts, found the text {text!r}; pass {[text]!r}")
    if not isinstance(found, Sequence):
        raise CosmicError(f"{name}: must be a list of texts, found {type(found).__name__}; pass a list")
    if odd := [(i, item) for i, item in enumerate(found) if not isinstance(item, str)]:
        raise CosmicError(
            f"{name}: must be a list of texts, found {type(odd[0][1]).__name__} at {odd[0][0]}; pass texts"
        )


def check_completions(prompts: object, completions: object) -> None:
    """Check that there is one completion per prompt, in two lists of texts.

    Args:
        prompts: The prompts.
        completions: The completions.

    Raises:
        CosmicError: If they are anything else, or differ in length.

    Example:
        >>> check_completions(["a"], [])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: completions: found 0 for 1 prompts; give one per prompt
    """
    check_texts("prompts", prompts)
    check_texts("completions", completions)
    assert isinstance(prompts, Sequence)
    assert isinstance(completions, Sequence)
    if len(prompts) != len(completions):
        raise CosmicError(f"completions: found {len(completions)} for {len(prompts)} prompts; give one per prompt")


def check_phrases(found: object) -> None:
    """Check that phrases to look for are a list of texts, none of them empty: every completion contains an empty one.

    Args:
        found: The phrases.

    Raises:
        CosmicError: If they are anything else.

    Example:
        >>> check_phrases(("ahoy", ""))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: phrases: found ['ahoy', '']; give at least one, none of them empty
    """
    check_texts("phrases", found)
    assert isinstance(found, Sequence)
    if not found or not all(phrase.strip() for phrase in found):
        raise CosmicError(f"phrases: found {list(found)!r}; give at least one, none of them empty")


def check_whole_number(name: str, found: object) -> None:
    """Check that an argument is an `int`; True and False are none.

    Args:
        name: The argument.
        found: Its value.

    Raises:
        CosmicError: If it is anything else.

    Example:
        >>> check_whole_number("layer", 1.5)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: layer: expected a whole number, found 1.5; pass an int
    """
    if not isinstance(found, int) or isinstance(found, bool):
        raise CosmicError(f"{name}: expected a whole number, found {found!r}; pass an int")


LARGEST_SEED = 2**32 - 1
"""That numpy, too, can start from."""


def check_seed(seed: int) -> None:
    """Check that torch and numpy can start from a seed.

    Raises:
        CosmicError: If it is negative or too large.

    Example:
        >>> check_seed(-1)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: seed: must be from 0 to 4294967295, found -1
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise CosmicError(f"seed: must be from 0 to {LARGEST_SEED}, found {seed}")


def check_count(name: str, found: object) -> None:
    """Check that an argument is a whole number of at least 1, or None, which stands for a default.

    Args:
        name: The argument.
        found: Its value.

    Raises:
        CosmicError: If it is anything else.

    Example:
        >>> check_count("n_test", 0)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: n_test: must be at least 1, found 0
    """
    if found is None:
        return
    check_whole_number(name, found)
    assert isinstance(found, int)
    if found < 1:
        raise CosmicError(f"{name}: must be at least 1, found {found}")


def check_path(name: str, found: str) -> None:
    """Check that a text can be a path at all.

    Args:
        name: The argument.
        found: The text.

    Raises:
        CosmicError: If it is blank or holds a NUL, or a name that is too long for any file.

    Example:
        >>> check_path("out", "a" * 300)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: out: 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…' cannot be a path; give a short one, ...
    """
    if not found.strip() or "\0" in found or any(len(part.encode(errors="replace")) > 255 for part in found.split("/")):
        text = found if len(found) <= 40 else f"{found[:40]}…"
        raise CosmicError(f"{name}: {text!r} cannot be a path; give a short one, of printable characters")


LARGEST_ALPHA = 1e4
"""Beyond this many times a direction, numbers overflow long before anything is learnt."""


def check_alpha(name: str, found: int | float) -> None:
    """Check that a strength is a finite number, and not absurdly large.

    Args:
        name: The argument.
        found: Its value.

    Raises:
        CosmicError: If it is anything else.

    Example:
        >>> check_alpha("alpha", 1e38)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: alpha: expected a number from -10000 to 10000, found 1e+38; pass a smaller one
    """
    if not isfinite(found):
        raise CosmicError(f"{name}: expected a finite number, found {found}; pass a float")
    if abs(found) > LARGEST_ALPHA:
        raise CosmicError(
            f"{name}: expected a number from {-LARGEST_ALPHA:.0f} to {LARGEST_ALPHA:.0f}, found {found:g}; pass a smaller one"
        )


def check_alphas(found: Sequence[float]) -> None:
    """Check strengths of a sweep: at least one, each a sensible number, none twice.

    Raises:
        CosmicError: If they are anything else.

    Example:
        >>> check_alphas([0.5, 0.5])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: alphas: 0.5 is there more than once; give each α once
    """
    if not found:
        raise CosmicError("alphas: found none; give at least one number")
    for alpha in found:
        check_alpha("alphas", alpha)
    if repeated := [alpha for i, alpha in enumerate(found) if alpha in found[:i]]:
        raise CosmicError(f"alphas: {repeated[0]:g} is there more than once; give each α once")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line.

    Example:
        >>> first_line(OSError("no such model\\nsee https://example.com"))
        'no such model'
        >>> first_line(OSError("bad field:\\n  it is 3"))
        'bad field: it is 3'
        >>> first_line(OSError())
        'OSError'
    """
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
