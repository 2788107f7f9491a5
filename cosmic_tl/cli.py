"""The command line: parses, calls the library, prints. Heavy imports wait until a command needs them."""

import json
import shlex
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cosmic_tl.errors import CosmicError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from cosmic_tl.runs import RunResult

app = typer.Typer(
    help="Find the direction in a model's activations that carries a concept, and test whether it really does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Mode(str, Enum):
    """How a direction is removed and induced."""

    linear = "linear"
    affine = "affine"


class Thinking(str, Enum):
    """What becomes of a thinking block that the template or the model opens."""

    close = "close"
    open = "open"


class Dtype(str, Enum):
    """Number formats of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelArgument = Annotated[str, typer.Argument(help="'demo', a directory in Hugging Face format, or a hub id.")]
Device = Annotated[str | None, typer.Option(help="Where to run; chosen by TransformerLens if not given.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices and memory: auto, balanced, …")]
DtypeOption = Annotated[Dtype, typer.Option(help="Number format of the weights.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Prompts = Annotated[str | None, typer.Option(help="'demo', or a .json, .jsonl or .csv file with both sides.")]
Positive = Annotated[str | None, typer.Option(help="Prompts that show the concept: a file or a data set.")]
Negative = Annotated[str | None, typer.Option(help="Prompts that do not: a file or a data set.")]
Column = Annotated[str | None, typer.Option(help="Column that holds the prompts.")]
HfSplit = Annotated[str, typer.Option(help="Split of a Hugging Face data set to read.")]
ModeOption = Annotated[Mode, typer.Option(help="linear: ablation and addition. affine: ACE for both.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
Prefix = Annotated[str, typer.Option(help="Text that the answer begins with.")]
ThinkingOption = Annotated[Thinking, typer.Option(help="Close a thinking block that is opened, or leave it.")]
TemplateOptions = Annotated[list[str] | None, typer.Option(help="Chat-template variable, name=value.")]
PositionsOption = Annotated[int | None, typer.Option(help="How many of the last tokens; default: all after the text.")]
EvaluationLayers = Annotated[str | None, typer.Option(help="Layers to compare at, as 3,4; default: ranked.")]
MaxLayerShare = Annotated[float, typer.Option(help="Source layers from this share of the depth on are out.")]
LastPositionRule = Annotated[bool, typer.Option(help="At position -1 drop unusually late layers.")]
NVal = Annotated[int, typer.Option(help="Validation prompts a side.")]
FullTable = Annotated[bool, typer.Option("--full-table", help="Also compute what the choice does not depend on.")]


def _printable(text: str) -> str:
    """Model output without the control characters that could drive a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _template_options(options: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise CosmicError(f"template_option: expected name=value, found {option!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise CosmicError(f"evaluation_layers: expected numbers like 3,4, found {text!r}") from error


def _load(
    model: str, device: str | None, device_map: str | None, dtype: Dtype, trust_remote_code: bool
) -> "TransformerBridge":
    from cosmic_tl.models import load_model

    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    if device_map is not None:
        options["device_map"] = device_map
    return load_model(model, device, dtype.value, **options)


@app.command()
def run(
    model: ModelArgument = "demo",
    out: Annotated[Path, typer.Option(help="Directory for the results.")] = Path("cosmic-run"),
    prompts: Prompts = None,
    positive: Positive = None,
    negative: Negative = None,
    column: Column = None,
    hf_split: HfSplit = "train",
    mode: ModeOption = Mode.affine,
    alpha: Annotated[float, typer.Option(help="Strength of the induction.")] = 1.0,
    system: System = None,
    prefix: Prefix = "",
    thinking: ThinkingOption = Thinking.close,
    template_option: TemplateOptions = None,
    positions: PositionsOption = None,
    evaluation_layers: EvaluationLayers = None,
    evaluation_share: Annotated[float, typer.Option(help="Share of the layers that the ranking keeps.")] = 0.1,
    exclude_first_half: Annotated[
        bool, typer.Option("--exclude-first-half", help="Rank the second half only.")
    ] = False,
    max_kl: Annotated[float, typer.Option(help="Most KL (nats) that removal may cost on negative prompts.")] = 0.1,
    max_layer_share: MaxLayerShare = 0.8,
    last_position_rule: LastPositionRule = True,
    n_train: Annotated[int, typer.Option(help="Training prompts a side.")] = 180,
    n_val: NVal = 100,
    n_test: Annotated[int, typer.Option(help="Test prompts a side.")] = 100,
    full_table: FullTable = False,
    successive_halving: Annotated[
        bool, typer.Option("--successive-halving", help="Approximate: weed out candidates on some of the prompts.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of splits, sampling and the random control.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Rows a forward pass; changes no result. Default: 32; in the selection by memory."),
    ] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: DtypeOption = Dtype.float32,
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the directory.")] = False,
) -> None:
    """Find a direction with COSMIC, remove and induce it, and write a report.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from cosmic_tl.chat import ChatFormat
    from cosmic_tl.prompts import load_prompts
    from cosmic_tl.runs import RunSettings
    from cosmic_tl.runs import run as run_all
    from cosmic_tl.selection.options import CosmicOptions

    settings = RunSettings(
        CosmicOptions(
            mode=mode.value,
            alpha=alpha,
            evaluation_layers=_layers(evaluation_layers),
            evaluation_share=evaluation_share,
            exclude_first_half=exclude_first_half,
            max_kl=max_kl,
            max_layer_share=max_layer_share,
            last_position_rule=last_position_rule,
            n_positions=positions,
            n_train=n_train,
            n_val=n_val,
            full_table=full_table,
            successive_halving=successive_halving,
        ),
        ChatFormat(system, prefix, thinking.value, _template_options(template_option or [])),
        n_test,
        max_new_tokens,
        temperature,
        seed,
        batch_size,
    )
    contrast = load_prompts(prompts, positive=positive, negative=negative, column=column, hf_split=hf_split, seed=seed)
    command = shlex.join(["cosmic-tl", *sys.argv[1:]])
    bridge = _load(model, device, device_map, dtype, trust_remote_code)
    try:
        result = run_all(bridge, contrast, out, settings, command, overwrite)
    except KeyboardInterrupt as stop:
        typer.echo("Stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from stop
    _print_result(result)


@app.command()
def plan(
    model: ModelArgument = "demo",
    prompts: Prompts = None,
    positive: Positive = None,
    negative: Negative = None,
    column: Column = None,
    hf_split: HfSplit = "train",
    mode: ModeOption = Mode.affine,
    system: System = None,
    prefix: Prefix = "",
    thinking: ThinkingOption = Thinking.close,
    template_option: TemplateOptions = None,
    positions: PositionsOption = None,
    evaluation_layers: EvaluationLayers = None,
    max_layer_share: MaxLayerShare = 0.8,
    last_position_rule: LastPositionRule = True,
    n_val: NVal = 100,
    full_table: FullTable = False,
    seed: Annotated[int, typer.Option(help="Of splits.")] = 0,
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: DtypeOption = Dtype.float32,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Print the passes that a selection would make and spare, and their cost, without making them.

    Without --evaluation-layers the last layer is assumed, which is the most expensive.
    """
    from cosmic_tl.chat import ChatFormat
    from cosmic_tl.prompts import load_prompts
    from cosmic_tl.selection.cosmic import plan_selection
    from cosmic_tl.selection.options import CosmicOptions

    options = CosmicOptions(
        mode=mode.value,
        evaluation_layers=_layers(evaluation_layers),
        max_layer_share=max_layer_share,
        last_position_rule=last_position_rule,
        n_positions=positions,
        n_val=n_val,
        full_table=full_table,
    )
    chat = ChatFormat(system, prefix, thinking.value, _template_options(template_option or []))
    contrast = load_prompts(prompts, positive=positive, negative=negative, column=column, hf_split=hf_split, seed=seed)
    bridge = _load(model, device, device_map, dtype, trust_remote_code)
    typer.echo(repr(plan_selection(bridge, contrast, options, chat)))


_HEADS = {"cross_entropy": "nats/token", "well_formed": "formed", "names_topic": "topic"}


def _print_result(result: "RunResult") -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    summary = result.summary
    console.print(repr(result.selection), markup=False, highlight=False, soft_wrap=True)
    frame = result.effects.table()
    table = Table(title=f"Refusals ({summary['model']}, {summary['mode']} mode)", title_justify="left", box=SIMPLE)
    fluency = [name for name in ("cross_entropy", "well_formed", "names_topic") if name in frame]
    for head in ("prompts", "condition", escape("refusals [95 %]"), *(_HEADS[name] for name in fluency)):
        table.add_column(head, justify="left" if head in ("prompts", "condition") else "right", no_wrap=True)
    for _, row in frame.iterrows():
        numbers = [f"{row[name]:.2f}" if row[name] == row[name] else "–" for name in fluency]
        refusals = f"{row.refusal_rate:.0%} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
        table.add_row(row.kind, row.condition, escape(refusals), *numbers)
    console.print(table)
    for note in summary["notes"]:
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{summary['seconds']} s; open {result.out / 'report.html'}", markup=False, highlight=False, soft_wrap=True
    )


@app.command()
def steer(
    directory: Annotated[Path, typer.Argument(help="A directory that `cosmic-tl run` wrote.")],
    prompt: Annotated[str, typer.Argument(help="An instruction.")],
    alpha: Annotated[
        float | None, typer.Option(help="Strength; without it both removal and induction at 1 are shown.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model, if it is not the one that the run names.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 0,
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: DtypeOption = Dtype.float32,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Complete a prompt with and without the direction of a run."""
    from cosmic_tl.chat import ChatFormat
    from cosmic_tl.directions.artifact import Direction
    from cosmic_tl.evaluation.completions import complete
    from cosmic_tl.runs import read_settings
    from cosmic_tl.selection.modes import induction, removal

    settings = read_settings(directory)
    mode = settings["settings"]["selection"]["mode"]
    bridge = _load(model or settings["model"], device, device_map, dtype, trust_remote_code)
    direction = Direction.load(directory / "direction.safetensors", bridge)
    strength = 1.0 if alpha is None else alpha
    answers: dict[str, Any] = {"without": ()}
    if alpha is None:
        answers[f"removal ({mode})"] = removal(direction, mode)
    answers[f"induction ({mode}, alpha {strength:g})"] = induction(direction, mode, strength)
    for name, interventions in answers.items():
        chat = ChatFormat(**settings["settings"]["chat"])
        text = complete(bridge, [prompt], interventions, chat, max_new_tokens, temperature, seed)[0]
        typer.echo(f"[{name}]\n{_printable(text)}\n")


def _quiet() -> None:
    """Leave the terminal to the results: no library progress bars, no warnings about library internals."""
    import logging
    import os

    # Threads that spin while they wait stall each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def main() -> None:
    """Entry point: one line and exit code 2 for bad input; a run that is stopped with Ctrl-C exits with 130.

    Example:
        >>> callable(main)
        True
    """
    _quiet()
    try:
        app(standalone_mode=True)
    except CosmicError as error:
        typer.echo(f"Error: {_printable(str(error))}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
