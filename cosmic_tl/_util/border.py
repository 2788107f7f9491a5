"""The border of the library: what public functions are given is checked where it comes in, once, against their types."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from cosmic_tl.errors import CosmicError, check_path, check_seed, check_texts, one_of

T = TypeVar("T", bound=Callable[..., Any])
_NOUNS = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    NoneType: ("None", "None"),
}
_FIXES = {
    "TransformerBridge": "load_model(…)",
    "ContrastSet": "load_prompts(…)",
    "BehaviourSet": "load_behaviour(…)",
    "Direction": "a selection's .direction",
    "Selection": "what select_cosmic(…) returned",
    "Candidates": "difference_in_means(…) or a selection's .candidates",
    "Edit": "an edit, such as Ablation(direction)",
    "Effects": "what measure_effects(…) returned",
    "ChatFormat": "ChatFormat(…)",
    "CosmicOptions": "CosmicOptions(…)",
    "RunSettings": "RunSettings(…)",
}
"""What to pass where an object of this class is due."""


def checked(public: T) -> T:
    """Check the arguments of a public function, or those of a class's constructor and public methods.

    Goes outermost, above every other decorator. A numpy number is passed on as a Python number, so that it can be written
    to JSON. Whether a value of the right type makes sense is for the function itself to say, but for paths and seeds.

    Raises:
        CosmicError: From what is decorated, in place of the `TypeError` or `AttributeError` that comes later.

    Example:
        >>> @checked
        ... def complete(prompts: Sequence[str], n: int = 8) -> None: ...
        >>> complete(["hi"], 1.5)
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: n: expected a whole number, found 1.5; see help(complete)
    """
    if not isinstance(public, type):
        return _checked(public)  # type: ignore[return-value]
    for name, member in list(vars(public).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, classmethod | staticmethod):
            setattr(public, name, type(member)(_checked(member.__func__)))
        elif inspect.isfunction(member):
            setattr(public, name, _checked(member))
    return public


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = cache(lambda: inspect.signature(function))
    hints = cache(lambda: dict(_hints(function)))

    @wraps(function)
    def at_the_border(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature().bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own message names the argument
        changed = False
        for name, value in bound.arguments.items():
            if (hint := hints().get(name, Any)) is Any:
                continue
            if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
                bound.arguments[name] = value = value.item()
                changed = True
            if not _fits(value, hint):
                _refuse(name, value, hint, function)
            if isinstance(value, str | Path) and Path in _members(hint):
                check_path(name, str(value))
            if name == "seed" and isinstance(value, int):
                check_seed(value)
        return function(*bound.args, **bound.kwargs) if changed else function(*args, **kwargs)

    return at_the_border


def _hints(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The types of a function's arguments, but for those that only a type checker can resolve, and *args and **kwargs."""
    scope = vars(sys.modules[function.__module__])
    for parameter in inspect.signature(function).parameters.values():
        hint = parameter.annotation
        if hint is parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if isinstance(hint, str):
            try:
                hint = eval(hint, scope)
            except NameError:
                continue
        yield parameter.name, hint


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type. Every item of a list counts, where beartype would look at one of them."""
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if isinstance(hint, type) and get_origin(hint) is None and type(hint) is type:
        return isinstance(value, hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if (isinstance(value, str) and get_origin(hint) is Sequence) or not _is_bearable(value, hint):
        return False  # a text is no list of letters
    items = get_args(hint)
    if isinstance(value, list | tuple) and get_origin(hint) is tuple and items[1:] != (...,):
        return all(map(_fits, value, items))
    if isinstance(value, list | tuple) and items:
        return all(_fits(item, items[0]) for item in value)
    if isinstance(value, dict) and len(items) == 2:
        return all(_fits(key, items[0]) and _fits(item, items[1]) for key, item in value.items())
    return True


def _is_bearable(value: Any, hint: Any) -> bool:
    from beartype import BeartypeConf  # a third of a second, which the command line does not need before it loads torch
    from beartype.door import is_bearable

    return bool(is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True)))


def _refuse(name: str, value: Any, hint: Any, function: Callable[..., Any]) -> None:
    """Say what was expected, what was found and what to do."""
    members = _members(hint)
    if isinstance(value, dict):
        for key_hint, item_hint in _mappings(members):
            for key, item in value.items():
                if _fits(key, key_hint) and not _fits(item, item_hint):
                    _refuse(f"{name} {key}", item, item_hint, function)
    if any(get_origin(one) is not None and get_args(one) in ((str,), (str, ...)) for one in members) and (
        isinstance(value, str | list | tuple)
    ):
        check_texts(name, value)
    choices = [choice for one in members if get_origin(one) is Literal for choice in get_args(one)]
    if choices and isinstance(value, str) and len(choices) > 1:
        one_of(name, value, choices)
    fixes = [f"pass {_FIXES[one.__name__]}" for one in members if getattr(one, "__name__", "") in _FIXES]
    todo = fixes[0] if fixes else f"see help({function.__qualname__.removesuffix('.__init__')})"
    expected = " or ".join(dict.fromkeys(_noun(one) for one in members))
    raise CosmicError(f"{name}: expected {expected}, found {_found(value, members)}; {todo}")


def _members(hint: Any) -> list[Any]:
    """The types of a union, however nested."""
    if get_origin(hint) in (Union, UnionType):
        return [member for one in get_args(hint) for member in _members(one)]
    return [hint]


def _mappings(members: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The types of keys and values of those that are mappings; a tuple's are none, though it may have two."""
    return [get_args(one) for one in members if isinstance(of := get_origin(one), type) and issubclass(of, Mapping)]


