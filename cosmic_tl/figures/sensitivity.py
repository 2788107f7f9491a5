"""The figure of what other settings choose."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.sensitivity import Sensitivity
from cosmic_tl.figures.style import BLUE, LINE, VERMILION, finish

PANELS = {
    "evaluation_share": "share of evaluation layers",
    "target": "target",
    "n_positions": "number of positions",
    "n_val": "validation prompts per side",
}
"""What is varied, to the panel's title."""


@checked
def plot_sensitivity(sensitivity: Sensitivity) -> go.Figure:
    """The layer that each setting chooses, with its position written beside it, one panel per setting that is varied.

    Args:
        sensitivity: From `measure_sensitivity`.

    Example:
        >>> import pandas as pd
        >>> rows = {"varied": ["asked for", "target", "target"], "value": ["", "mean", "centred"], "layer": [3, 3, 4]}
        >>> table = pd.DataFrame({**rows, "position": -1, "cosine": [1.0, 1.0, 0.9]})
        >>> [list(trace.y) for trace in plot_sensitivity(Sensitivity(table, 8, 5)).data]
        [[3, 4]]
    """
    table = sensitivity.table
    asked = table.iloc[0]
    names = [name for name in PANELS if (table.varied == name).any()]
    columns = min(2, len(names))
    figure = make_subplots(-(-len(names) // columns), columns)
    for k, name in enumerate(names):
        rows = table[(table.varied == name) & table.layer.notna()]
        same = (rows.layer == asked.layer) & (rows.position == asked.position)
        figure.add_scatter(
            x=rows.value,
            y=rows.layer.tolist(),
            text=[str(position).replace("-", "−") for position in rows.position],
            textposition="top center",
            mode="markers+text",
            marker={"color": [VERMILION if one else BLUE for one in same], "size": 9},
            customdata=rows.cosine,
            hovertemplate="%{x}: layer %{y}, position %{text}, cosine %{customdata:.3f}<extra></extra>",
            showlegend=False,
            row=1 + k // columns,
            col=1 + k % columns,
        )
        every = table[table.varied == name].value.tolist()
        axes = {"row": 1 + k // columns, "col": 1 + k % columns}
        figure.update_xaxes(type="category", categoryarray=every, range=[-0.5, len(every) - 0.5], tickangle=0, **axes)
        if pd.notna(asked.layer):
            figure.add_hline(int(asked.layer), line={"color": LINE, "dash": "dot", "width": 1}, **axes)
        figure.add_annotation(name=f"panel {k}", text=PANELS[name], showarrow=False)
    figure.update_yaxes(range=[-0.5, sensitivity.n_layers + 0.5], title_text="layer")
    return finish(
        figure,
        "What other settings choose",
        f"red: the same as asked for (layer {asked.layer}, position {asked.position}); numbers: positions; no dot: none passes "
        "the filters",
        columns=columns,
        own_labels=True,
        height=14,
    )
