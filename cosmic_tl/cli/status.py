"""The command that says how far a run is."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cosmic_tl._util.files import settings_file
from cosmic_tl.cli.derive import derived
from cosmic_tl.cli.output import printable

if TYPE_CHECKING:
    from rich.table import Table

    from cosmic_tl.runs.run_progress import Progress

INTERVAL = 1.0
"""Seconds between looks."""


@derived()
def status(directory: Path, *, watch: bool = False) -> None:
    """How far a run is, and while workers share it, which of them has which piece.

    Args:
        directory: A directory that `run` writes, or has written.
        watch: Go on looking until the run has ended.
    """
    settings_file(directory)
    from rich.console import Console
    from rich.live import Live

    from cosmic_tl.runs.run_progress import read_progress

    found = read_progress(directory)
    if watch and Console().is_terminal:
        with Live(console=Console(), auto_refresh=False) as live, suppress(KeyboardInterrupt):
            while True:
                live.update(_shown(found), refresh=True)
                if not found.is_running:
                    break
                time.sleep(INTERVAL)
                found = read_progress(directory)
        return
    while watch and found.is_running:
        time.sleep(INTERVAL)
        found = read_progress(directory)
    Console(markup=False, emoji=False, highlight=False).print(_shown(found))


def _shown(found: "Progress") -> "Table | str":
    """What is said, above a table of the pieces if there are any."""
    from rich.box import SIMPLE
    from rich.table import Table

    if found.pieces.empty:
        return printable(found.said)
    table = Table(title=printable(found.said), title_justify="left", title_style="", box=SIMPLE)
    for name in found.pieces:  # in a narrow terminal it is the pieces' names that are broken
        right = name in ("tries", "seconds")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "piece")
    # What is under way first: a terminal cuts a long table off at its end.
    order = found.pieces.state.map({"running": 0, "waiting": 1}).fillna(2)
    for row in found.pieces.loc[order.sort_values(kind="stable").index].itertuples(index=False):
        cells = ["" if value is None or value != value else str(value) for value in row]
        table.add_row(*map(printable, cells))
    return table


COMMANDS = (status,)
