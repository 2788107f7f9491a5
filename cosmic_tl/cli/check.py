"""The command that checks the toolkit on a model."""

from typing import Annotated

import typer

from cosmic_tl.cli.options import ChatOptions, DataOptions, ModelOptions, grouped
from cosmic_tl.cli.output import printable


@grouped
def check(
    model: ModelOptions,
    data: DataOptions,
    chat: ChatOptions,
    n: Annotated[int, typer.Option(help="Prompts per side.")] = 4,
) -> None:
    """Check positions, activations, scores, edits, completions, memory and speed on a model; exit code 1 if one fails."""
    from cosmic_tl.check.model_check import check_model

    format_, contrast = chat.format(), data.load()
    found = check_model(model.load(), contrast, chat=format_, n=n, on_check=lambda one: typer.echo(printable(str(one))))
    typer.echo("All checks hold." if found.ok else "Some checks FAILED: do not rely on results of this model.")
    raise typer.Exit(0 if found.ok else 1)


COMMANDS = (check,)
