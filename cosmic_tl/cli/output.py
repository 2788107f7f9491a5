"""What commands print."""

from pathlib import Path
from typing import TYPE_CHECKING

from cosmic_tl.errors import CosmicError

if TYPE_CHECKING:
    import pandas as pd

    from cosmic_tl.runs.result import Run


def printable(text: str) -> str:
    """Model output without the control characters that could drive a terminal.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a�[2Jb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


_HEADS = {"garbled": "garbled", "cross_entropy": "nats/token", "well_formed": "formed", "names_topic": "topic"}


def print_result(result: "Run") -> None:
    """What a run found, as tables."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cosmic_tl.generation.sampling import generation_sentence

    console = Console()
    summary = result.summary
    console.print(repr(result.selection), markup=False, highlight=False, soft_wrap=True)
    frame, terms = result.effects.table, result.effects.terms
    title = f"{terms.outcome.capitalize()} ({summary['model']}, {summary['mode']} mode)"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    fluency = [name for name in ("garbled", "cross_entropy", "well_formed", "names_topic") if name in frame]
    for head in (
        "prompts",
        "condition",
        escape("share [95 %]" if "seeds" not in frame else "share [95 %, or range]"),
        *(_HEADS[name] for name in fluency),
    ):
        table.add_column(head, justify="left" if head in ("prompts", "condition") else "right", no_wrap=True)
    for _, row in frame.iterrows():
        numbers = [f"{row[name]:.2f}" if row[name] == row[name] else "–" for name in fluency]
        share = f"{row.rate:.0%} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
        seeds = f" ({row.seeds} seeds)" if row.get("seeds", 0) > 1 else ""
        table.add_row(terms.sides[row.side], row.condition + seeds, escape(share), *numbers)
    console.print(table)
    sentence = generation_sentence(result.effects.generation)
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    tests = result.effects.paired_table()
    for (side, condition), some in tests.groupby(["side", "condition"], sort=False):
        baseline = some.against == "baseline"
        console.print(
            f"{condition} on {terms.sides[side]} prompts (McNemar): p = {some.p_value[baseline].max():.2g} against the "
            f"baseline, at most {some.p_value[~baseline].max():.2g} against a placebo",
            highlight=False,
            soft_wrap=True,
        )
    for note in summary["notes"][len(result.selection.notes) :]:  # the selection has said its own
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)
    took = "it was complete already, and nothing was changed" if result.was_complete else f"{summary['seconds']} s"
    console.print(
        f"Everything is in {result.out} ({took}); open {result.out / 'report.html'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def check_folder(csv: Path | None) -> None:
    """The folder of a table that is written at the end has to be there: hours may pass before.

    Example:
        >>> check_folder(Path("nowhere/table.csv"))
        Traceback (most recent call last):
        cosmic_tl.errors.CosmicError: csv: no folder 'nowhere'; make it first
    """
    if csv is not None and not csv.parent.is_dir():
        raise CosmicError(f"csv: no folder {str(csv.parent)!r}; make it first")


def write_csv(frame: "pd.DataFrame", path: Path | None) -> None:
    """A table into a file, whole, if one was asked for.

    Example:
        >>> import pandas as pd
        >>> write_csv(pd.DataFrame({"alpha": [0.5]}), None)
    """
    from cosmic_tl._util.files import write_atomically

    if path is not None:
        write_atomically(path, frame.to_csv(index=False))
        print(f"The table is in {path}")


def print_frame(frame: "pd.DataFrame") -> None:
    """A table, whole, with untrusted text made harmless.

    Example:
        >>> import pandas as pd
        >>> print_frame(pd.DataFrame({"alpha": [0.5], "rate": [1.0]}))
         alpha  rate
           0.5     1
    """
    print(printable(frame.to_string(index=False, float_format="%.4g", na_rep="–")))
