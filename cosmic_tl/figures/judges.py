"""The figure of two judges' verdicts."""

from itertools import product

import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.figures.style import colour_scale, finish
from cosmic_tl.figures.text import as_text
from cosmic_tl.judges.reliability import Agreement


@checked
def plot_agreement(agreement: Agreement) -> go.Figure:
    """How often each pair of verdicts occurs, as counts.

    Args:
        agreement: From `agreement`.

    Example:
        >>> from cosmic_tl.judges import agreement
        >>> plot_agreement(agreement(["refusal", "refusal"], ["refusal", "compliance"])).data[0].z.tolist()
        [[1, 1], [0, 0]]
    """
    table = agreement.table
    names, places = [as_text(str(name)) for name in table.columns], list(range(len(table)))  # rows and columns alike
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(),
            x=places,
            y=places,
            customdata=[[f"{first}, then {second}" for second in names] for first in names],
            **{**colour_scale(table.to_numpy()), "zmin": 0},
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "completions"}},
            hovertemplate="%{customdata}: %{z}<extra></extra>",
        )
    )
    for row, column in product(places, places):
        count = int(table.iloc[row, column])
        colour = "#000000" if 2 * count > table.to_numpy().max() else "#ffffff"  # on the lighter or darker half
        figure.add_annotation(x=column, y=row, text=str(count), showarrow=False, font={"color": colour})
    axes = {"tickvals": places, "ticktext": names}
    figure.update_xaxes(**axes, title_text=as_text(str(table.columns.name)), range=[-0.5, len(names) - 0.5])
    figure.update_yaxes(**axes, title_text=as_text(str(table.index.name)), range=[len(names) - 0.5, -0.5])
    return finish(figure, "Verdicts of two judges", as_text(str(agreement)), height=3.5 * len(table))
