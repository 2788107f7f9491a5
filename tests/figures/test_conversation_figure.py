"""The figure of a conversation: one scale for all panels, and every token in its row."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cosmic_tl import Direction
from cosmic_tl.experiments import Conversation
from cosmic_tl.figures import plot_conversation, restyle


def conversation(n_layers=8, lengths=(6, 9), reference=0.0, **columns):
    rows = [
        {"condition": name, "index": i, "token": f"<{i}>", "part": "completion" if i > 3 else "prompt", "layer": layer}
        for name, n_tokens in zip(("baseline", "<b>removal"), lengths, strict=True)
        for i in range(n_tokens)
        for layer in range(n_layers)
    ]
    table = pd.DataFrame(rows).assign(id=5, projection=lambda table: table["index"] + table.layer / 100, **columns)
    direction = Direction(torch.ones(4), None if reference is None else torch.full((4,), reference), 3, -1)
    return Conversation(table, "hi", {"baseline": "a", "<b>removal": "b"}, direction, {})


@pytest.mark.parametrize(("reference", "ends"), [(0.0, (-0.5, 1.5)), (None, (-1.0, 1.0))])
def test_all_panels_have_one_scale_around_the_middle_of_the_classes(reference, ends):
    found = conversation(reference=reference)
    figure = plot_conversation(found)
    assert [(trace.zmin, trace.zmax) for trace in figure.data] == [ends] * 2
    assert [trace.showscale for trace in figure.data] == [False, True]
    for trace, n_tokens in zip(figure.data, (6, 9), strict=True):
        assert np.allclose(trace.z, np.arange(n_tokens)[:, None] + np.arange(8) / 100)
    assert [note.text for note in figure.layout.annotations] == ["baseline", "&lt;b&gt;removal"]
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range == (8.5, -0.5)  # rows of one token are level
    assert figure.layout.yaxis2.ticktext[-1] == "&lt;8&gt;"
    assert ("0: negative class, 1: positive class" in figure.layout.title.subtitle.text) == (reference == 0.0)
    begins = {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1}
    layer = {shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1}
    assert begins == {3.5} and layer == {2.5, 3.5}


def test_layers_that_were_not_read_are_empty():
    found = conversation()
    figure = plot_conversation(replace(found, table=found.table[found.table.layer.isin([1, 4])]))
    assert list(figure.data[0].x) == [1, 2, 3, 4]
    assert np.isnan(figure.data[0].z).all(0).tolist() == [False, True, True, False]
    beyond = plot_conversation(replace(found, table=found.table[found.table.layer > 4]))
    assert not [shape for shape in beyond.layout.shapes if shape.x0 == shape.x1]


def test_it_stays_side_by_side_on_a_screen_and_goes_below_in_a_column():
    figure = plot_conversation(conversation(n_layers=36, lengths=(70, 80)))
    assert len({figure.layout[axis].domain for axis in ("xaxis", "xaxis2")}) == 2
    assert len(figure.layout.yaxis2.ticktext) == 80
    column = restyle(figure, width="column")
    assert column.layout.xaxis.domain == column.layout.xaxis2.domain
    assert len(plot_conversation(conversation(lengths=(6, 130))).layout.yaxis2.ticktext) == 65
