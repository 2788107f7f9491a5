"""The figures of directions and cones that gradient descent found."""

import pandas as pd
import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.cone import Cone
from cosmic_tl.experiments.descent import WEIGHTS
from cosmic_tl.experiments.refine import Refined
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
    return _losses(refined.table, (*WEIGHTS, "loss"), "A direction by gradient")


@checked
def plot_cone(cone: Cone) -> go.Figure:
    """The parts of the loss on validation prompts, step by step, and the worst direction's loss.

    Args:
        cone: From `refine_cone`.

    Example:
        >>> import pandas as pd, torch
        >>> from cosmic_tl.directions import Subspace
        >>> zero = torch.zeros(3, dtype=torch.float64)
        >>> plane = Subspace(torch.eye(2, 3, dtype=torch.float64), zero, zero, 4, "pca")
        >>> rows = {"step": [0, 10], "ablation": 0.5, "addition": 1.0, "retention": 0.1, "loss": 0.8, "worst": 0.9}
        >>> [trace.name for trace in plot_cone(Cone(plane, plane, 1.0, pd.DataFrame(rows))).data]
        ['ablation', 'addition', 'retention', 'loss', 'worst']
    """
    title = f"A cone of {cone.best.rank} directions by gradient"
    return _losses(cone.table, (*WEIGHTS, "loss", "worst"), title)


def _losses(table: pd.DataFrame, names: tuple[str, ...], title: str) -> go.Figure:
    figure = go.Figure()
    for name in names:
        figure.add_scatter(
            x=table.step,
            y=table[name],
            mode="lines+markers",
            name=name,
            line={"dash": {"loss": "dash", "worst": "dot"}.get(name, "solid")},
            hovertemplate=f"{name}, step %{{x}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="nats per token", rangemode="tozero")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in WEIGHTS.items())
    return finish(figure, title, f"on validation prompts; the loss has weights {weights}")
