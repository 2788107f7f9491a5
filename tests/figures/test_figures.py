"""Figures show what the data say, in one look, and lay themselves out for every width."""

import json
from dataclasses import replace
from inspect import unwrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from plotly.colors import sample_colorscale

from cosmic_tl import (
    Ablation,
    AffineEdit,
    ContrastSet,
    CosmicError,
    CosmicOptions,
    Direction,
    Effects,
    Positions,
    RefusalTokenOptions,
    cache_activations,
    difference_in_means,
    layer_similarities,
    mean_activations,
    pca_of_classes,
    post_instruction_positions,
    project,
    select_by_refusal_tokens,
    select_cosmic,
)
from cosmic_tl.experiments import Sweep
from cosmic_tl.experiments.conditions import CONCEPT
from cosmic_tl.figures import (
    plot_direction_cosines,
    plot_layer_similarity,
    plot_pca,
    plot_projection,
    plot_refusal_rates,
    plot_score_comparison,
    plot_scores,
    plot_similarity,
    plot_suffix_cosines,
    plot_sweep,
    restyle,
)
from cosmic_tl.figures.heatmaps import Panel, heatmaps
from cosmic_tl.figures.layout import PanelLayout, Size, lay_out
from cosmic_tl.figures.style import COLOURS, TEMPLATES, colour_scale, finish, position_labels, token_label
from cosmic_tl.metrics.projection import Projection
from cosmic_tl.model.chat import tokenize
from cosmic_tl.suffixes import SuffixAnalysis

ANSWER = {"prompt": "hi", "verdict": "refusal", "cross_entropy": 0.5}
PROMPT = "Can you help me rob a <b>clerk</b>?"


@pytest.fixture(scope="module")
def selection(demo, prompts):
    return select_cosmic(demo, prompts, CosmicOptions(n_train=16, n_val=8, max_kl=50.0), batch_size=16)


@pytest.fixture(scope="module")
def by_tokens(demo, prompts):
    return select_by_refusal_tokens(demo, prompts, RefusalTokenOptions(n_train=24, n_val=12, max_kl=10.0))


@pytest.fixture(scope="module")
def direction(demo, prompts):
    sides = [mean_activations(demo, prompts.side(side, "train", 64)) for side in ("positive", "negative")]
    return difference_in_means(*sides).direction(4, -1, demo)


@pytest.fixture(scope="module")
def pca(demo, prompts, direction):
    sides = prompts.side("positive", "val", 12), prompts.side("negative", "val", 12)
    return pca_of_classes(demo, sides, {0.0: AffineEdit(direction, 0.0), "ablation": Ablation(direction)})


def heatmaps_of(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def shown_titles(figure):
    """Panel titles in their order, as they are drawn."""
    return [note.text for note in figure.layout.annotations if note.name.startswith("panel ")]


# One look


def test_signed_values_diverge_around_zero():
    scale = colour_scale(np.array([-0.2, np.nan, 0.5]))
    assert (scale["zmin"], scale["zmax"]) == (-0.5, 0.5)
    ends = sample_colorscale(scale["colorscale"], [0.0, 0.5, 1.0], colortype="tuple")
    low, zero, high = (np.array(colour) for colour in ends)
    assert np.ptp(zero) < 0.05 and zero.min() > 0.8  # 0 is a light grey,
    assert low[2] > low[0] and high[0] > high[2]  # below it blue, above it red
    unsigned = colour_scale(np.array([0.2, 0.5]))
    assert unsigned["colorscale"] == "Cividis" and (unsigned["zmin"], unsigned["zmax"]) == (0.2, 0.5)
    signed = colour_scale(np.array([0.2, 0.5]), signed=True)
    assert (signed["zmin"], signed["zmax"]) == (-0.5, 0.5)


def test_tokens_are_shown_as_the_model_sees_them():
    assert token_label(" a\n\t<img src=x>") == "·a\\n\\t&lt;img·src=x&gt;"
    assert position_labels(Positions(("\n", "<s>"))) == ["\\n (-2)", "&lt;s&gt; (-1)"]


def test_themes_differ_in_background_and_ink_alone(selection):
    figure = plot_layer_similarity(selection)
    light, dark = json.loads(figure.to_json()), json.loads(restyle(figure, theme="dark").to_json())
    assert light["layout"].pop("template") != dark["layout"].pop("template")
    assert light == dark

    def brightness(colour):
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) / 3

    for theme, (least, most) in {"light": (200, 255), "dark": (0, 55)}.items():
        layout = TEMPLATES[theme].layout
        assert least <= brightness(layout.paper_bgcolor) <= most
        assert abs(brightness(layout.paper_bgcolor) - brightness(layout.font.color)) > 180


