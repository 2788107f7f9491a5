"""A run's settings from partial ones, by the names that the option classes give them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from cosmic_tl.errors import CosmicError, one_of
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.selection.options import PROCEDURES

SELECT = "select"
"""Name of the procedure in a settings entry, as `--select` on the command line."""
_NESTED = ("selection", "chat", "sampling")
"""Settings that have settings of their own."""


def check_names(where: str, found: Any, names: Iterable[str], what: str = "setting") -> Mapping[str, Any]:
    """Check that something maps known names to values.

    Args:
        where: What it is called.
        found: What was given.
        names: The names that there are.
        what: What a name stands for.

    Raises:
        CosmicError: If it is no mapping, or a name is unknown; the message has the nearest one.

    Example:
        >>> check_names("settings", {"n_tets": 8}, ["n_test", "seed"])
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: settings: unknown setting 'n_tets'; use n_test
    """
    if not isinstance(found, Mapping):
        raise CosmicError(f"{where}: expected names with values, found {_short(found)}; write name: value")
    known = list(names)
    for name in found:
        if name not in known:
            close = get_close_matches(str(name), known, 1)
            raise CosmicError(f"{where}: unknown {what} {name!r}; use {close[0] if close else ', '.join(known)}")
    return found


def build_settings(where: str, *layers: Mapping[str, Any]) -> RunSettings:
    """Settings from partial ones, of which later ones take precedence; the rest has its defaults.

    Args:
        where: What they are called in an error.
        *layers: Names to values, nested as `RunSettings.to_json` nests them. `select` names the procedure of the selection:
            "cosmic" (the default) or "refusal-tokens".

    Raises:
        CosmicError: If a name is unknown, or a value is none that the setting can have.

    Example:
        >>> found = build_settings("settings", {"selection": {"n_train": 8}}, {"select": "refusal-tokens", "n_test": 2})
        >>> found.selection.n_train, found.selection.n_val, found.n_test, found.max_new_tokens
        (8, 32, 2, 64)
    """
    chosen = procedure_of(*layers)
    try:
        one_of(SELECT, chosen, PROCEDURES)
    except CosmicError as error:
        raise CosmicError(f"{where}: {error}") from error
    merged: dict[str, Any] = {"batch_size": None, **RunSettings(PROCEDURES[chosen]()).to_json()}
    for layer in layers:
        merged = _merged(where, merged, {name: value for name, value in layer.items() if name != SELECT}, _NESTED)
    batch_size = merged.pop("batch_size")
    try:
        return replace(RunSettings.from_json(merged), batch_size=batch_size)
    except CosmicError as error:
        raise CosmicError(f"{where}: {error}") from error


def procedure_of(*layers: Mapping[str, Any]) -> str:
    """Name of the procedure that partial settings select, of which later ones take precedence.

    Example:
        >>> procedure_of({"select": "refusal-tokens"}, {}), procedure_of({})
        ('refusal-tokens', 'cosmic')
    """
    return str(next((layer[SELECT] for layer in reversed(layers) if SELECT in layer), "cosmic"))


def fitting(values: Mapping[str, Any], procedure: str, others: Iterable[str]) -> Mapping[str, Any]:
    """Settings without those that another of a study's procedures has and this one has not.

    Args:
        values: Partial settings of a model, which stand for all entries.
        procedure: That of one entry.
        others: Those of all entries.

    Example:
        >>> fitting({"selection": {"min_induce": 1.0}}, "cosmic", ["cosmic", "refusal-tokens"])
        {'selection': {}}
    """
    selection = values.get("selection")
    if procedure not in PROCEDURES or not isinstance(selection, Mapping):
        return values
    own = {one.name for one in fields(PROCEDURES[procedure])}
    elsewhere = {one.name for other in others if other in PROCEDURES for one in fields(PROCEDURES[other])} - own
    return {**values, "selection": {name: value for name, value in selection.items() if name not in elsewhere}}


def given(values: Mapping[str, Any], *path: str) -> bool:
    """Whether partial settings have a value.

    Example:
        >>> given({"selection": {"alpha": 1.0}}, "selection", "alpha"), given({}, "seed")
        (True, False)
    """
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _merged(
    where: str, base: Mapping[str, Any], layer: Mapping[str, Any], nested: Iterable[str] = ()
) -> dict[str, Any]:
    found = dict(base)
    for name, value in check_names(where, layer, base).items():
        if name in nested:
            found[name] = _merged(f"{where}.{name}", base[name], value)
        elif isinstance(base[name], float) and isinstance(value, int) and not isinstance(value, bool):
            found[name] = float(value)  # 1 and 1.0 are the same setting, and the same run
        else:
            found[name] = value
    return found


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 40 else f"{text[:40]}…"
