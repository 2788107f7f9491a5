"""Text as Plotly shows it, and its width and line breaks, which Plotly does not compute."""

import re
from html import escape, unescape

NARROW, WIDE = set("ijlIft|.,:;'!()[]/\\` "), set("mwMW@%—")


def as_text(text: str) -> str:
    """Any text as one that Plotly shows as it is: without tags, and without characters that change the direction of writing.

    Quotes are left alone, since Plotly shows `&quot;` as it stands.

    Example:
        >>> as_text('a "<b>"')
        'a "&lt;b&gt;"'
    """
    return escape(
        "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text), quote=False
    )


def text_width(text: str, size: int | float) -> float:
    """Approximate width of a text in pixels; tags have no width, and an entity that of its character.

    Example:
        >>> text_width("S<sub>x</sub>&lt;", 10) == text_width("Sx<", 10)
        True
    """
    shown = unescape(re.sub(r"<[^>]*>", "", text))
    return size * sum(0.3 if c in NARROW else 0.85 if c in WIDE else 0.57 for c in shown)


def wrapped(text: str, width: int | float, size: int | float) -> list[str]:
    """Break a text at spaces into lines no wider than `width` pixels; earlier breaks are undone.

    Example:
        >>> wrapped("one two<br>three", 80, 10)
        ['one two three']
        >>> wrapped("one two three", 50, 10)
        ['one two', 'three']
    """
    lines: list[str] = []
    for word in text.replace("<br>", " ").split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