def test_colours_keep_their_meaning_across_figures():
    conditions = (("positive", "random removal"), ("negative", "induction"), ("negative", "my own"))
    rows = [{"side": side, "condition": name, **ANSWER} for side, name in conditions]
    bars = plot_refusal_rates(Effects(pd.DataFrame(rows))).data[0].marker.color
    assert list(bars) == [COLOURS["random"], COLOURS["induction"], COLOURS["other"]]
    cosines = pd.DataFrame(
        {"group": ["harmful"] * 2 + ["harmless"] * 2, "layer": [0, 1] * 2, "mean": 0.1, "sd": 0.1, "n": 4}
    )
    analysis = SuffixAnalysis(pd.DataFrame(), cosines, pd.DataFrame(), pd.DataFrame())
    lines = {trace.name: trace.line.color for trace in plot_suffix_cosines(analysis).data if trace.name}
    assert lines == {"harmful": COLOURS["positive"], "harmless": COLOURS["negative"]}


# Selections


def test_the_chosen_cell_is_framed_and_the_filtered_are_crossed(selection):
    figure = plot_scores(selection)
    maps = heatmaps_of(figure)
    assert [trace.z.shape for trace in maps] == [(5, 8)] * 4 and "&lt;|im_end|&gt; (-5)" in maps[0].y
    best = selection.table[selection.table.kept].score.idxmax()
    layer, row = selection.table.layer[best], selection.table.position[best] + 5
    frames = [shape for shape in figure.layout.shapes if shape.name == "chosen"]
    assert len(frames) == 8
    assert {(f.x0, f.x1, f.y0, f.y1) for f in frames} == {(layer - 0.5, layer + 0.5, row - 0.5, row + 0.5)}
    total = next(trace for trace, name in zip(maps, shown_titles(figure), strict=True) if name == "sum")
    assert total.z[row, layer] == selection.table.score[best] and total.customdata[row, layer] == "chosen"
    crosses = [trace for trace in figure.data if trace.name == "filtered"]
    dropped = selection.table[~selection.table.kept]
    labels = position_labels(selection.positions)
    expected = {(layer, labels[position]) for layer, position in zip(dropped.layer, dropped.position, strict=True)}
    assert len(crosses) == 4 and all(set(zip(trace.x, trace.y, strict=True)) == expected for trace in crosses)
    assert sum(trace.showlegend is not False for trace in crosses) == 1


def test_a_selection_by_refusal_tokens_has_three_panels_and_no_evaluation_layers(by_tokens):
    figure = plot_scores(by_tokens)
    assert shown_titles(figure) == ["bypass (log-odds)", "induce (log-odds)", "KL (nats)"]
    for trace in heatmaps_of(figure)[:2]:
        assert trace.zmin == -trace.zmax  # log-odds have both signs
    tops = {figure.layout[f"yaxis{k}"].domain[1] for k in ("", 2, 3)}
    assert len(tops) == 1  # three in a row
    line = plot_layer_similarity(by_tokens)
    assert [trace.name for trace in line.data] == ["cosine of class means"]
    assert np.allclose(line.data[0].y, by_tokens.layer_similarity)


