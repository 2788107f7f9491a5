"""The figure of a direction's optimisation."""

import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.refine import WEIGHTS, Refined
from cosmic_tl.figures.style import finish


@checked
def plot_refined(refined: Refined) -> go.Figure:
    """The parts of the loss on validation prompts, step by step.

    Args:
        refined: From `refine_direction`.

    Example:
        >>> import pandas as pd, torch
        >>> from cosmic_tl import Direction
        >>> d = Direction(torch.ones(4), torch.zeros(4), 1, -1)
        >>> rows = {"step": [0, 10], "ablation": [0.5, 0.4], "addition": [1.0, 0.5], "retention": 0.1, "loss": [0.8, 0.6]}
        >>> [trace.name for trace in plot_refined(Refined(d, d, pd.DataFrame(rows))).data]
        ['ablation', 'addition', 'retention', 'loss']
    """
    table = refined.table
    figure = go.Figure()
    for name in (*WEIGHTS, "loss"):
        figure.add_scatter(
            x=table.step,
            y=table[name],
            mode="lines+markers",
            name=name,
            line={"dash": "dash"} if name == "loss" else {},
            hovertemplate=f"{name}, step %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="nats per token", rangemode="tozero")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in WEIGHTS.items())
    return finish(figure, "A direction by gradient", f"on validation prompts; the loss has weights {weights}")