def _noun(hint: Any, several: bool = False) -> str:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if origin in _NOUNS:
        return _NOUNS[origin][several]
    if hasattr(hint, "dim_str"):
        of = f"{hint.dtypes[0]} " if len(hint.dtypes) == 1 else ""
        kind = f"{of}tensors" if several else f"{_article(of or 'tensor')} {of}tensor"
        return f"{kind} [{hint.dim_str}]" if hint.dim_str else kind
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_noun(one, several) for one in get_args(hint)))
    name = getattr(origin, "__name__", str(origin))
    if name == "Callable":
        return "functions" if several else "a function"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mappings" if several else "a mapping"
    if isinstance(origin, type) and issubclass(origin, Collection) and (items := get_args(hint)):
        if items[0] is Any:
            return "lists" if several else "a list"
        pair = origin is tuple and items[1:] != (...,)
        inside = f"{len(items)} entries" if pair and len(set(items)) > 1 else _noun(items[0], True)
        return (
            f"{'lists' if several else 'a list'} of {f'{len(items)} ' if pair and len(set(items)) == 1 else ''}{inside}"
        )
    return f"{name} objects" if several else f"{_article(name)} {name}"


def _found(value: Any, members: Sequence[Any]) -> str:
    """A value, in a few words; of a list or mapping, its first entry that does not fit, if that is what is wrong."""
    if isinstance(value, str):
        return f"the text {(value if len(value) <= 40 else f'{value[:40]}…')!r}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, list | tuple):
        for item in (args[0] for one in members if get_origin(one) and (args := get_args(one))):
            misfits = [(i, one) for i, one in enumerate(value) if not _fits(one, item)]
            if misfits:
                return f"{_found(misfits[0][1], [item])} at {misfits[0][0]}"
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        hints = [key for key, _ in _mappings(members)]
        odd = [key for key in value if not any(_fits(key, one) for one in hints)]
        return f"the key {odd[0]!r}" if hints and odd else "a dict"
    name = type(value).__name__
    shape = (
        f" of shape {tuple(value.shape)} and {value.dtype}"
        if hasattr(value, "shape") and hasattr(value, "dtype")
        else ""
    )
    return f"{_article(name)} {name}{shape}"


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"
