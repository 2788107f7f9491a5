"""Options of commands, derived from dataclasses: their names, types, defaults and help texts stand there alone."""

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache, partial, wraps
from inspect import Parameter, Signature, getsource, signature
from itertools import pairwise
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import cyclopts

from cosmic_tl._util.progress import stages
from cosmic_tl.errors import CosmicError
from cosmic_tl.selection.options import PROCEDURES

FLAGS = {
    "selection": "select",
    "n_positions": "positions",
    "n_placebos": "placebos",
    # These may be repeated, one value each time.
    "tokens": "refusal_token",
    "phrases": "phrase",
    "template_options": "template_option",
}
"""Fields that have another name on the command line."""
GROUPS = {
    "Run": ("directory", "prompt", "file", "study"),
    "Model": ("LoadOptions", "PairOptions", "model", "weights"),
    "Workers": ("WorkerOptions", "watch"),
    "Prompts": ("DataOptions", "n_test", "n_prompts", "n", "texts", "instructions"),
    "Chat": ("ChatFormat",),
    "Selection": ("CommonOptions", "selection"),
    "Steering": (
        "edit",
        "mode",
        "alpha",
        "alphas",
        "layers",
        "strength",
        "norm_preserving",
        "approximate",
        "nats",
        "score",
        "statistic",
    ),
    "COSMIC": ("CosmicOptions", "folds"),
    "Forecast": ("probe", "workers"),
    "Refusal tokens": ("RefusalTokenOptions",),
    "Map": ("CausalOptions", "plan"),
    "Search": ("SuffixOptions",),
    "Generation": ("Sampling", "DataOptions.seed", "max_new_tokens", "temperature", "n_samples", "seed", "batch_size"),
    "Evaluation": (
        "phrases",
        "n_placebos",
        "null",
        "causal",
        "tasks",
        "limit",
        "num_fewshot",
        "chat",
        "task_folder",
        "direction",
        "run",
    ),
    "Judge": ("judge", "judge_model", "template", "base_url", "api_key_env", "concurrency", "requests_per_minute"),
    "Output": ("to", "out", "check", "list", "overwrite", "resume", "csv", "max_shard_size"),
}
"""The headings of `--help` in their order, each with its classes, and with fields and parameters that are in none of them."""
_HEADINGS = {
    name: cyclopts.Group(heading, sort_key=number)
    for number, (heading, names) in enumerate(GROUPS.items())
    for name in names
}


class Only(frozenset[str]):
    """In an annotation: the fields of a dataclass that a command takes. The others keep their defaults."""


@dataclass(frozen=True)
class _Option:
    """One field of one dataclass, or one parameter of a command."""

    hint: Any
    default: Any
    help: str | None
    heading: cyclopts.Group | None
    positional: bool
    procedure: str = ""
    """The one that has it, where there are several to choose from."""