def test_evaluation_layers_are_marked(selection):
    marked = plot_layer_similarity(selection).data[1]
    assert list(marked.x) == list(selection.evaluation_layers)


def test_cosines_are_symmetric_and_unknown_where_there_is_no_direction(selection):
    cosines = heatmaps_of(plot_direction_cosines(selection.candidates, -1))[0].z
    assert cosines[3, 3] == pytest.approx(1.0) and cosines[2, 5] == pytest.approx(cosines[5, 2])
    assert np.isnan(cosines[0]).all()  # before the first block the last token is the same in every prompt


def test_similarities_share_a_scale_with_one_bar(demo, prompts, direction):
    sides = prompts.side("positive", "val", 4), prompts.side("negative", "val", 4)
    similarity = layer_similarities(demo, sides, direction, mode="affine")
    maps = heatmaps_of(plot_similarity(similarity))
    assert len({(trace.zmin, trace.zmax) for trace in maps}) == 1
    assert [trace.showscale for trace in maps] == [False, False, True]
    assert np.allclose(maps[1].z, similarity.removal.T)


def test_figures_of_activations_call_the_sides_as_their_data_set_does(demo, prompts, direction):
    few = [{"val": tuple(side[:2]), "test": tuple(side[:2])} for side in prompts.sides("val")]
    named = ContrastSet("poems", *few, labels=("<poem>", "prose"))
    similarity = layer_similarities(demo, named, direction, mode="affine")
    assert shown_titles(plot_similarity(similarity))[1:] == ["removal vs prose", "induction vs &lt;poem&gt;"]
    plane = pca_of_classes(demo, named)
    assert [trace.name for trace in plot_pca(plane).data][:3] == ["&lt;poem&gt;", "prose", "&lt;poem&gt; mean, no edit"]
    assert "2 <poem> and 2 prose prompts" in repr(plane)
    assert set(plane.points.side) == {"positive", "negative"}


def test_comparison_of_selections(selection, by_tokens):
    names = {"<b>one</b>": selection, "other": replace(selection, positions=Positions(("a", "b", "c", "d", "\n")))}
    figure = plot_score_comparison(names)
    assert shown_titles(figure) == ["&lt;b&gt;one&lt;/b&gt;", "other"]
    maps = heatmaps_of(figure)
    assert (maps[0].zmin, maps[0].zmax) == (maps[1].zmin, maps[1].zmax)
    assert figure.layout.yaxis2.showticklabels and maps[1].y[-1] == "\\n (-1)"  # other tokens: labels of its own
    same = plot_score_comparison({"one": selection, "other": selection})
    assert not same.layout.yaxis2.showticklabels
    mixed = {"COSMIC": selection, "tokens": by_tokens}
    assert len(heatmaps_of(plot_score_comparison(mixed, "kl"))) == 2
    with pytest.raises(CosmicError, match="measure: 'score' differs between COSMIC and refusal tokens"):
        plot_score_comparison(mixed)
    with pytest.raises(CosmicError, match="measure: 'tokens' has no 's_comply'; it has bypass, induce, kl"):
        plot_score_comparison(mixed, "s_comply")
    with pytest.raises(CosmicError, match="selections: found none"):
        plot_score_comparison({})


# Effects


