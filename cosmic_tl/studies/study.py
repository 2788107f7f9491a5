"""What a study asks for: models × prompt sets × settings, each combination a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from cosmic_tl._util.border import checked
from cosmic_tl.errors import CosmicError, check_alphas, check_seed, one_of
from cosmic_tl.experiments.study_result import MEASURES
from cosmic_tl.model.paths import check_model_path
from cosmic_tl.runs.settings import RunSettings
from cosmic_tl.studies.values import build_settings, fitting, given, procedure_of

if TYPE_CHECKING:
    from cosmic_tl.data.contrast_set import ContrastSet
    from cosmic_tl.model.load import TransformerBridge


@checked
@dataclass(frozen=True)
class Published:
    """A figure that somebody published of a model."""

    measure: str
    """A key of `MEASURES`: layer, position, bypass, kl, positive_removal, …"""
    value: int | float
    source: str
    """Where it stands: the table of a paper, or a file of a repository."""
    settings: str | None = None
    """The settings entry that it belongs to. By default all."""

    def __post_init__(self) -> None:
        one_of("published measure", self.measure, MEASURES)
        if not self.source.strip():
            raise CosmicError(f"published {self.measure}: found no source; say where it stands")


@checked
@dataclass(frozen=True)
class StudyModel:
    """A model of a study, how it is loaded, and what is particular to it."""

    model: str
    """demo, demo-weak, a directory in Hugging Face format, a .gguf file, or a hub id."""
    name: str = ""
    """What it is called. By default the last part of `model`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights."""
    device: str | None = None
    """Device to run on. By default TransformerLens chooses."""
    device_map: str | None = None
    """Spread the model over devices and memory: auto, balanced, …"""
    revision: str | None = None
    """Revision on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    prompts: tuple[str, ...] | None = None
    """Names of the prompt sets that it is run on. By default all that are shared."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that take precedence over those of every settings entry, nested in the same way. What only one procedure has
    stands for the entries that select by it."""
    published: tuple[Published, ...] = ()
    """What others found, to be shown beside what is found here."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.model.rstrip("/").rsplit("/", 1)[-1])

    def load(self) -> "TransformerBridge":
        """The model.

        Raises:
            CosmicError: If it cannot be loaded.

        Example:
            >>> StudyModel("demo", device="cpu").load().cfg.n_layers
            8
        """
        from cosmic_tl.model.load import load_model

        return load_model(self.model, **self.how())

    def how(self) -> dict[str, Any]:
        """What `load_model` takes besides the model's name.

        Example:
            >>> StudyModel("demo", device="cpu").how()
            {'device': 'cpu', 'dtype': 'float32'}
        """
        options: dict[str, Any] = {"trust_remote_code": True} if self.trust_remote_code else {}
        options |= {name: value for name in ("device_map", "revision") if (value := getattr(self, name)) is not None}
        return {"device": self.device, "dtype": self.dtype, **options}


@checked
@dataclass(frozen=True)
class PromptSet:
    """A contrast set of a study."""

    name: str
    options: Mapping[str, Any]
    """Arguments of `load_prompts`."""
    shared: bool = True
    """Whether models that do not name their prompt sets are run on it."""

    def load(self, seed: int | None = None) -> "ContrastSet":
        """The prompts.

        Args:
            seed: Of the shuffle, unless the options have one. Defaults to that of `load_prompts`.

        Raises:
            CosmicError: If they cannot be read.

        Example:
            >>> PromptSet("demo", {"source": "demo"}).load().name
            'demo'
        """
        from cosmic_tl.data.prompts import load_prompts

        try:
            return load_prompts(**({} if seed is None else {"seed": seed}) | dict(self.options))
        except CosmicError as error:
            raise CosmicError(f"prompts {self.name!r}: {error}") from error


@checked
@dataclass(frozen=True)
class SettingsEntry:
    """Settings of a study, by their own names; what is not given has its default."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    """Nested as `RunSettings.to_json` nests them, and `select`: "cosmic" or "refusal-tokens"."""


@checked
@dataclass(frozen=True)
class Case:
    """One combination of a study: a run."""

    model: StudyModel
    prompts: PromptSet
    entry: str
    """Name of the settings entry."""
    settings: RunSettings
    seed: int | None
    """As the study lists it; None if it lists none."""
    alpha: float | None
    """As the study lists it; None if it lists none."""

    @property
    def name(self) -> str:
        """What it is called, for people.

        Example:
            >>> Case(StudyModel("demo"), PromptSet("all", {}), "cosmic", RunSettings(), 1, None).name
            'demo, all, cosmic, seed 1'
        """
        parts = [self.model.name, self.prompts.name, self.entry]
        parts += [] if self.seed is None else [f"seed {self.seed}"]
        parts += [] if self.alpha is None else [f"α {self.alpha:g}"]
        return ", ".join(parts)


@checked
@dataclass(frozen=True)
class Study:
    """Models × prompt sets × settings × seeds × strengths; each combination is a run.

    Raises:
        CosmicError: If a name is there twice, a setting is unknown or has no such value, or a model's path leads nowhere.

    Example:
        >>> few = SettingsEntry("few", {"selection": {"n_train": 8}, "n_test": 2})
        >>> study = Study("two", (StudyModel("demo"),), (PromptSet("demo", {"source": "demo"}),), (few,), seeds=(0, 1))
        >>> [case.name for case in study.cases]
        ['demo, demo, few, seed 0', 'demo, demo, few, seed 1']
    """

    name: str
    models: tuple[StudyModel, ...]
    prompts: tuple[PromptSet, ...]
    settings: tuple[SettingsEntry, ...] = (SettingsEntry("cosmic"),)
    seeds: tuple[int, ...] = ()
    """Seeds of sampling, of placebos and of the shuffle of prompts; every combination is run with each."""
    alphas: tuple[float, ...] = ()
    """Strengths of the induction; every combination is run with each."""

    def __post_init__(self) -> None:
        for what, some in (("models", self.models), ("prompts", self.prompts), ("settings", self.settings)):
            if not some:
                raise CosmicError(f"{what}: found none; give at least one")
            _check_once(what, [one.name for one in some])
        _check_once("seeds", self.seeds)
        for seed in self.seeds:
            check_seed(seed)
        if self.alphas:
            check_alphas(self.alphas)
        entries, sets = [one.name for one in self.settings], [one.name for one in self.prompts]
        for model in self.models:
            check_model_path(model.model, f"models.{model.name}")
            for name in model.prompts or ():
                _check_among(f"models.{model.name}: prompts", name, sets)
            for one in model.published:
                if one.settings is not None:
                    _check_among(f"models.{model.name}: published {one.measure}: settings", one.settings, entries)
        _ = self.cases  # every setting is checked here, before anything is loaded

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every combination, in order: all of one model before the next.

        Example:
            >>> len(Study("one", (StudyModel("demo"),), (PromptSet("demo", {}),), alphas=(0.5, 1.0)).cases)
            2
        """
        return tuple(
            self._case(model, prompts, entry, seed, alpha)
            for model in self.models
            for prompts in self.prompts
            if (prompts.shared if model.prompts is None else prompts.name in model.prompts)
            for entry in self.settings
            for seed in self.seeds or (None,)
            for alpha in self.alphas or (None,)
        )

    def _case(
        self, model: StudyModel, prompts: PromptSet, entry: SettingsEntry, seed: int | None, alpha: float | None
    ) -> Case:
        where = f"settings {entry.name!r} of {model.name!r}" if model.settings else f"settings {entry.name!r}"
        procedures = [procedure_of(one.values, model.settings) for one in self.settings]
        own = fitting(model.settings, procedure_of(entry.values, model.settings), procedures)
        layers = [entry.values, own]
        for name, value, path in (("seeds", seed, ("seed",)), ("alpha", alpha, ("selection", "alpha"))):
            if value is None:
                continue
            if any(given(one, *path) for one in layers):
                raise CosmicError(f"{where}: {path[-1]} is given here and in the list of {name}; leave one of them out")
            layers.append({path[0]: value} if len(path) == 1 else {path[0]: {path[1]: value}})
        return Case(model, prompts, entry.name, build_settings(where, *layers), seed, alpha)

    def with_models(self, models: Mapping[str, str]) -> "Study":
        """The same study with some of its models alone, each loaded from another place.

        Args:
            models: Name in the study to directory, file or hub id. What is particular to a model stays: its settings, prompts
                and published figures.

        Raises:
            CosmicError: If the study has no such model, or there is none at the place.

        Example:
            >>> study = Study("one", (StudyModel("org/large", "large", "bfloat16"),), (PromptSet("demo", {}),))
            >>> study.with_models({"large": "demo"}).models[0].model
            'demo'
        """
        for name in models:
            _check_among("models", name, [one.name for one in self.models])
        kept = (one for one in self.models if one.name in models)
        return replace(self, models=tuple(replace(one, model=models[one.name]) for one in kept))

    def with_prompts(self, *names: str) -> "Study":
        """The same study on other prompts, for all models.

        Args:
            *names: Sources as `load_prompts` takes them, such as "demo".

        Example:
            >>> study = Study("one", (StudyModel("demo"),), (PromptSet("large", {"source": "splits"}),))
            >>> study.with_prompts("demo").prompts[0].name
            'demo'
        """
        sets = tuple(PromptSet(name, {"source": name}) for name in names)
        return replace(self, prompts=sets, models=tuple(replace(one, prompts=None) for one in self.models))

    def with_settings(self, values: Mapping[str, Any]) -> "Study":
        """The same study with some settings changed for all runs.

        Args:
            values: They take precedence over those of settings entries and models; nested as there.

        Example:
            >>> study = Study("one", (StudyModel("demo"),), (PromptSet("demo", {}),))
            >>> study.with_settings({"n_test": 2, "selection": {"n_train": 8}}).cases[0].settings.n_test
            2
        """
        models = (replace(one, settings=_over(one.settings, values)) for one in self.models)
        return replace(self, models=tuple(models))

    def __repr__(self) -> str:
        return (
            f"Study({self.name!r}: {_several(len(self.models), 'model')}, {_several(len(self.prompts), 'prompt set')}, "
            f"{_several(len(self.settings), 'settings entry', 'settings entries')}; {_several(len(self.cases), 'run')})"
        )


def _several(n: int, one: str, more: str = "") -> str:
    return f"{n} {one if n == 1 else more or one + 's'}"


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        name: _over(base[name], value)
        for name, value in values.items()
        if isinstance(base.get(name), Mapping) and isinstance(value, Mapping)
    }
    return {**base, **values, **nested}


def _check_once(what: str, names: Sequence[Any]) -> None:
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise CosmicError(f"{what}: {twice[0]!r} is there more than once; give each a name of its own")


def _check_among(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise CosmicError(f"{what}: unknown {name!r}; the study has {', '.join(names)}")
