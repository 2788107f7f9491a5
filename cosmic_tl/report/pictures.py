"""The figures of the pages, each with a caption and a description in words."""

from dataclasses import dataclass, replace

from markupsafe import Markup

from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.experiments.sweeps import BASELINE, Sweep
from cosmic_tl.figures.effects import plot_refusal_rates
from cosmic_tl.figures.layout import META, Figure, Size, lay_out
from cosmic_tl.figures.selection import plot_direction_cosines, plot_layer_similarity, plot_scores, plot_similarity
from cosmic_tl.figures.suffixes import plot_head_attention, plot_head_contributions, plot_suffix_cosines
from cosmic_tl.figures.sweeps import plot_sweep
from cosmic_tl.report.parts import in_script
from cosmic_tl.selection.result import Selection
from cosmic_tl.suffixes.analysis import SuffixAnalysis
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, RANDOM

WIDTHS = {"wide": Size(684, 13.0), "narrow": Size(336, 11.5)}
"""Sizes for a screen or an A4 page, and for a phone."""
SQUARE = 500
"""Maximum width of a figure that is as high as it is wide."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure in a page."""

    figure: Figure
    caption: str
    """How to read it."""
    alt: str
    """A description for those who cannot see it."""

    @property
    def title(self) -> str:
        """The figure's own title as plain text.

        Example:
            >>> Picture(Figure(layout_title_text="S<sub>comply</sub>"), "", "").title
            'Scomply'
        """
        return _plain(self.figure.layout.title.text)

    @property
    def subtitle(self) -> str:
        """The figure's own subtitle as plain text.

        Example:
            >>> Picture(Figure(), "", "").subtitle
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


def run_pictures(selection: Selection, effects: Effects, similarity: LayerSimilarity) -> list[Picture]:
    """The figures of a run.

    Args:
        selection: The chosen direction and its score table.
        effects: Completions under every condition.
        similarity: Cosines before and after the edits.
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
        plot_refusal_rates(effects),
        f"Share of {terms.outcome} without an edit, with the direction removed or induced, and with placebos in its place: "
        "random directions, and differences in means of randomly labelled prompts.",
        f"Bar chart of {terms.outcome}. {seen}.",
    )


def _scores(selection: Selection) -> Picture:
    chosen = selection.direction
    layers, positions = len(selection.layer_similarity), len(selection.positions)
    return Picture(
        plot_scores(selection, remarks=False),
        selection.caption,
        f"Heatmaps over {layers} layers and {positions} token positions, one per measure. Layer {chosen.layer}, position "
        f"{chosen.position} is framed; {int((~selection.table.kept).sum())} of {len(selection.table)} candidates are crossed "
        f"out, as filters dropped them. Chosen: {selection.basis}.",
    )


def _similarity(selection: Selection, similarity: LayerSimilarity) -> Picture:
    acts = (
        "Removal acts at every layer, induction at the chosen one."
        if selection.mode == "linear"
        else "Both edits act at the input of the chosen layer."
    )
    last = [float(values[-1, -1]) for values in (similarity.before, similarity.removal, similarity.induction)]
    return Picture(
        plot_similarity(similarity),
        f"Cosine between the class means of the residual stream after each block, on validation prompts. {acts}",
        f"Three heatmaps over layers and positions. At the last layer and position: positive against negative prompts "
        f"{last[0]:.2f}; positive prompts with the direction removed against negative ones {last[1]:.2f}; negative prompts with "
        f"it induced against positive ones {last[2]:.2f}.",
    )


def _classes(selection: Selection) -> Picture:
    values = selection.layer_similarity
    caption = "Cosine between the means of positive and negative training prompts. "
    if selection.evaluation_layers:
        caption += "COSMIC's scores are measured at the marked evaluation layers."
    else:
        caption += (
            "For orientation only: selection by refusal tokens looks at the model's output, not at these similarities."
        )
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
        f"Whether the layers agree on one direction at position {position}: near 1 where they do.",
        f"Heatmap of the cosines between the candidate directions of all pairs of layers at position {position}.",
    )


def sweep_pictures(sweep: Sweep) -> list[Picture]:
    """The figure of a sweep.

    Args:
        sweep: From `sweep`.
    """
    terms, table = sweep.terms, sweep.table
    seen = "; ".join(
        f"{row.method}, {terms.sides[row.side]} prompts, α = {row.alpha:g}: {row.rate:.0%}"
        for _, row in table[table.method != BASELINE[0]].iterrows()
    )
    scored = ""
    if "score_mean" in table:
        scored = " Below: the log-odds that the answer begins with a refusal token, which needs no completions."
    return [
        Picture(
            plot_sweep(sweep),
            f"Share of {terms.outcome} at each strength α, for each way to use the direction. With α = 0, ablation and affine "
            "editing remove the direction; with α = 1 they induce it at the strength that it has on positive prompts."
            f"{scored}",
            f"Lines of {terms.outcome} against α. {seen}.",
        )
    ]


def suffix_pictures(analysis: SuffixAnalysis) -> list[Picture]:
    """The figures of a suffix analysis.

    Args:
        analysis: From `analyse_suffix`.
    """
    cosines, written, looks = analysis.cosines, analysis.contributions, analysis.attention
    last = cosines[cosines.layer == cosines.layer.max()].set_index("group")["mean"]
    strongest = written[written.group == HARMFUL].nlargest(1, "mean").iloc[0]
    shares = looks[looks.region == "suffix"].groupby("group")["mean"].mean()
    return [
        Picture(
            plot_suffix_cosines(analysis),
            "Whether the direction still arrives at the last token, from which the answer starts. A suffix that hides it takes "
            "harmful prompts to where harmless prompts are; a random suffix of the same length does not.",
            "Lines over layers. At the last layer: "
            + "; ".join(f"{group} {value:.2f}" for group, value in last.items())
            + ".",
        ),
        Picture(
            plot_head_contributions(analysis),
            "What each of the strongest attention heads adds to the residual stream along the direction at the last token. "
            "Heads are ranked on harmful prompts with a random suffix.",
            f"Bars for attention heads by group. The strongest on harmful prompts is head {strongest['head']} of layer "
            f"{strongest.layer}, with {strongest['mean']:.2f}.",
        ),
        Picture(
            plot_head_attention(analysis),
            "Where these heads attend to from the last token. A head that the suffix hijacks turns from the instruction to the "
            "suffix.",
            f"Stacked bars of attention. Mean share on the suffix: {shares[RANDOM]:.0%} with a random suffix, "
            f"{shares[ADVERSARIAL]:.0%} with the adversarial one.",
        ),
    ]