def test_another_concept_is_named(demo):
    effects = Effects(pd.DataFrame([{"side": "positive", "condition": "a <b> removal", **ANSWER}]))
    bars = plot_refusal_rates(effects, outcome="share of poems", sides=("poem asked for", "prose asked for"))
    assert bars.layout.yaxis.title.text == "share of poems" and bars.layout.title.text == "Share of poems"
    assert list(bars.data[0].x[0]) == ["poem asked for"] and list(bars.data[0].x[1]) == ["a<br>&lt;b&gt;<br>removal"]
    base = {"side": "negative", "prompt": "hi", "sample": 0, "verdict": "refusal"}
    rows = [{**base, "method": "affine", "alpha": alpha} for alpha in (0.0, 1.0)]
    lines = plot_sweep(Sweep(pd.DataFrame(rows)), outcome="poem", sides=("asked for", "not asked for"))
    assert [trace.name for trace in lines.data if trace.showlegend] == ["not asked for"]
    assert lines.layout.yaxis.title.text == "poem rate" and lines.layout.title.text.startswith("Poem against")
    assert "efus" not in lines.layout.to_plotly_json()["title"]["text"]
    own = Effects(effects.completions, CONCEPT).plot(), Sweep(pd.DataFrame(rows), terms=CONCEPT).plot()
    assert [figure.layout.yaxis.title.text for figure in own] == ["answers with the concept", "concept rate"]
    assert list(own[0].data[0].x[0]) == ["positive prompts"]


def test_what_stands_at_zero_and_one_is_not_cut_off():
    rows = [{"side": "positive", "condition": name, "garbled": False, **ANSWER} for name in ("baseline", "removal")]
    for figure in (
        plot_refusal_rates(Effects(pd.DataFrame(rows))),
        plot_refusal_rates(Effects(pd.DataFrame(rows[:1]))),
    ):
        low, high = figure.layout.yaxis.range
        assert low < 0 and high > 1 and figure.data[1].cliponaxis is False


def test_stretches_that_overlap_are_one_shade():
    base = {"method": "affine", "prompt": "hi", "sample": 0}
    rows = [
        {**base, "side": side, "alpha": float(alpha), "verdict": "refusal" if alpha == peak else "compliance"}
        for side, peak in (("positive", 0), ("negative", 1))
        for alpha in range(4)
    ]
    figure = plot_sweep(Sweep(pd.DataFrame(rows)))
    assert [(s.x0, s.x1) for s in figure.layout.shapes if s.type == "rect"] == [(0.0, 3.0)]


# Projections


@pytest.mark.parametrize("edited", [False, True])
def test_projection_is_the_plain_formula(demo, direction, edited):
    edit = (AffineEdit(direction, 0.5),) if edited else ()
    ids = tokenize(demo, [PROMPT])[0]
    expected = torch.zeros(8, len(ids), 128, dtype=torch.float64)

    def keep(x, hook):
        expected[int(hook.name.split(".")[1])] = x[0].double()

    def change(x, hook):
        unit = direction.vector / direction.vector.norm()
        return x - (x @ unit)[..., None] * unit + (direction.reference @ unit) * unit + 0.5 * direction.vector

    hooks = [(f"blocks.{layer}.hook_out", keep) for layer in range(8)]
    with torch.inference_mode(), demo.hooks(fwd_hooks=[("blocks.4.hook_in", change)] * edited + hooks):
        demo(torch.tensor([ids]))
    unit = (direction.vector / direction.vector.norm()).double()
    found = project(demo, PROMPT, direction, interventions=edit)
    assert found.values.shape == (8, len(ids))
    assert (found.values - expected @ unit).abs().max() < 1e-5 * expected.norm(dim=-1).max()
    cosine = project(demo, PROMPT, direction, interventions=edit, measure="cosine").values
    assert (cosine - expected @ unit / expected.norm(dim=-1)).abs().max() < 1e-5


def test_ablation_leaves_nothing_to_project(demo, direction):
    before = project(demo, PROMPT, direction).values
    after = project(demo, PROMPT, direction, interventions=Ablation(direction)).values
    assert after.abs().max() < 1e-4 * before.abs().max()


