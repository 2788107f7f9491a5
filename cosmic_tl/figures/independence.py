"""The figure of how ablating one direction changes another's cosines."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.independence import Independence
from cosmic_tl.figures.style import BLUE, PALE, VERMILION, finish

STYLES = {"random": (PALE, 1), "nothing": (BLUE, 2), "the other": (VERMILION, 2)}


@checked
def plot_independence(independence: Independence) -> go.Figure:
    """Cosine of the last token's stream with each direction by layer: with no edit, and with the other or random ones ablated.

    Args:
        independence: From `measure_independence`.

    Example:
        >>> import pandas as pd
        >>> rows = {"read": ["first", "second"] * 2, "ablated": ["nothing", "nothing", "the other", "the other"]}
        >>> table = pd.DataFrame(rows).assign(seed=-1, layer=3, cosine=0.5, change=0.0)
        >>> [trace.name for trace in plot_independence(Independence(table, 0.0, (3, 4))).data][:2]
        ['nothing ablated', 'the other ablated']
    """
    figure = make_subplots(1, 2)
    for column, (read, layer) in enumerate(zip(("first", "second"), independence.layers, strict=True), 1):
        shown = independence.table[independence.table["read"] == read]
        for ablated, (colour, width) in STYLES.items():
            some = shown[shown.ablated == ablated]
            for k, (_, line) in enumerate(some.groupby("seed")):
                name = f"{ablated} ablated"
                figure.add_scatter(
                    x=line.layer,
                    y=line.cosine,
                    mode="lines",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1 and k == 0,
                    line={"color": colour, "width": width},
                    hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
                    row=1,
                    col=column,
                )
        figure.add_annotation(name=f"panel {column - 1}", text=f"{read} (layer {layer})", showarrow=False)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="cosine")
    return finish(
        figure,
        "What ablating one direction does to the other",
        f"RepInd {independence.total:.3g}; cosine between the directions {independence.cosine:.2f}",
        columns=2,
        span=int(independence.table.layer.max()) + 1,
        own_labels=True,
    )
