"""Figures of cosines show each pair once as a number, and each model in a panel of its own."""

import pytest
import torch

from cosmic_tl import CosmicError, Direction, random_direction
from cosmic_tl.directions import compare_directions
from cosmic_tl.experiments import cosines_by_layer
from cosmic_tl.figures import plot_cosines, plot_layer_cosines

DIRECTION = Direction(torch.ones(128), None, 3, -1)


def test_names_are_texts_and_few_cosines_are_written_out():
    some = {f"<b>{i}</b>": random_direction(DIRECTION, i) for i in range(7)}
    found = compare_directions(dict(list(some.items())[:3]))
    figure = plot_cosines(found)
    assert figure.layout.xaxis.ticktext[0] == "&lt;b&gt;0&lt;/b&gt;"
    numbers = [note.text for note in figure.layout.annotations]
    assert numbers == [f"{value:.2f}" for value in found.matrix.to_numpy().ravel()]
    assert f"±{found.chance:.2f}" in figure.layout.title.subtitle.text
    assert not plot_cosines(compare_directions(some)).layout.annotations  # too many to be read


def test_models_share_an_axis_and_have_panels_of_their_own(demo, prompts):
    found = cosines_by_layer(demo, prompts, DIRECTION, n=3, n_positions=2)
    figure = plot_layer_cosines({"chat": found, "base": found}, position=-2)
    assert [note.text for note in figure.layout.annotations] == ["chat", "base"]
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    own = found.table[(found.table.position == -2) & (found.table.side == "positive")]
    drawn = next(trace for trace in figure.data if trace.name == "harmful")
    assert list(drawn.y) == own.cosine.tolist()
    with pytest.raises(CosmicError, match=r"^position: found -3; it has -2, -1"):
        plot_layer_cosines(found, position=-3)
    with pytest.raises(CosmicError, match=r"^cosines: found none"):
        plot_layer_cosines({})