def test_projection_figure_names_every_token(demo, direction):
    plain = project(demo, PROMPT, direction)
    assert "".join(plain.tokens).count(PROMPT) == 1
    figure = plot_projection(
        {"as it is": plain, "a<b": project(demo, PROMPT, direction, interventions=Ablation(direction))}
    )
    first, second = heatmaps_of(figure)
    assert np.allclose(first.z, plain.values.T) and first.zmin == -first.zmax == second.zmin
    labels = list(figure.layout.yaxis.ticktext)
    assert labels == [token_label(token) for token in plain.tokens] and labels[-1] == "\\n"
    assert "&lt;|im_start|&gt;" in labels and not any("<" in label for label in labels)
    assert list(first.customdata[:, 0]) == labels and shown_titles(figure)[1] == "a&lt;b"
    table = plain.table
    assert table.value[(table.layer == 3) & (table["index"] == 5)].item() == plain.values[3, 5]


def test_a_long_prompt_does_not_crowd_its_labels(direction):
    long = Projection(torch.ones(4, 200, dtype=torch.float64), tuple("x" * 200), "cosine", direction)
    figure = plot_projection(long)
    assert len(figure.layout.yaxis.ticktext) == 50 and heatmaps_of(figure)[0].z.shape == (200, 4)
    with pytest.raises(CosmicError, match="projection: found cosine and projection; give one measure"):
        plot_projection({"a": long, "b": replace(long, measure="projection")})
    with pytest.raises(CosmicError, match="projection: found none"):
        plot_projection({})


def test_bad_measures_and_directions_are_named(demo, direction):
    with pytest.raises(CosmicError, match="measure: unknown 'dot'; use projection or cosine"):
        unwrap(project)(demo, PROMPT, direction, measure="dot")  # without the tests' type checks
    with pytest.raises(CosmicError, match="direction: it has width 4"):
        project(demo, PROMPT, Direction(torch.ones(4), torch.zeros(4), layer=1, position=-1))


# Principal components


def test_pca_is_that_of_the_unedited_classes(demo, prompts, pca):
    """Against scikit-learn's, but for the sign, which separates the classes."""
    from sklearn.decomposition import PCA

    asked = [*prompts.side("positive", "val", 12), *prompts.side("negative", "val", 12)]
    last = post_instruction_positions(demo, n=1)
    stream = cache_activations(demo, asked, site="hook_resid_post", positions=last)[:, 6, 0].double().numpy()
    reference = PCA(2).fit(stream)
    points = pca.points.query("edit == 'none' and layer == 6")
    assert points.prompt.tolist() == asked
    assert np.allclose(points[["pc1", "pc2"]].abs(), np.abs(reference.transform(stream)), atol=1e-3)
    assert np.allclose(pca.explained[6], reference.explained_variance_ratio_, atol=1e-5)


def test_pca_separates_the_classes(pca):
    apart = pca.table.query("edit == 'none' and layer >= 2").separation
    assert (apart > 2).all()


def test_alpha_zero_moves_positives_to_the_negative_class(pca, direction):
    def mean(edit, side, layer=4):
        return pca.points.query("edit == @edit and side == @side and layer == @layer")[["pc1", "pc2"]].mean()

    gap = np.linalg.norm(mean("none", "positive") - mean("none", "negative"))
    moved = np.linalg.norm(mean("α = 0", "positive") - mean("none", "negative"))
    stayed = np.linalg.norm(mean("α = 0", "negative") - mean("none", "negative"))
    assert moved < 0.25 * gap and stayed < 0.1 * gap
    below = pca.points[pca.points.layer < direction.layer].pivot(
        index=["layer", "prompt"], columns="edit", values="pc1"
    )
    assert np.allclose(below["none"], below["α = 0"], atol=1e-3)  # nothing changes before the edit


