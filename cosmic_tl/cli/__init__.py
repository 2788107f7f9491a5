"""The command line: parses, calls the library, prints. Heavy imports wait until a command needs them."""

import io
import os
import sys
import warnings

import cyclopts

import cosmic_tl
from cosmic_tl.cli import causal, edit, evaluate, export, follow, pair, select, status, study, suffix
from cosmic_tl.cli.errors import in_one_line
from cosmic_tl.cli.output import printable
from cosmic_tl.errors import CosmicError

app = cyclopts.App(
    name="cosmic-tl",
    help="Find the direction in a model's activations that carries a concept, and test whether it really does.",
    version=cosmic_tl.__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for number, command in enumerate(
    one
    for part in (select, study, status, edit, export, causal, follow, evaluate, pair, suffix)
    for one in part.COMMANDS
):
    app.command(command, sort_key=number)


def _quiet() -> None:
    """Leave the terminal to the results: no library progress bars, no warnings about library internals."""
    import logging

    # Threads that spin while they wait stall each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def main() -> None:
    """Entry point: one line and exit code 2 for bad input; a command that is stopped with Ctrl-C exits with 130.

    Example:
        >>> callable(main)
        True
    """
    _quiet()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(print_error=False, exit_on_error=False)
    except cyclopts.CycloptsError as error:
        code = _refuse(in_one_line(error))
    except CosmicError as error:
        code = _refuse(str(error))
    except BrokenPipeError:  # whoever reads the output has seen enough: cosmic-tl … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        print("Stopped; give the same command again to go on.", file=sys.stderr)
        code = 130
    sys.exit(code)


def _refuse(message: str) -> int:
    print(f"Error: {printable(message)}", file=sys.stderr)
    return 2
