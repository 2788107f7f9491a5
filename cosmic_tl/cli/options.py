"""Options that several commands share, in groups that turn into the library's own settings."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cached_property, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cosmic_tl._util.files import settings_file
from cosmic_tl.errors import CosmicError
from cosmic_tl.model.paths import check_model_path
from cosmic_tl.selection.options import CosmicOptions, RefusalTokenOptions

if TYPE_CHECKING:
    from cosmic_tl.data.contrast_set import ContrastSet
    from cosmic_tl.directions.direction import Direction
    from cosmic_tl.generation.sampling import Sampling
    from cosmic_tl.interventions.modes import Edits
    from cosmic_tl.interventions.options import Mode as ModeName
    from cosmic_tl.model.chat import ChatFormat
    from cosmic_tl.model.load import TransformerBridge
    from cosmic_tl.runs.result import Run


class Mode(str, Enum):
    """How a direction is removed and induced."""

    linear = "linear"
    affine = "affine"


class TargetChoice(str, Enum):
    """How activations of several prompts and evaluation layers become one cosine."""

    mean = "mean"
    concatenated = "concatenated"
    per_prompt = "per-prompt"


class TokensChoice(str, Enum):
    """Which tokens induction edits."""

    all = "all"
    prompt = "prompt"


class Thinking(str, Enum):
    """What becomes of a thinking block that the template or the model opens."""

    close = "close"
    open = "open"


class Dtype(str, Enum):
    """Number formats of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Seed = Annotated[int, typer.Option(help="Of splits, sampling and random controls.")]
Device = Annotated[str | None, typer.Option(help="Where to run; chosen by TransformerLens if not given.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices and memory: auto, balanced, …")]
DtypeOption = Annotated[Dtype, typer.Option(help="Number format of the weights.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of new tokens.")]
Phrases = Annotated[
    list[str] | None,
    typer.Option(help="A text that shows the concept in an answer; may be repeated. Default: the phrases of refusals."),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Rows a forward pass; changes no result. Default: 32; in the selection by memory.")
]


def check_file(name: str, path: Path | None) -> None:
    """A file that an option names has to be there.

    Example:
        >>> check_file("texts", Path("nowhere.txt"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: texts: no file 'nowhere.txt'; check the path
    """
    if path is not None and not path.is_file():
        raise CosmicError(f"{name}: no file {str(path)!r}; check the path")


def _in_a_folder(csv: Path | None) -> Path | None:
    """Hours may pass before it is written."""
    if csv is not None and not csv.parent.is_dir():
        raise CosmicError(f"csv: no folder {str(csv.parent)!r}; make it first")
    return csv


Csv = Annotated[Path | None, typer.Option(help="Also write the table here.", callback=_in_a_folder)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of those of its parameters that are dataclasses, in their place.

    Example:
        >>> @grouped
        ... def command(data: DataOptions, n: int = 1) -> None: ...
        >>> list(signature(command).parameters)
        ['prompts', 'positive', 'negative', 'column', 'hf_split', 'keep_order', 'seed', 'n']
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in signature(command).parameters if is_dataclass(hints[name])}
    spread: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name not in groups:
            spread.append(parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY))
            continue
        inner = get_type_hints(groups[name], include_extras=True)
        spread += [
            one.replace(annotation=inner[one.name], kind=Parameter.KEYWORD_ONLY)
            for one in signature(groups[name]).parameters.values()
        ]

    @wraps(command)
    def call(**values: Any) -> None:
        filled = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**filled, **values)

    call.__signature__ = Signature(spread)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in spread}
    return call


def numbers(name: str, text: str) -> list[float]:
    """Numbers that are given as one option.

    Example:
        >>> numbers("alphas", "0,0.5,1")
        [0.0, 0.5, 1.0]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CosmicError(f"{name}: expected numbers like 0,0.5,1, found {text!r}") from error


def layer_numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Layers that are given as one option, in order; None for none.

    Example:
        >>> layer_numbers("layers", "4,3")
        (3, 4)
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text else None
    except ValueError as error:
        raise CosmicError(f"{name}: expected numbers like 3,4, found {text!r}") from error


def _load(
    model: str, device: str | None, device_map: str | None, dtype: Dtype, trust_remote_code: bool
) -> "TransformerBridge":
    from cosmic_tl.model.load import load_model

    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    if device_map is not None:
        options["device_map"] = device_map
    return load_model(model, device=device, dtype=dtype.value, **options)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where."""

    model: Annotated[
        str, typer.Argument(help="'demo', 'demo-weak', a directory in Hugging Face format, a .gguf file, or a hub id.")
    ] = "demo"
    device: Device = None
    device_map: DeviceMap = None
    dtype: DtypeOption = Dtype.float32
    trust_remote_code: RemoteCode = False

    def __post_init__(self) -> None:
        check_model_path(self.model)  # here, and not after seconds of imports

    def load(self) -> "TransformerBridge":
        """The model.

        Example:
            >>> ModelOptions(device="cpu").load().cfg.n_layers
            8
        """
        return _load(self.model, self.device, self.device_map, self.dtype, self.trust_remote_code)


