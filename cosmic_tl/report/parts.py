"""Pieces of HTML that several sections share."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from cosmic_tl.metrics.rates import Rate


def joined(parts: Iterable[Markup]) -> Markup:
    """Pieces one after the other.

    Example:
        >>> joined([Markup("<i>a</i>"), Markup("b")])
        Markup('<i>a</i>b')
    """
    return Markup("").join(parts)


def percent(rate: Rate) -> Markup:
    """A rate with its interval.

    Example:
        >>> percent(Rate(0.5, 0.25, 0.75, 10))
        Markup('<strong>50%</strong> <span class="interval">[25%, 75%]</span>')
    """
    return Markup('<strong>{:.0%}</strong> <span class="interval">[{:.0%}, {:.0%}]</span>').format(
        rate.value, rate.low, rate.high
    )


def spread(values: "pd.Series[float]", unit: str) -> str:
    """A number under one condition, or the range over several seeds.

    Example:
        >>> spread(pd.Series([0.75, 3.6]), "nats"), spread(pd.Series([float("nan")]), "nats")
        ('0.75 to 3.60 nats', '– nats')
    """
    known = sorted(values.astype(float).dropna())
    shown = [f"{value:.2f}" for value in ([known[0], known[-1]] if len(known) > 1 else known)]
    return f"{' to '.join(shown) or '–'} {unit}"


def table(frame: pd.DataFrame, label: str) -> Markup:
    """A table that scrolls by itself where the page is narrow.

    Example:
        >>> "&lt;b&gt;" in table(pd.DataFrame({"name": ["<b>"]}), "Names")
        True
    """
    shown = frame.rename(columns=lambda name: str(name).replace("_", " "))
    text = shown.to_html(index=False, float_format=lambda value: f"{value:.4g}", border=0, na_rep="–", escape=True)
    return scrolling(Markup(text.replace("<th>", '<th scope="col">')), label)


def scrolling(content: Markup, label: str) -> Markup:
    """Something wide, in a box that the keyboard reaches and scrolls.

    Example:
        >>> scrolling(Markup("<p>wide</p>"), "Words")
        Markup('<div class="scroll" role="region" aria-label="Words" tabindex="0"><p>wide</p></div>')
    """
    return Markup('<div class="scroll" role="region" aria-label="{}" tabindex="0">{}</div>').format(label, content)


def embedded(key: str, data: Any, **options: Any) -> Markup:
    """Data for the page's script, which no text inside can end or start.

    Args:
        key: The element's id.
        data: What `json` takes.
        **options: For `htmlsafe_json_dumps`.

    Example:
        >>> print(embedded("words", ["</b>"]))
        <script type="application/json" id="words">["\\u003c/b\\u003e"]</script>
    """
    return Markup('<script type="application/json" id="{}">{}</script>').format(
        key, htmlsafe_json_dumps(data, **options)
    )
