"""Figures of a selection: scores, similarities and directions by layer and position."""

from collections.abc import Mapping
from itertools import takewhile

import numpy as np
import plotly.graph_objects as go
from torch.nn.functional import cosine_similarity

from cosmic_tl._util.border import checked
from cosmic_tl.directions.candidates import Candidates
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.experiments.variants import Variants
from cosmic_tl.figures.heatmaps import ROW, Panel, heatmaps, height_of, mark_choice, score_panel, unknown_cells
from cosmic_tl.figures.style import BLUE, DIVERGING, UNKNOWN, VERMILION, finish, position_labels
from cosmic_tl.figures.text import as_text
from cosmic_tl.selection.result import Selection


@checked
def plot_scores(selection: Selection, remarks: bool = True) -> go.Figure:
    """Scores of all candidates by layer and position; the chosen cell is framed and starred, filtered cells are crossed.

    Grey cells were not needed for the choice (`full_table` computes them too).

    Args:
        selection: From `select_cosmic` (S_comply, S_refuse, their sum, KL) or `select_by_refusal_tokens` (bypass, induce,
            KL).
        remarks: Show the selection's warnings and notes below the title. Defaults to True.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, max_kl=10.0)
        >>> figure = plot_scores(select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options))
        >>> len([trace for trace in figure.data if trace.type == "heatmap"])
        4
    """
    panels = [score_panel(selection, column, title) for column, title in selection.measures.items()]
    figure = heatmaps(panels)
    for k in range(len(panels)):
        mark_choice(figure, k, selection)
    chosen = selection.direction
    grey = unknown_cells([selection])
    if selection.candidates.names:
        figure.update_yaxes(title_text="direction")
    said = [as_text(one) for one in selection.remarks] if remarks else []
    return finish(
        figure,
        f"Layer {chosen.layer}, {as_text(selection.column)} chosen",
        " ".join([f"{grey}." if grey and said else grey, *said]).strip(),
        columns=2 if len(panels) == 4 else 3,
        span=len(panels[0].values),
        height=height_of(panels),
    )


@checked
def plot_score_comparison(selections: Mapping[str, Selection], measure: str = "score") -> go.Figure:
    """One measure of several selections side by side, on one colour scale, to compare models, modes, prompts or procedures.

    Args:
        selections: Selections by the name to show.
        measure: A column of `Selection.table` that all of them have. Defaults to "score", which COSMIC maximises.

    Raises:
        CosmicError: If there is no selection, or one has no such measure.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, max_kl=10.0)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> figure = plot_score_comparison({"one": selection, "other": selection}, "s_comply")
        >>> [note.text for note in figure.layout.annotations]
        ['one', 'other']
    """
    if not selections:
        raise CosmicError("selections: found none; give at least one, by name")
    for name, selection in selections.items():
        if measure not in selection.table.select_dtypes("number"):
            raise CosmicError(f"measure: {name!r} has no {measure!r}; it has {', '.join(selection.measures)}")
    if len(methods := {selection.method for selection in selections.values()}) > 1 and measure == "score":
        raise CosmicError(f"measure: 'score' differs between {' and '.join(sorted(methods))}; compare 'kl', say")
    panels = [score_panel(selection, measure, as_text(name)) for name, selection in selections.items()]
    title = {"score": "score", **next(iter(selections.values())).measures}
    if title["score"] == "sum":
        summed = takewhile(lambda name: name != "score", next(iter(selections.values())).measures)
        title["score"] = " + ".join(title[name] for name in summed)
    figure = heatmaps(panels, shared=True, bar_title=title.get(measure, measure))
    for k, selection in enumerate(selections.values()):
        mark_choice(figure, k, selection)
    return finish(
        figure,
        f"Candidates by layer and position: {title.get(measure, measure)}",
        unknown_cells(selections.values()),
        columns=3,
        span=max(len(panel.values) for panel in panels),
        height=height_of(panels),
        own_labels=len({tuple(panel.labels) for panel in panels}) > 1,
    )


@checked
def plot_variants(variants: Variants) -> go.Figure:
    """Scores of all candidates under each variant, with the cell that it chooses; each panel has its own colour scale.

    Args:
        variants: From `compare_variants`.

    Example:
        >>> from cosmic_tl import CosmicOptions, compare_variants, load_model, load_prompts
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> found = compare_variants(load_model("demo", device="cpu"), load_prompts("demo"), {"paper": options})
        >>> plot_variants(found).layout.annotations[0].text.partition(":")[0]
        'paper'
    """
    panels = []
    for name, selection in variants.selections.items():
        chosen = selection.direction
        title = f"{as_text(name)}: layer {chosen.layer}, position {chosen.position}"
        panels.append(score_panel(selection, "score", title))
    figure = heatmaps(panels)
    for k, selection in enumerate(variants.selections.values()):
        mark_choice(figure, k, selection)
    return finish(
        figure,
        "Candidates by layer and position: sum of scores under each variant",
        unknown_cells(variants.selections.values()),
        columns=2,
        span=max(len(panel.values) for panel in panels),
        height=height_of(panels),
        own_labels=len({tuple(panel.labels) for panel in panels}) > 1,
    )


