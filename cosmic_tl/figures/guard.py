"""The figure of a latent guard."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.guard import BINS, LatentGuard
from cosmic_tl.figures.style import BLUE, GREEN, LINE, ORANGE, VERMILION, finish, whiskers
from cosmic_tl.figures.text import as_text

LOOKS = (
    (BLUE, "circle", "solid"),
    (VERMILION, "diamond", "dash"),
    (GREEN, "square", "dot"),
    (ORANGE, "triangle-up", "dashdot"),
)
"""Colour, symbol and dash of the sets of prompts, in turn."""


TITLES = ("caught against false alarms", "share of positive prompts against probability")


@checked
def plot_guard(guard: LatentGuard, n_bins: int = BINS) -> go.Figure:
    """How many positive prompts a guard catches for how many false alarms (ROC), and how far its probabilities can be trusted.

    Args:
        guard: From `latent_guard`.
        n_bins: Bins of the probabilities, with equally many prompts. Defaults to 5.

    Raises:
        CosmicError: If `n_bins` is not positive.

    Example:
        >>> from cosmic_tl import load_model, load_prompts, random_direction, Direction
        >>> import torch
        >>> from cosmic_tl.experiments import latent_guard
        >>> direction = random_direction(Direction(torch.ones(128), None, layer=3, position=-1))
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> figure = plot_guard(latent_guard(model, prompts, direction, n_train=8, n_test=4, n_placebos=1))
        >>> [note.text for note in figure.layout.annotations]
        ['caught against false alarms', 'share of positive prompts against probability']
    """
    from sklearn.metrics import roc_curve

    figure = make_subplots(1, 2)
    bins = guard.reliability(n_bins)
    sign = -1 if guard.slope < 0 else 1
    for k, (name, some) in enumerate(guard.scores.groupby("prompts", sort=False)):
        colour, symbol, dash = LOOKS[k % len(LOOKS)]
        areas = guard.table[guard.table.prompts == name].groupby("kind").auc.mean()
        label = f"{as_text(str(name))}: AUC {areas['direction']:.2f} (random {areas['random']:.2f})"
        alarms, caught, _ = roc_curve(some.side == SIDES[0], sign * some.projection)
        figure.add_scatter(
            x=alarms,
            y=caught,
            mode="lines",
            name=label,
            legendgroup=str(name),
            line={"color": colour, "width": 2.5, "shape": "hv", "dash": dash},
            hovertemplate=f"{as_text(str(name))}: %{{y:.1%}} caught, %{{x:.1%}} false alarms<extra></extra>",
            row=1,
            col=1,
        )
        own = bins[bins.prompts == name]
        figure.add_scatter(
            x=own.probability,
            y=own.rate,
            error_y=whiskers(own.rate, own.low, own.high),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            legendgroup=str(name),
            showlegend=False,
            customdata=own.n,
            hovertemplate=f"{as_text(str(name))}: %{{x:.2f}} predicted, %{{y:.1%}} of %{{customdata}}<extra></extra>",
            row=1,
            col=2,
        )
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"color": LINE, "dash": "dash"}, row="all", col="all")
    for k, title in enumerate(TITLES):
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_yaxes(range=[-0.03, 1.03])
    d, (n, m) = guard.direction, guard.n_fitted
    return finish(
        figure,
        "The direction as a latent guard",
        f"projection at layer {d.layer}, position {d.position}; fitted to {n} + {m} prompts",
        columns=2,
        own_labels=True,
    )
