"""Read a study from YAML."""

from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cosmic_tl._util.border import checked
from cosmic_tl._util.files import is_missing_path
from cosmic_tl.data.prompts import load_prompts
from cosmic_tl.errors import CosmicError, first_line
from cosmic_tl.model.paths import DEMOS, GGUF
from cosmic_tl.studies.study import PromptSet, Published, SettingsEntry, Study, StudyModel
from cosmic_tl.studies.values import check_names

KEYS = ("name", "models", "prompts", "settings", "seeds", "alpha")
"""What a study's file may hold."""
_SOURCES = ("source", "positive", "negative")
"""Arguments of `load_prompts` that may be paths."""
T = TypeVar("T")
_PROMPT_FILES = (".txt", ".json", ".jsonl", ".csv")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without objects, and without a key that silently replaces an earlier one of the same name."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            mark = f"line {node.start_mark.line + 1}"
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice in what begins at {mark}")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


@checked
def read_study(path: str | Path) -> Study:
    """Read a study from a YAML file, and check all of it. No model and no prompts are loaded.

    The file has lists of `models`, `prompts` and `settings`, possibly of `seeds` and of strengths (`alpha`), and a `name`. Paths
    are relative to the file.

    Args:
        path: The file.

    Raises:
        CosmicError: If it cannot be read, a name in it is unknown, or a value is none that its setting can have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "two.yaml"
        ...     _ = path.write_text("models: [demo, demo-weak]\\nprompts: [demo]\\nsettings: [{name: few, n_test: 2}]\\n")
        ...     read_study(path)
        Study('two': 2 models, 1 prompt set, 1 settings entry; 2 runs)
    """
    path = Path(path)
    found = check_names(f"study {str(path)!r}", _yaml(path), KEYS, "entry")
    for key in ("models", "prompts"):
        if key not in found:
            raise CosmicError(f"study {str(path)!r}: {key} are missing; list at least one under {key}:")
    folder = path.parent.absolute()
    prompts = [_prompts(one, folder) for one in _items(found, "prompts")]
    models = [_model(one, folder) for one in _items(found, "models")]
    settings = (
        [_settings(one) for one in _items(found, "settings")] if "settings" in found else [SettingsEntry("cosmic")]
    )
    try:
        return Study(
            str(found.get("name") or path.stem),
            tuple(models),
            tuple(prompts),
            tuple(settings),
            tuple(_items(found, "seeds")) if "seeds" in found else (),
            tuple(_items(found, "alpha")) if "alpha" in found else (),
        )
    except CosmicError as error:
        raise CosmicError(f"study {str(path)!r}: {error}") from error


def _yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CosmicError(f"study: cannot read {str(path)!r} ({error.strerror}); give a YAML file") from error
    except UnicodeDecodeError as error:
        raise CosmicError(f"study: {str(path)!r} is no text in UTF-8; give a YAML file") from error
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise CosmicError(f"study: {str(path)!r} is no YAML{where}: {problem or first_line(error)}; fix it") from error


def _items(found: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(found[key], list):
        raise CosmicError(f"study: {key}: expected a list, found {found[key]!r}; write [{found[key]}] or lines with -")
    items: list[Any] = found[key]
    return items


def _model(one: Any, folder: Path) -> StudyModel:
    if isinstance(one, str):
        one = {"model": one}
    given = dict(check_names("study: models", one, [f.name for f in fields(StudyModel)], "entry"))
    if not isinstance(given.get("model"), str):
        raise CosmicError(
            f"study: models: expected the model's name or path, found {given.get('model')!r}; write model: …"
        )
    label = given.get("name") or given["model"]
    if not isinstance(given.get("settings") or {}, Mapping):
        raise CosmicError(f"study: models.{label}: settings: expected names with values; write name: value")
    named = given["model"]
    given["model"] = _place(named, folder, (GGUF,)) if named not in DEMOS else named
    if "prompts" in given:
        given["prompts"] = tuple(_items(given, "prompts"))
    if "published" in given:
        given["published"] = tuple(_published(item, str(label)) for item in _items(given, "published"))
    return _made(f"study: models.{label}", StudyModel, given)


def _published(one: Any, label: str) -> Published:
    where = f"study: models.{label}: published"
    return _made(where, Published, dict(check_names(where, one, [f.name for f in fields(Published)], "entry")))


def _settings(one: Any) -> SettingsEntry:
    if not isinstance(one, Mapping):
        raise CosmicError(f"study: settings: expected a name with values, found {one!r}; write name: …")
    values = {key: value for key, value in one.items() if key != "name"}
    if "name" not in one:
        raise CosmicError(
            f"study: settings: an entry with {', '.join(map(str, values)) or 'nothing'} has no name; add name: …"
        )
    return _made("study: settings", SettingsEntry, {"name": one["name"], "values": values})


def _prompts(one: Any, folder: Path) -> PromptSet:
    if isinstance(one, str):
        one = {"source": one}
    given = dict(check_names("study: prompts", one, [*signature(load_prompts).parameters, "shared"], "entry"))
    for key in _SOURCES:
        if isinstance(given.get(key), str):
            given[key] = _place(given[key], folder, _PROMPT_FILES) if given[key] != "demo" else "demo"
    shared, name = given.pop("shared", True), given.pop("name", None) or _label(given)
    return _made("study: prompts", PromptSet, {"name": name, "options": given, "shared": shared})


def _label(given: Mapping[str, Any]) -> str:
    places = [Path(given[key]).stem if isinstance(given.get(key), str) else key for key in _SOURCES if key in given]
    return " / ".join(dict.fromkeys(places)) or "demo"


def _place(name: str, folder: Path, suffixes: tuple[str, ...]) -> str:
    """A path from the study's folder, or the name of something on the hub as it is."""
    here = (folder / Path(name).expanduser()).absolute()
    return str(here) if here.exists() or is_missing_path(name, suffixes) else name


def _made(where: str, kind: type[T], given: Mapping[str, Any]) -> T:
    try:
        return kind(**given)
    except TypeError as error:
        raise CosmicError(f"{where}: {first_line(error)}; add it") from error
    except CosmicError as error:
        raise CosmicError(f"{where}: {error}") from error