@checked
def plot_similarity(similarity: LayerSimilarity) -> go.Figure:
    """Cosine between class means by layer and position, without an edit and with one class edited.

    Args:
        similarity: From `layer_similarities`.

    Example:
        >>> import torch
        >>> from cosmic_tl import Positions
        >>> ones = torch.ones(4, 2, dtype=torch.float64)
        >>> len(plot_similarity(LayerSimilarity(ones, ones, ones, Positions(("a", "b")))).data)
        3
    """
    labels = position_labels(similarity.positions)
    positive, negative = map(as_text, similarity.labels)
    panels = [
        Panel(f"{positive} vs {negative}", similarity.before.numpy(), labels),
        Panel(f"removal vs {negative}", similarity.removal.numpy(), labels),
        Panel(f"induction vs {positive}", similarity.induction.numpy(), labels),
    ]
    figure = heatmaps(panels, shared=True, bar_title="cosine")
    return finish(
        figure,
        "Cosine between class means of the residual stream",
        "first: no edit; then: one class edited, against the other",
        columns=3,
        span=len(panels[0].values),
        height=height_of(panels),
    )


@checked
def plot_layer_similarity(selection: Selection) -> go.Figure:
    """Cosine between the class means at the last position, by layer; evaluation layers are marked.

    Args:
        selection: From `select_cosmic`, or from `select_by_refusal_tokens`, which has no evaluation layers.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> len(plot_layer_similarity(selection).data)
        2
    """
    values = selection.layer_similarity.numpy()
    marked = list(selection.evaluation_layers)
    figure = go.Figure(
        go.Scatter(
            x=list(range(len(values))),
            y=values,
            mode="lines+markers",
            name="cosine of class means",
            line={"color": BLUE, "width": 2},
            marker={"size": 6},
        )
    )
    if marked:
        figure.add_scatter(
            x=marked,
            y=values[marked],
            mode="markers",
            name="evaluation layers",
            marker={"size": 12, "symbol": "circle-open", "color": VERMILION, "line": {"width": 2.5}},
        )
    figure.update_traces(hovertemplate="layer %{x}: %{y:.4f}<extra></extra>")
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="cosine similarity", showgrid=True)
    return finish(figure, "Cosine between the class means at the last position", span=len(values))


@checked
def plot_repeatability(candidates: Candidates) -> go.Figure:
    """Expected cosine between the directions that two fresh samples of as many training prompts would give, by layer and
    position, and how many prompts per side would make it 0.95.

    Args:
        candidates: From `difference_in_means`, or `Selection.candidates`.

    Raises:
        CosmicError: If the candidates do not know how widely prompts are spread, as given directions do not.

    Example:
        >>> import torch
        >>> ones = torch.ones(3, 2, 4, dtype=torch.float64)
        >>> some = Candidates(ones, ones, "example", noise=ones[..., 0], spread=9 * ones[..., 0])
        >>> plot_repeatability(some).data[0].z.shape
        (2, 3)
    """
    cosines, needed = candidates.repeatability, candidates.prompts_needed()
    if cosines is None or needed is None:
        raise CosmicError(
            "candidates: it is not known how widely prompts are spread; use difference_in_means(*class_means(…))"
        )
    said = np.array(
        [[f"{n:,.0f} prompts per side for 0.95" if n < np.inf else "no number is known" for n in row] for row in needed]
    )
    labels = list(candidates.names) or [f"position −{k}" for k in range(cosines.shape[1], 0, -1)]
    figure = heatmaps([Panel("", cosines.numpy(), labels, notes=said)])
    figure.update_traces(zmin=0, zmax=1, colorbar_title_text="cosine")
    figure.update_yaxes(title_text="")
    undefined = bool(cosines.isnan().any())
    return finish(
        figure,
        "How alike two fresh samples' directions would be",
        "expected cosine, for as many training prompts" + ("; grey: no direction" if undefined else ""),
        span=len(cosines),
        height=max(6, ROW * len(labels)),
    )


@checked
def plot_direction_cosines(candidates: Candidates, position: int = -1) -> go.Figure:
    """Cosine between the candidate directions of all pairs of layers, at one position.

    Args:
        candidates: From `difference_in_means`, or `Selection.candidates`.
        position: Index of the position, counted from the end. Defaults to the last.

    Example:
        >>> import torch
        >>> ones = torch.ones(3, 2, 4, dtype=torch.float64)
        >>> plot_direction_cosines(Candidates(ones, ones, "example")).data[0].z.shape
        (3, 3)
    """
    vectors = candidates.vectors[:, position]
    values = cosine_similarity(vectors[:, None], vectors[None], dim=-1).numpy().copy()
    values[vectors.norm(dim=-1).numpy() == 0] = np.nan
    values[:, vectors.norm(dim=-1).numpy() == 0] = np.nan
    layers = list(range(len(values)))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=layers,
            y=layers,
            colorscale=DIVERGING,
            zmin=-1,
            zmax=1,
            colorbar={"title": {"text": "cosine"}},
            hovertemplate="layers %{x} and %{y}: %{z:.3f}<extra></extra>",
            hoverongaps=False,
        )
    )
    figure.update_xaxes(title_text="layer", range=[-0.5, len(layers) - 0.5])
    figure.update_yaxes(title_text="layer", range=[len(layers) - 0.5, -0.5])
    title = f"Cosine between the directions of all layers, position {position}"
    undefined = bool(np.isnan(values).any())
    if undefined:
        figure.update_layout(plot_bgcolor=UNKNOWN)
    subtitle = "grey: no direction, as the classes do not differ there" if undefined else ""
    return finish(figure, title, subtitle, square=True, span=len(layers))
