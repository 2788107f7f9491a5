from html.parser import HTMLParser

import pandas as pd
import pytest

from cosmic_tl import CosmicOptions, Effects, layer_similarities, plots, select_cosmic
from cosmic_tl.report import write_report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> ' \" &"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.fixture(scope="module")
def parts(demo, prompts):
    selection = select_cosmic(demo, prompts, CosmicOptions(n_train=16, n_val=8, max_kl=50.0), batch_size=16)
    rows = [
        {
            "kind": kind,
            "condition": name,
            "prompt": EVIL,
            "completion": EVIL,
            "verdict": "compliance",
            "cross_entropy": 1.0,
        }
        for kind, names in {
            "harmful": ["baseline", "removal", "random removal"],
            "harmless": ["baseline", "induction", "random induction"],
        }.items()
        for name in names
    ]
    similarity = layer_similarities(
        demo, prompts.side("positive", "val", 4), prompts.side("negative", "val", 4), selection.direction
    )
    return selection, Effects(pd.DataFrame(rows)), similarity


def test_model_output_stays_text(parts):
    selection, effects, similarity = parts
    row = selection.winner
    summary = {
        "model": EVIL,
        "prompts": EVIL,
        "n": {"harmful": 1, "harmless": 1},
        "seconds": 1.0,
        "notes": [EVIL],
        "scores": {k: row[k] for k in ("s_comply", "s_refuse", "share_comply", "share_refuse")},
    }
    page = write_report(selection, effects, similarity, summary, {"system": EVIL}, EVIL)
    parsed = Tags()
    parsed.feed(page)
    assert "img" not in parsed.tags and "onerror" not in parsed.attributes
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_every_figure_marks_what_it_says(parts):
    selection, effects, similarity = parts
    scores = plots.score_heatmap(selection)
    heatmaps = [trace for trace in scores.data if trace.type == "heatmap"]
    assert [trace.z.shape for trace in heatmaps] == [(5, 8)] * 4
    chosen = [trace for trace in scores.data if trace.name == "chosen"]
    assert len(chosen) == 4 and all(trace.x[0] == selection.direction.layer for trace in chosen)
    dropped = next(trace for trace in scores.data if trace.name == "filtered")
    assert len(dropped.x) == int((~selection.table.kept).sum())
    assert "&lt;|im_end|&gt; (-5)" in heatmaps[0].y
    marked = plots.layer_similarity_plot(selection).data[1]
    assert list(marked.x) == list(selection.evaluation_layers)
    assert list(plots.refusal_rate_bars(effects.table()).data[0].y) == [0.0] * 6
    cosines = plots.direction_cosines(selection.candidates, -1).data[0].z
    assert cosines[3, 3] == pytest.approx(1.0) and cosines[2, 5] == pytest.approx(cosines[5, 2])
    panels = plots.similarity_heatmap(similarity).data
    assert panels[0].zmin == panels[1].zmin == panels[2].zmin


def test_signed_values_diverge_around_zero():
    import numpy as np

    scale = plots._scale(np.array([-0.2, 0.5]))
    assert (scale["zmin"], scale["zmax"]) == (-0.5, 0.5)
    assert plots._scale(np.array([0.2, 0.5]))["colorscale"] == "Cividis"
