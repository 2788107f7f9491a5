"""Figures as the pages draw them: at two widths, without title and theme, which are the page's."""

from dataclasses import dataclass, replace

from markupsafe import Markup

from cosmic_tl.figures.layout import META, Figure, Size, lay_out
from cosmic_tl.report.parts import in_script

WIDTHS = {"wide": Size(684, 13.0), "narrow": Size(336, 11.5)}
"""Sizes for a screen or an A4 page, and for a phone."""
SQUARE = 500
"""Maximum width of a figure that is as high as it is wide."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure in a page. Its caption and its description for those who cannot see it are in the page's template."""

    figure: Figure

    @property
    def title(self) -> str:
        """The figure's own title as plain text.

        Example:
            >>> Picture(Figure(layout_title_text="S<sub>comply</sub>")).title
            'Scomply'
        """
        return _plain(self.figure.layout.title.text)

    @property
    def subtitle(self) -> str:
        """The figure's own subtitle as plain text.

        Example:
            >>> Picture(Figure()).subtitle
            ''
        """
        return _plain(self.figure.layout.title.subtitle.text or "")

    @property
    def data(self) -> Markup:
        """The figure at each of the `WIDTHS`, as JSON for the page's script."""
        return in_script({name: _at(self.figure, size) for name, size in WIDTHS.items()})


def _plain(text: str) -> str:
    return Markup(text.replace("<br>", " ")).striptags()


def _at(figure: Figure, size: Size) -> Figure:
    """A figure laid out for a width, without title and theme, which are the page's."""
    bare = Figure(figure)
    bare.layout.title = None
    bare.layout.template = "none"
    square = figure.layout.meta[META]["square"]
    return lay_out(bare, replace(size, width=min(size.width, SQUARE)) if square else size)