@dataclass(frozen=True)
class DataOptions:
    """Which contrast set."""

    prompts: Annotated[
        str | None,
        typer.Option(
            help="'demo', a .json, .jsonl or .csv file with both sides, a directory of released splits, or jailbreakbench "
            "or xstest."
        ),
    ] = None
    positive: Annotated[
        str | None, typer.Option(help="Prompts that show the concept: a file, advbench, harmbench, …, or a data set.")
    ] = None
    negative: Annotated[str | None, typer.Option(help="Prompts that do not: a file, alpaca, …, or a data set.")] = None
    column: Annotated[str | None, typer.Option(help="Column that holds the prompts.")] = None
    hf_split: Annotated[str, typer.Option(help="Split of a Hugging Face data set to read.")] = "train"
    keep_order: Annotated[bool, typer.Option("--keep-order", help="Take prompts in the order of their source.")] = False
    seed: Seed = 0

    def load(self) -> "ContrastSet":
        """The prompts.

        Example:
            >>> DataOptions().load().name
            'demo'
        """
        from cosmic_tl.data.prompts import load_prompts

        return load_prompts(
            self.prompts,
            positive=self.positive,
            negative=self.negative,
            column=self.column,
            hf_split=self.hf_split,
            seed=self.seed,
            shuffle=not self.keep_order,
        )


@dataclass(frozen=True)
class ChatOptions:
    """How instructions become prompts."""

    system: Annotated[str | None, typer.Option(help="System prompt.")] = None
    prefix: Annotated[str, typer.Option(help="Text that the answer begins with.")] = ""
    thinking: Annotated[Thinking, typer.Option(help="Close a thinking block that is opened, or leave it.")] = (
        Thinking.close
    )
    template_option: Annotated[list[str] | None, typer.Option(help="Chat-template variable, name=value.")] = None

    def format(self) -> "ChatFormat":
        """The formatting.

        Example:
            >>> dict(ChatOptions(template_option=["depth=2"]).format().template_options)
            {'depth': 2}
        """
        from cosmic_tl.model.chat import ChatFormat

        found: dict[str, Any] = {}
        for option in self.template_option or []:
            name, equals, value = option.partition("=")
            if not equals or not name:
                raise CosmicError(f"template_option: expected name=value, found {option!r}")
            try:
                found[name] = json.loads(value)
            except json.JSONDecodeError:
                found[name] = value
        return ChatFormat(self.system, self.prefix, self.thinking.value, found)


def _setting(text: str, field: str, *flags: str) -> Any:
    """An option of a selection. Its default is that of the library's settings, and by refusal tokens another where it differs."""
    defaults = [getattr(group, field) for group in (CosmicOptions, RefusalTokenOptions) if hasattr(group, field)]
    shown = [{True: "yes", False: "no"}.get(one, one) if isinstance(one, bool) else one for one in defaults]
    if shown[0] is not None:
        text += f" Default: {shown[0]}" + (f"; by refusal tokens {shown[1]}." if shown[0] != shown[-1] else ".")
    return typer.Option(*flags, help=text, show_default=False)


def _cell(text: str | None) -> tuple[int, int] | None:
    try:
        layer, position = (int(part) for part in text.split(",")) if text is not None else (None, None)
    except ValueError as error:
        raise CosmicError(f"cell: expected a layer and a position like 17,-1, found {text!r}") from error
    return None if layer is None or position is None else (layer, position)


