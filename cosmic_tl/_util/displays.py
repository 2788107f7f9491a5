"""Results as the last line of a cell: some lines and a table, as text and as HTML."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd


def number(value: float) -> str:
    """Three digits after the point, and thousands apart.

    Example:
        >>> number(0.12345), number(300000.0)
        ('0.123', '300,000')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def as_text(lines: Sequence[str], table: pd.DataFrame) -> str:
    """Lines, and under them a table whose missing values are blank.

    Example:
        >>> print(as_text(["Two rates"], pd.DataFrame({"kind": ["harmful", "harmless"], "rate": [1, None]})))
        Two rates
            kind  rate
         harmful 1.000
        harmless
    """
    return "\n".join([*lines, table.to_string(index=False, float_format=number, na_rep="")])


def as_html(lines: Sequence[str], table: pd.DataFrame, html: Sequence[str] = ()) -> str:
    """The same for Jupyter: the first line, the others as a list, and the table; all of it escaped.

    Args:
        lines: Above the table.
        table: What is shown.
        html: Columns that are HTML already, with their text escaped.

    Example:
        >>> as_html(["<b>"], pd.DataFrame({"rate": [0.5]})).splitlines()[0]
        '<p>&lt;b&gt;</p><table class="dataframe">'
    """
    head = "".join(f"<p>{escape(line)}</p>" for line in lines[:1])
    points = "".join(f"<li>{escape(line.strip())}</li>" for line in lines[1:])
    options: dict[str, Any] = {"index": False, "float_format": number, "na_rep": "", "border": 0}
    if html:
        texts = [column for column in table.select_dtypes(exclude="number") if column not in html]
        safe = dict.fromkeys(texts, lambda value: escape(str(value))) | dict.fromkeys(html, str)
        options |= {"escape": False, "formatters": safe}
    shown: str = table.to_html(**options)
    return f"{head}{f'<ul>{points}</ul>' if points else ''}{shown}"
