"""Tokens on the colour of their numbers, as HTML for notebooks and pages, light and dark: no script, no style sheet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

BELOW, ABOVE = (0, 114, 178), (213, 94, 0)
"""The figures' colours of the negative and the positive class, safe for colour-blind readers."""
STRONGEST = 0.7
"""Opacity of the strongest colour. On any of them, text has a contrast of 4.5 or more: dark on white, and light on black."""


@dataclass(frozen=True)
class Token:
    """A token to show."""

    text: str
    value: float
    own: bool = True
    """Whether it is the user's or the model's text; the template's is set in small type."""


@dataclass(frozen=True)
class Scale:
    """Which number has which colour."""

    centre: float
    """Without colour."""
    reach: float
    """From there to the strongest colours, which all numbers farther away have too."""

    def span(self, text: str, value: float, small: bool = False) -> str:
        """A text on the colour of a number, which is its tooltip.

        Example:
            >>> Scale(0.5, 1.0).span("<b>", 1.0)
            '<span title="1.00" style="background:rgba(213,94,0,0.35);margin-right:1px">&lt;b&gt;</span>'
        """
        share = max(-1.0, min(1.0, (value - self.centre) / self.reach))
        red, green, blue = ABOVE if share > 0 else BELOW
        style = (
            f"background:rgba({red},{green},{blue},{STRONGEST * abs(share):.2f});margin-right:1px"
            + ";font-size:.8em" * small
        )
        return f'<span title="{value:.2f}" style="{style}">{escape(_visible(text))}</span>'


def _visible(text: str) -> str:
    """A token with a sign for each line break, and without characters that change the direction of writing."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown.replace("\n", "↵\n")


def as_coloured(
    columns: Mapping[str, Mapping[str, Sequence[Token]]], scale: Scale, legend: Mapping[str, float], about: str
) -> str:
    """Texts side by side, each token on the colour of its number.

    Args:
        columns: The tokens by name of the column and of the part, such as the prompt.
        scale: Their colours.
        legend: Numbers to explain, by what they are called.
        about: What the numbers are.

    Example:
        >>> shown = as_coloured({"baseline": {"prompt": [Token("hi", 1.0)]}}, Scale(0.5, 1.0), {"positive class": 1.0}, "r̂")
        >>> shown.count("<span")
        2
    """
    texts = "".join(
        f'<div style="flex:1 1 200px;min-width:0"><strong>{escape(name)}</strong>'
        + "".join(f"<div><small>{escape(part)}</small></div>{_paragraph(some, scale)}" for part, some in parts.items())
        + "</div>"
        for name, parts in columns.items()
    )
    explained = " ".join(scale.span(name, value) for name, value in legend.items())
    return (
        f"<p>{escape(about)}: {explained}</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:8px 24px;text-align:left">{texts}</div>'
    )


def _paragraph(tokens: Sequence[Token], scale: Scale) -> str:
    text = "".join(scale.span(one.text, one.value, small=not one.own) for one in tokens)
    return (
        f'<p dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6;margin:0 0 8px">{text}</p>'
    )