def test_the_slider_moves_every_edit_along_the_same_axes(pca):
    figure = plot_pca(pca, layer=3, edit="ablation")
    layers, edits = figure.layout.sliders
    assert [step.label for step in layers.steps] == [str(k) for k in range(8)] and layers.active == 3
    assert [step.label for step in edits.steps] == ["none", "α = 0", "ablation"] and edits.active == 2
    assert [trace.visible for trace in figure.data] == [False] * 4 + [True] * 2 + [None] * 2
    for number, step in enumerate(layers.steps):
        data, layout = step.args
        of_layer = pca.points[pca.points.layer == number]
        low, high = layout["xaxis.range"]
        assert low < of_layer.pc1.min() and of_layer.pc1.max() < high  # of all edits: choosing one moves no axis
        assert f"{float(pca.explained[number, 0]):.0%} of variance" in layout["xaxis.title.text"]
        positive = of_layer[(of_layer.edit == "α = 0") & (of_layer.side == "positive")]
        assert np.allclose(data["x"][2], positive.pc1, rtol=1e-3) and np.allclose(data["y"][2], positive.pc2, rtol=1e-3)
    assert tuple(figure.data[4].x) == tuple(layers.steps[3].args[0]["x"][4])
    for one, step in zip(pca.edits, edits.steps, strict=True):
        shown, traces = step.args
        assert list(shown["visible"]) == [other == one for other in pca.edits for _ in range(2)]
        assert list(traces) == list(range(6)) and set(shown) == {"visible"}


def test_edits_side_by_side_share_their_axes(pca):
    figure = plot_pca(pca, side_by_side=True)
    assert shown_titles(figure) == ["none", "α = 0", "ablation"] and not figure.layout.sliders
    assert len({figure.layout[f"xaxis{k}"].range for k in ("", 2, 3)}) == 1
    apart = pca.table.query("edit == 'none'").set_index("layer").separation
    assert figure.layout.title.text.endswith(f"layer {apart.idxmax()}")


def test_bad_pca_input_is_named(demo, direction, pca):
    for layer in (-1, 8):
        with pytest.raises(CosmicError, match=f"layer: found {layer}, and the layers are 0 to 7"):
            plot_pca(pca, layer)
    with pytest.raises(CosmicError, match="edit: unknown 'α = 9'; there are none, α = 0, ablation"):
        plot_pca(pca, edit="α = 9")
    with pytest.raises(CosmicError, match="negative: found no prompts"):
        pca_of_classes(demo, (["hi"], []))
    with pytest.raises(CosmicError, match="prompts: found 2, and a plane takes three"):
        pca_of_classes(demo, (["hi"], ["hello"]))
    with pytest.raises(CosmicError, match="edits: 'none' stands for no edit"):
        pca_of_classes(demo, (["hi", "hello"], ["bye"]), {"none": Ablation(direction)})


# Layout


def panels(n, **plan):
    """A figure of heatmaps with so many panels."""
    labels = [f"&lt;token {i}&gt;" for i in range(5)]
    figure = heatmaps([Panel(f"panel {k}", np.full((8, 5), k + 1.0), labels) for k in range(n)])
    return finish(
        figure, "A title that is so long that it takes two lines in a column of a paper", height=8, span=8, **plan
    )


def boxes(figure):
    """Every panel in pixels: left, right, top, bottom."""
    layout, found = figure.layout, []
    wide = layout.width - layout.margin.l - layout.margin.r
    high = layout.height - layout.margin.t - layout.margin.b
    for k in range(sum(trace.type == "heatmap" for trace in figure.data)):
        x, y = (layout[f"{letter}axis{k + 1 if k else ''}"].domain for letter in "xy")
        left, right = (layout.margin.l + end * wide for end in x)
        bottom, top = (layout.margin.t + (1 - end) * high for end in y)
        found.append((left, right, top, bottom))
    return found


