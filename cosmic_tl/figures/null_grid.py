"""The heatmaps of scores above the null."""

import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.figures.heatmaps import Panel, heatmaps, height_of, mark_cell
from cosmic_tl.figures.style import finish, position_labels
from cosmic_tl.selection.null_grid import NullGrid


@checked
def plot_null_grid(grid: NullGrid) -> go.Figure:
    """Each candidate's scores minus the mean score of shuffled-label directions at its layer and position.

    Args:
        grid: From `measure_null_grid`.

    Example:
        >>> import pandas as pd
        >>> from cosmic_tl import Positions
        >>> rows = {"measure": "score", "layer": [0, 1], "position": -1, "above": [0.1, 0.2]}
        >>> figure = plot_null_grid(NullGrid(pd.DataFrame(rows), 5, 1, -1, Positions(("a",)), {"score": "sum"}))
        >>> figure.data[0].z.tolist()
        [[0.1, 0.2]]
    """
    labels = position_labels(grid.positions)
    panels = []
    for measure, title in grid.labels.items():
        some = grid.table[grid.table.measure == measure]
        values = some.pivot(index="layer", columns="position", values="above").to_numpy(float)
        panels.append(Panel(title, values, labels, signed=True))
    figure = heatmaps(panels)
    for k in range(len(panels)):
        mark_cell(figure, k, grid.layer, grid.position + len(labels))
    grey = "; grey: no direction there, or not needed for the choice" if grid.table.above.isna().any() else ""
    return finish(
        figure,
        "Scores above directions of shuffled labels",
        f"mean of {grid.n} per layer and position; framed: the choice{grey}",
        columns=3,
        span=len(panels[0].values),
        height=height_of(panels),
    )
