"""The figures of a run, each with what it shows in words."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from markupsafe import Markup

from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.figures.effects import plot_refusal_rates
from cosmic_tl.figures.export import figure_json
from cosmic_tl.figures.layout import Figure, Size, lay_out
from cosmic_tl.figures.selection import plot_direction_cosines, plot_layer_similarity, plot_scores, plot_similarity
from cosmic_tl.figures.style import TEMPLATES
from cosmic_tl.report.parts import embedded, joined
from cosmic_tl.selection.result import Selection

WIDTHS = {"wide": Size(684, 13.0), "narrow": Size(336, 11.5)}
"""On a screen or an A4 page, and on a phone."""
SQUARE = 500
"""Most width of a figure that is as high as it is wide."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure for a page."""

    figure: Figure
    caption: str
    """How to read it."""
    alt: str
    """What is to be seen in it, for those who do not see it."""

    @property
    def heading(self) -> tuple[str, str]:
        """The figure's own title and subtitle as plain text.

        Example:
            >>> Picture(Figure(layout_title_text="S<sub>comply</sub>"), "", "").heading
            ('Scomply', '')
        """
        title = self.figure.layout.title
        return Markup(title.text).striptags(), Markup(title.subtitle.text or "").striptags()


def pictures(selection: Selection, effects: Effects, similarity: LayerSimilarity) -> list[Picture]:
    """All figures of a run.

    Args:
        selection: The choice and its score table.
        effects: Completions under every condition.
        similarity: Cosines before and after the intervention.
    """
    return [
        _rates(effects),
        _scores(selection),
        _similarity(selection, similarity),
        _classes(selection),
        _directions(selection),
    ]


def _rates(effects: Effects) -> Picture:
    terms, shares = effects.terms, effects.table
    seen = "; ".join(
        f"{terms.sides[row.side]} prompts, {row.condition}: {row.rate:.0%}" for _, row in shares.iterrows()
    )
    return Picture(
        plot_refusal_rates(
            shares, terms.rate, (f"{terms.sides['positive']} prompts", f"{terms.sides['negative']} prompts")
        ),
        f"Share of {terms.outcome} without steering, with the direction removed or induced, and with placebos in its place: "
        "random directions, and differences of randomly labelled prompts.",
        f"Bar chart of {terms.outcome}. {seen}.",
    )


def _scores(selection: Selection) -> Picture:
    chosen = selection.direction
    layers, positions = len(selection.layer_similarity), len(selection.positions)
    return Picture(
        plot_scores(selection, remarks=False),
        selection.caption,
        f"Heatmaps over {layers} layers and {positions} token positions, one a measure. Layer {chosen.layer}, position "
        f"{chosen.position} is framed; {int((~selection.table.kept).sum())} of {len(selection.table)} candidates are crossed "
        f"out by filters. Chosen: {selection.basis}.",
    )


def _similarity(selection: Selection, similarity: LayerSimilarity) -> Picture:
    acts = (
        "Removal acts at every layer, induction at the chosen one."
        if selection.mode == "linear"
        else "Both interventions act at the input of the chosen layer."
    )
    last = [float(values[-1, -1]) for values in (similarity.before, similarity.removal, similarity.induction)]
    return Picture(
        plot_similarity(similarity),
        f"Validation prompts: cosine between class means of the stream that leaves each block. {acts}",
        f"Three heatmaps over layers and positions. At the last layer and position: positive against negative prompts "
        f"{last[0]:.2f}; positive prompts with the direction removed against negative ones {last[1]:.2f}; negative prompts with "
        f"it induced against positive ones {last[2]:.2f}.",
    )


def _classes(selection: Selection) -> Picture:
    values = selection.layer_similarity
    caption = "Cosine between the means of positive and negative training prompts. "
    if selection.evaluation_layers:
        caption += "COSMIC's scores are read at the marked evaluation layers."
    else:
        caption += "Shown for orientation: selection by refusal tokens reads the output, and no layer's similarity."
    lowest = int(values.argmin())
    marked = ", ".join(map(str, selection.evaluation_layers))
    return Picture(
        plot_layer_similarity(selection),
        caption,
        f"Line over {len(values)} layers; lowest at layer {lowest}, {float(values[lowest]):.2f}."
        + (f" Marked as evaluation layers: {marked}." if marked else ""),
    )


def _directions(selection: Selection) -> Picture:
    position = selection.direction.position
    return Picture(
        plot_direction_cosines(selection.candidates, position),
        f"Whether the layers agree on one direction, at position {position}.",
        f"Heatmap of the cosines between the candidate directions of all pairs of layers at position {position}.",
    )


def drawn(all_pictures: list[Picture]) -> Markup:
    """Figures, and the data from which the page's script draws them, at the width and in the theme of the screen."""

    def parts() -> Iterator[Markup]:
        for number, one in enumerate(all_pictures, 1):
            key = f"figure-{number}"
            yield Markup(
                '<figure aria-labelledby="{0}-title"><h3 id="{0}-title">{1}</h3><p class="muted">{2}</p>'
                '<div class="plot" data-alt="{3}" data-figure="{0}"></div><figcaption>{4}</figcaption></figure>'
            ).format(key, *one.heading, one.alt, one.caption)
            yield embedded(key, {name: _at(one.figure, size) for name, size in WIDTHS.items()}, dumps=figure_json)
        yield embedded("templates", TEMPLATES, dumps=figure_json)

    return joined(parts())


def _at(figure: Figure, size: Size) -> Figure:
    """A figure without title and theme, which are the page's, laid out for a width."""
    bare = Figure(figure)
    bare.layout.title = None
    bare.layout.template = "none"
    square = figure.layout.meta["plan"]["square"]
    return lay_out(bare, replace(size, width=min(size.width, SQUARE)) if square else size)