@pytest.mark.parametrize("width", [None, "page", "column"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_panels_fit_and_do_not_overlap(n, width):
    figure = restyle(panels(n, columns=3), width=width)
    found, em = boxes(figure), figure.layout.font.size
    assert em * 0.75 >= 8  # points
    for left, right, top, bottom in found:
        assert 0 < left < right < figure.layout.width - 3 * em and 0 < top < bottom < figure.layout.height - 2 * em
        assert right - left >= 8 * em and bottom - top == pytest.approx(8 * em, abs=1)
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            beside = one[1] + 4 * em <= other[0] + 1 or other[1] + 4 * em <= one[0] + 1  # a colour bar between
            below = one[3] + 2 * em <= other[2] + 1  # labels and a title between
            assert beside or below
    rows = sorted({round(top) for _, _, top, _ in found})
    assert len(rows) == {1: 1, 2: 1 if width != "column" else 2, 3: 1 if width != "column" else 3}.get(n, len(rows))
    titled = {k for k in range(n) if figure.layout[f"xaxis{k + 1 if k else ''}"].title.text}
    assert titled == {k for k, box in enumerate(found) if not any(o[2] > box[3] and o[0] == box[0] for o in found)}


def test_a_column_is_narrow_and_its_title_wraps():
    wide = panels(4, columns=2)
    column = restyle(wide, width="column")
    assert wide.layout.width == 760 and column.layout.width == 317 and restyle(wide, width="page").layout.width == 672
    assert len({box[0] for box in boxes(wide)}) == 2 and len({box[0] for box in boxes(column)}) == 1
    assert "<br>" in column.layout.title.text and "<br>" not in wide.layout.title.text
    bare = restyle(wide, width="column", title=False)
    assert bare.layout.title.text is None and bare.layout.height < column.layout.height - 2 * 11


def test_laying_out_again_undoes_it(selection, by_tokens):
    for figure in (plot_scores(selection), plot_scores(by_tokens), plot_layer_similarity(selection)):
        there_and_back = restyle(restyle(figure, width="column"))
        assert there_and_back.to_plotly_json()["layout"] == restyle(figure).to_plotly_json()["layout"]


def test_a_layer_is_labelled_with_a_whole_number_at_every_width():
    for n_layers in (8, 32, 80):
        figure = finish(heatmaps([Panel("", np.ones((n_layers, 2)), ["a", "b"])]), "", span=n_layers)
        for width in (None, "column"):
            axis = restyle(figure, width=width).layout.xaxis
            assert axis.dtick == int(axis.dtick) and 3 <= n_layers / axis.dtick <= 32
            assert axis.range == (-0.5, n_layers - 0.5)


def test_what_a_user_changed_stays(selection):
    figure = plot_scores(selection)
    figure.update_layout(title="Mine", meta=figure.layout.meta | {"note": "kept"})
    figure.update_xaxes(title_text="block")
    column = restyle(figure, width="column")
    assert column.layout.title.text == "Mine" and column.layout.meta["note"] == "kept"
    assert column.layout.xaxis4.title.text == "block" and figure.layout.width == 760


def test_any_figure_can_be_restyled():
    plain = go.Figure(go.Scatter(y=[1, 2]), layout={"width": 600, "height": 300, "meta": "mine"})
    column = restyle(plain, width="column", theme="dark")
    assert (column.layout.width, column.layout.height) == (317, 158)
    assert column.layout.template.layout.paper_bgcolor == TEMPLATES["dark"].layout.paper_bgcolor


def test_unknown_widths_and_themes_are_named():
    with pytest.raises(CosmicError, match="width: unknown 'poster'; use 'column', 'page' or None"):
        unwrap(restyle)(go.Figure(), width="poster")
    with pytest.raises(CosmicError, match="theme: unknown 'blue'; use light or dark"):
        unwrap(restyle)(go.Figure(), theme="blue")


def test_controls_stay_on_screen_alone(pca):
    figure = plot_pca(pca)
    assert len(figure.layout.sliders) == 2 and not restyle(figure, width="page").layout.sliders
    screen, page = restyle(figure), restyle(figure, width="page")
    assert screen.layout.margin.b > page.layout.margin.b + 100


def test_lay_out_takes_any_size():
    figure = lay_out(panels(3, columns=3), Size(500, 12.0), PanelLayout(columns=3, span=8, height=6))
    assert figure.layout.width == 500 and figure.layout.font.size == 12