@dataclass(frozen=True)
class SelectionOptions:
    """How a direction is chosen. What is None has the library's default: `CosmicOptions`, `RefusalTokenOptions`."""

    mode: Annotated[Mode | None, _setting("linear: ablation and addition. affine: ACE for both.", "mode")] = None
    alpha: Annotated[float | None, _setting("Strength of the induction.", "alpha")] = None
    induction_layer: Annotated[
        int | None, _setting("Linear: add the direction at this layer. Default: its own.", "induction_layer")
    ] = None
    induction_tokens: Annotated[
        TokensChoice | None, _setting("Which tokens induction edits: all, or the prompt's.", "induction_tokens")
    ] = None
    cell: Annotated[
        str | None, _setting("Take this candidate, as 17,-1 (layer, position). Default: chosen by scores.", "cell")
    ] = None
    positions: Annotated[
        int | None, _setting("How many of the last tokens. Default: all after the text.", "n_positions")
    ] = None
    evaluation_layers: Annotated[
        str | None, _setting("COSMIC: layers to compare at, as 3,4. Default: ranked.", "evaluation_layers")
    ] = None
    evaluation_share: Annotated[
        float | None, _setting("COSMIC: share of the layers that the ranking keeps.", "evaluation_share")
    ] = None
    exclude_first_half: Annotated[bool | None, _setting("COSMIC: rank the second half only.", "exclude_first_half")] = (
        None
    )
    target: Annotated[TargetChoice | None, _setting("COSMIC: how activations become one cosine.", "target")] = None
    max_kl: Annotated[float | None, _setting("Most KL (nats) that removal may cost on negative prompts.", "max_kl")] = (
        None
    )
    max_layer_share: Annotated[
        float | None, _setting("Source layers from this share of the depth on are out.", "max_layer_share")
    ] = None
    last_position_rule: Annotated[
        bool | None, _setting("COSMIC: at position -1 drop unusually late layers.", "last_position_rule")
    ] = None
    refusal_token: Annotated[
        list[str] | None, _setting("A text refusals begin with; may be repeated. Default: found.", "tokens")
    ] = None
    filter_prompts: Annotated[
        bool | None, _setting("Keep only prompts that the model treats as their side says.", "filter_prompts")
    ] = None
    min_induce: Annotated[
        float | None, _setting("Refusal tokens: score that induction has to exceed.", "min_induce")
    ] = None
    n_train: Annotated[int | None, _setting("Training prompts per side.", "n_train")] = None
    n_val: Annotated[int | None, _setting("Validation prompts per side.", "n_val")] = None
    full_table: Annotated[
        bool | None, _setting("Also compute what the choice does not depend on.", "full_table", "--full-table")
    ] = None
    successive_halving: Annotated[
        bool | None,
        _setting("COSMIC, approximate: weed out on some of the prompts.", "successive_halving", "--successive-halving"),
    ] = None

    def cosmic(self, **otherwise: Any) -> CosmicOptions:
        """Settings of a COSMIC selection.

        Args:
            otherwise: A command's own defaults.

        Example:
            >>> SelectionOptions(evaluation_layers="4,3").cosmic().evaluation_layers
            (3, 4)
        """
        return CosmicOptions(**{**otherwise, **self._given(CosmicOptions)})

    def refusal_tokens(self) -> RefusalTokenOptions:
        """Settings of a selection by refusal tokens.

        Example:
            >>> SelectionOptions(n_train=64).refusal_tokens() == RefusalTokenOptions(n_train=64)
            True
        """
        return RefusalTokenOptions(**self._given(RefusalTokenOptions))

    def _given(self, group: type) -> dict[str, Any]:
        """Those of a group's settings that were given, by their names and as their types there."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["n_positions"] = found.pop("positions")
        found["evaluation_layers"] = layer_numbers("evaluation_layers", self.evaluation_layers)
        found["tokens"] = tuple(found.pop("refusal_token") or ()) or None
        found["cell"] = _cell(self.cell)
        values = {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
        return {field.name: value for field in fields(group) if (value := values.get(field.name)) is not None}


@dataclass(frozen=True)
class GenerationOptions:
    """How completions are generated."""

    max_new_tokens: MaxNewTokens = 64
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    top_k: Annotated[int | None, typer.Option(help="Sample from this many tokens; default: all.")] = None
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability; default: all.")] = None
    repetition_penalty: Annotated[
        float, typer.Option(help="1 is none; the checkpoint's own default is never used.")
    ] = 1.0

    def sampling(self) -> "Sampling":
        """What reshapes the distribution.

        Example:
            >>> GenerationOptions(temperature=1.0, top_k=20).sampling().top_k
            20
        """
        from cosmic_tl.generation.sampling import Sampling

        found = Sampling(self.top_k, self.top_p, self.repetition_penalty)
        found.check(self.temperature)
        return found


@dataclass(frozen=True)
class RunOptions:
    """A finished run, whose direction a command goes on with."""

    directory: Annotated[Path, typer.Argument(help="A directory that `cosmic-tl run` wrote.")]
    model: Annotated[str | None, typer.Option(help="The model, if it is not the one that the run names.")] = None
    device: Device = None
    device_map: DeviceMap = None
    dtype: DtypeOption = Dtype.float32
    trust_remote_code: RemoteCode = False

    def __post_init__(self) -> None:
        settings_file(self.directory)
        if self.model is not None:
            check_model_path(self.model)

    @cached_property
    def run(self) -> "Run":
        """The run."""
        from cosmic_tl.runs.result import Run

        return Run.load(self.directory)

    @property
    def mode(self) -> "ModeName":
        """The run's mode."""
        return self.run.selection.mode

    @property
    def edits(self) -> "Edits":
        """How the run removed and induced its direction."""
        return self.run.selection.edits

    def chat(self) -> "ChatFormat":
        """The run's formatting."""
        return self.run.settings.chat

    def load(self) -> "tuple[TransformerBridge, Direction]":
        """The model and the direction."""
        name, direction = self.model or self.run.identity["model"], self.run.selection.direction
        bridge = _load(name, self.device, self.device_map, self.dtype, self.trust_remote_code)
        direction.check(bridge)
        return bridge, direction

    def test_prompts(self, n: int | None = None) -> tuple[list[str], list[str]]:
        """The run's test prompts of the positive and the negative side, the first `n` of each."""
        return self.run.test_prompts(n)
