"""What commands print."""

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

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


def say(what: object, file: TextIO | None = None) -> None:
    """Print anything, without what could drive a terminal.

    Args:
        what: A text, or a result.
        file: Where to. Default the standard output.

    Example:
        >>> say("done")
        done
    """
    print(printable(str(what)), file=file, flush=True)


_HEADS = {"garbled": "garbled", "cross_entropy": "nats/token", "well_formed": "formed", "names_topic": "topic"}


def print_result(result: "Run") -> None:
    """What a run found, as tables."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from cosmic_tl.generation.sampling import generation_sentence

    summary = result.summary
    say(result.selection)
    frame, terms = result.effects.table, result.effects.terms
    title = f"{terms.outcome.capitalize()} ({summary['model']}, {summary['mode']} mode)"
    table = Table(title=printable(title), title_justify="left", box=SIMPLE)
    fluency = [name for name in _HEADS if name in frame]
    heads = ["prompts", "condition", "share [95 %]" if "seeds" not in frame else "share [95 %, or range]"]
    for number, head in enumerate([*heads, *(_HEADS[name] for name in fluency)]):
        table.add_column(printable(head), justify="left" if number < 2 else "right", no_wrap=True)
    for _, row in frame.iterrows():
        numbers = [f"{row[name]:.2f}" if row[name] == row[name] else "–" for name in fluency]
        share = f"{row.rate:.0%} [{100 * row.low:.0f}, {100 * row.high:.0f}]"
        seeds = f" ({row.seeds} seeds)" if row.get("seeds", 0) > 1 else ""
        table.add_row(printable(terms.sides[row.side]), printable(row.condition + seeds), printable(share), *numbers)
    Console(markup=False, emoji=False, highlight=False).print(table)
    say(generation_sentence(result.effects.generation))
    for (side, condition), some in result.effects.paired_table().groupby(["side", "condition"], sort=False):
        baseline = some.against == "baseline"
        say(
            f"{condition} on {terms.sides[side]} prompts (McNemar): p = {some.p_value[baseline].max():.2g} against the "
            f"baseline, at most {some.p_value[~baseline].max():.2g} against a placebo"
        )
    for note in summary["notes"][len(result.selection.notes) :]:  # the selection has said its own
        say(f"Note: {note}")
    took = "it was complete already, and nothing was changed" if result.was_complete else f"{summary['seconds']} s"
    say(f"Everything is in {result.out} ({took}); open {result.out / 'report.html'}")


def write_csv(frame: "pd.DataFrame", path: Path | None) -> None:
    """A table into a file, whole, if one was asked for.

    Example:
        >>> import pandas as pd
        >>> write_csv(pd.DataFrame({"alpha": [0.5]}), None)
    """
    from cosmic_tl._util.files import write_atomically

    if path is not None:
        write_atomically(path, frame.to_csv(index=False))
        say(f"The table is in {path}")


def print_frame(frame: "pd.DataFrame") -> None:
    """A table, whole, with untrusted text made harmless.

    Example:
        >>> import pandas as pd
        >>> print_frame(pd.DataFrame({"alpha": [0.5], "rate": [1.0]}))
         alpha  rate
           0.5     1
    """
    say(frame.to_string(index=False, float_format="%.4g", na_rep="–"))
