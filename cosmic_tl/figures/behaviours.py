"""The figure of a behaviour under steering."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.behaviour_sweep import BehaviourSweep
from cosmic_tl.figures.style import COLOURS, LINE, finish
from cosmic_tl.figures.text import as_text

LOOKS = {"found": (COLOURS["positive"], "solid"), "random": (COLOURS["random"], "dash")}


@checked
def plot_behaviour_sweep(swept: BehaviourSweep) -> go.Figure:
    """Log-odds of the matching answer by layer, one panel per α: the found direction, a random one, and no edit.

    Args:
        swept: From `sweep_behaviour`.

    Example:
        >>> rows = [("none", None, 0.0), ("found", 3, 1.0), ("random", 3, 1.0)]
        >>> table = pd.DataFrame(rows, columns=["direction", "layer", "alpha"]).assign(log_odds=0.5, sem=0.1, n=4)
        >>> [trace.name for trace in plot_behaviour_sweep(BehaviourSweep(table, "yes")).data]
        ['found', 'random']
    """
    table = swept.table
    unedited = float(table.log_odds[table.direction == "none"].iloc[0])
    edited = table[table.direction != "none"]
    alphas = list(dict.fromkeys(edited.alpha))
    figure = make_subplots(1, len(alphas), shared_yaxes="all")
    for column, alpha in enumerate(alphas, 1):
        figure.add_annotation(name=f"panel {column - 1}", text=f"α = {alpha:g}", showarrow=False)
        for name, some in edited[edited.alpha == alpha].groupby("direction", sort=False):
            colour, dash = LOOKS[str(name)]
            figure.add_scatter(
                x=some.layer,
                y=some.log_odds,
                error_y={"type": "data", "array": some["sem"], "color": colour, "thickness": 1, "width": 2},
                name=str(name),
                legendgroup=str(name),
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"size": 6},
                customdata=some[["sem", "n"]],
                hovertemplate="layer %{x}: %{y:.2f} ± %{customdata[0]:.2f} (SE, n = %{customdata[1]})",
                row=1,
                col=column,
            )
        figure.add_hline(y=unedited, line={"color": LINE, "dash": "dot", "width": 1.3}, row=1, col=column)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="log-odds (nats)", showgrid=True)
    return finish(
        figure,
        f"Behaviour {as_text(swept.behaviour)}: log-odds of the matching answer",
        "mean ± SE over questions; dotted: no edit; random: same norm, same layer",
        columns=min(3, len(alphas)),
        span=float(pd.to_numeric(edited.layer).max() + 1),
    )