@cache
def help_texts(owner: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, as plain text; of a field that is declared again, the text of the base class.

    Example:
        >>> help_texts(PROCEDURES["refusal-tokens"])["n_val"]
        'Validation prompts per side.'
    """
    found: dict[str, str] = {}
    for one in filter(is_dataclass, owner.__mro__):
        (tree,) = ast.parse(dedent(getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(text.value).replace("`", "").split())
    return found


def _classes(hint: Any) -> tuple[type, ...]:
    """The option classes that a value can be of; none for a plain value."""
    some = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(one for one in some if is_dataclass(one) and isinstance(one, type))


def _kept(hint: Any) -> tuple[Any, Callable[[str], bool]]:
    """A hint without its annotation, and which fields are options."""
    if get_origin(hint) is not Annotated:
        return hint, lambda name: True
    return hint.__origin__, next(one for one in hint.__metadata__ if isinstance(one, Only)).__contains__


def _default(field: Field[Any], owner: Any) -> Any:
    """A field's value in the command's own default, or what its class says."""
    if owner is not Parameter.empty:
        return getattr(owner, field.name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return Parameter.empty if field.default is MISSING else field.default


def _options(hint: Any, default: Any, procedure: str = "") -> Iterator[tuple[str, _Option]]:
    """Name and option of every field, and of the fields of its fields."""
    hint, kept = _kept(hint)
    names = {kind: name for name, kind in PROCEDURES.items()}
    kinds = _classes(hint)
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        mine = names.get(kind, procedure)
        for field in fields(kind):
            if not (field.init and kept(field.name)):
                continue
            value = _default(field, default if isinstance(default, kind) else Parameter.empty)
            home = next(one for one in reversed(kind.__mro__) if field.name in getattr(one, "__annotations__", ()))
            places = (f"{home.__name__}.{field.name}", home.__name__, field.name)
            heading = next((_HEADINGS[one] for one in places if one in _HEADINGS), None)
            text, positional = help_texts(kind).get(field.name), "positional" in field.metadata
            inner = _classes(hints[field.name])
            if len(inner) > 1:
                choices: Any = Literal.__getitem__(tuple(names[one] for one in inner))
                yield FLAGS[field.name], _Option(choices, names[type(value)], text, heading, False)
            if inner:
                yield from _options(hints[field.name], value, mine)
            else:
                flag = FLAGS.get(field.name, field.name)
                yield flag, _Option(hints[field.name], value, text, heading, positional, mine)


def _built(hint: Any, default: Any, given: Mapping[str, Any]) -> Any:
    """The options as the dataclass that the command takes."""
    hint, kept = _kept(hint)
    kinds = _classes(hint)
    kind: Any = kinds[0]
    if len(kinds) > 1:
        chosen = given.get("select", next(name for name, one in PROCEDURES.items() if isinstance(default, one)))
        kind = PROCEDURES[chosen]
        mine = {field.name for field in fields(kind)}
        for name, other in PROCEDURES.items():
            for field in fields(other):
                if field.name not in mine and (flag := FLAGS.get(field.name, field.name)) in given:
                    raise CosmicError(f"{flag}: --select {chosen} has no such option; leave it out, or --select {name}")
    own: Any = default if isinstance(default, kind) else Parameter.empty
    values = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if kept(field.name) and _classes(hints[field.name]):
            values[field.name] = _built(hints[field.name], _default(field, own), given)
        elif kept(field.name) and (flag := FLAGS.get(field.name, field.name)) in given:
            pairs = get_origin(hints[field.name]) is Mapping
            values[field.name] = _pairs(flag, given[flag]) if pairs else given[flag]
    return kind(**values) if own is Parameter.empty else replace(own, **values)


def _numbers(
    name: str, kinds: Sequence[Any], names: Sequence[str], type_: Any, tokens: Sequence[cyclopts.Token]
) -> tuple[Any, ...] | str:
    """Numbers that are given as one text, such as 0,0.5,1, or one of some names."""
    text = tokens[-1].value
    if text in names:
        return text
    endless = kinds[-1] is Ellipsis
    try:
        found = [kinds[0](part) for part in text.split(",")]
        if not endless and len(found) != len(kinds):
            raise ValueError
    except ValueError as error:
        example = ("0,0.5,1" if kinds[0] is float else "3,4") if endless else "17,-1 (layer, position)"
        others = f", or {', '.join(names[:-1])} or {names[-1]}" if names else ""
        raise CosmicError(f"{name}: expected numbers like {example}{others}, found {text!r}") from error
    return tuple(found)


def _whole(name: str, type_: Any, tokens: Sequence[cyclopts.Token]) -> int:
    """A whole number; cyclopts would round others."""
    try:
        return int(text := tokens[-1].value)
    except ValueError as error:
        raise CosmicError(f"{name}: expected a whole number, found {text!r}") from error


def _pairs(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Variables that are given as name=value, the values as JSON or as text."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CosmicError(f"{name}: expected name=value, found {text!r}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _shown(value: Any) -> str:
    """A default for people; nothing where the help text says what happens."""
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value or "" if value != 0 else 0)


def _parameter(name: str, some: Sequence[_Option]) -> Parameter:
    """An option, which several dataclasses may share, as the command line's library takes it."""
    first = some[0]
    start: Any = first.default
    hint, kind = first.hint, Parameter.POSITIONAL_ONLY if first.positional else Parameter.KEYWORD_ONLY
    texts = dict.fromkeys(one.help for one in some if one.help)
    shown = {one.procedure: _shown(one.default) for one in some if one.default is not Parameter.empty}
    default = next(iter(shown.values()), "")
    default += "".join(f"; {kind} {text}" for kind, text in shown.items() if text != next(iter(shown.values())))
    more: dict[str, Any] = {"show_default": default if default not in ("", "no") else False, "negative_iterable": ()}
    cores = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    core, names = cores[0], [name for one in cores[1:] for name in get_args(one)]
    parts = get_args(core)
    if get_origin(core) is tuple and parts[0] in (int, float):
        # One text, which may begin with a minus sign; where pydantic is loaded, cyclopts checks what it becomes, too.
        hint, more["converter"], more["allow_leading_hyphen"] = Any, partial(_numbers, name, parts, names), True
    elif core is int:
        more["converter"] = partial(_whole, name)
    elif get_origin(core) is Mapping:
        hint, start = tuple[str, ...], ()
    elif core is bool and not any(one.default for one in some) and hint is bool:
        more["negative"] = ()
    if texts:
        more["help"] = " ".join(texts)
    if first.heading is not None:
        more["group"] = first.heading
    return Parameter(name, kind, default=start, annotation=Annotated[hint, cyclopts.Parameter(**more)])


def _run(steps: Sequence[str], command: Callable[..., int | None], values: Mapping[str, Any]) -> int | None:
    with stages(*steps):
        return command(**values)


def derived(*steps: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Give a command the fields of its option classes as options, and put the classes together again when it is called.

    Only what is given on the command line is passed to a class, so that the rest has the defaults of the class that is
    chosen in the end.

    Args:
        *steps: The command's stages, for progress.

    Example:
        >>> from cosmic_tl.model.options import ChatFormat
        >>> @derived("completions")
        ... def command(chat: ChatFormat = ChatFormat(), *, n: int = 1) -> None: ...
        >>> list(signature(command).parameters)
        ['system', 'prefix', 'thinking', 'template_option', 'use_template', 'n']
    """
    return partial(_derive, steps)


def _derive(steps: tuple[str, ...], command: Callable[..., int | None]) -> Callable[..., int | None]:
    hints, taken = get_type_hints(command, include_extras=True), signature(command).parameters
    options: dict[str, list[_Option]] = {}
    for name, one in taken.items():
        if _classes(_kept(hints[name])[0]):
            for flag, option in _options(hints[name], one.default):
                options.setdefault(flag, []).append(option)
        else:
            placed = one.kind is not Parameter.KEYWORD_ONLY
            options[name] = [_Option(hints[name], one.default, None, _HEADINGS.get(name), placed)]
    spread = [_parameter(name, some) for name, some in options.items()]
    spread.sort(key=lambda one: one.kind)
    positional = [one.name for one in spread if one.kind is Parameter.POSITIONAL_ONLY]

    @wraps(command)
    def call(*places: Any, **given: Any) -> int | None:
        given.update(zip(positional, places, strict=False))
        values = {name: given[name] for name in taken if name in given and name in hints}
        values |= {
            name: _built(hints[name], one.default, given)
            for name, one in taken.items()
            if _classes(_kept(hints[name])[0])
        }
        return _run(steps, command, values)

    call.__signature__ = Signature(spread)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in spread}
    return call
