"""What went wrong on the command line, in one line: the option, what was found and what to do."""

from difflib import get_close_matches
from typing import Literal, get_args, get_origin

from cyclopts import (
    Argument,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from cosmic_tl.errors import CosmicError

_KINDS = {float: "a number", bool: "yes or no"}


def in_one_line(error: CycloptsError) -> str:
    """The message for an error of parsing.

    Example:
        >>> from cosmic_tl.cli import app
        >>> try:
        ...     app.parse_args(["run", "--max-kl", "x"], print_error=False, exit_on_error=False)
        ... except CycloptsError as error:
        ...     print(in_one_line(error))
        max_kl: expected a number, found 'x'; see cosmic-tl run --help
    """
    if isinstance(error.__cause__, CosmicError):
        return str(error.__cause__)
    command = " ".join(["cosmic-tl", *(error.command_chain or ())])
    see = f"see {command} --help"
    match error:
        case UnknownOptionError():
            flag = (error.token.keyword or error.token.value).partition("=")[0]
            close = get_close_matches(flag, [name for one in error.argument_collection for name in one.names], 1, 0.7)
            return f"{flag}: {command} has no such option; " + (f"use {close[0]}, or {see}" if close else see)
        case UnknownCommandError():
            (name, *_), known = error.unused_tokens or [""], [*error.app] if error.app else []
            close = get_close_matches(name, known, 1)
            return f"{name}: no such command; " + (f"use {close[0]}, or {see}" if close else see)
        case CoercionError(argument=Argument() as argument):
            found = error.token.value if error.token is not None else ""
            return f"{_name(argument)}: {_expected(error.target_type, found)}; {see}"
        case MissingArgumentError(argument=Argument() as argument):
            return f"{_name(argument)}: needs a value; {see}"
        case RepeatArgumentError():
            return f"{error.token.keyword}: given more than once; give it once"
        case UnusedCliTokensError():
            return f"{' '.join(error.unused_tokens or ())}: not expected here; quote texts with spaces, or {see}"
    error.verbose = False
    return f"{' '.join(str(error).split()).rstrip('.')}; {see}"


def _name(argument: Argument) -> str:
    return argument.name.lstrip("-").replace("-", "_").lower()


def _expected(kind: object, found: str) -> str:
    if get_origin(kind) is Literal:
        *rest, last = map(str, get_args(kind))
        return f"unknown {found!r}; use {', '.join(rest)} or {last}"
    named = next((text for one, text in _KINDS.items() if kind is one or one in get_args(kind)), "another value")
    return f"expected {named}, found {found!r}"
