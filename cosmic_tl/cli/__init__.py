"""The command line: parses, calls the library, prints. Heavy imports wait until a command needs them."""

import sys
import warnings

import typer

from cosmic_tl.cli import check, edit, evaluate, select, suffix
from cosmic_tl.cli.output import printable
from cosmic_tl.errors import CosmicError

app = typer.Typer(
    help="Find the direction in a model's activations that carries a concept, and test whether it really does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (select, edit, evaluate, suffix, check):
    for command in part.COMMANDS:
        app.command()(command)


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
        typer.echo(f"Error: {printable(str(error))}", err=True)
        sys.exit(2)
