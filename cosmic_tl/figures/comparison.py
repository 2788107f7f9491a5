"""The figure of several selections and what their directions do."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import Side
from cosmic_tl.experiments.comparison import Comparison
from cosmic_tl.figures.style import COLOURS, PALE, finish, whiskers
from cosmic_tl.figures.text import as_text

EDITS: Mapping[str, tuple[Side, str]] = {
    "removal": ("positive", COLOURS["removal"]),
    "induction": ("negative", COLOURS["induction"]),
}
"""Edit to the side that it is measured on, and its colour."""


@checked
def plot_comparison(comparison: Comparison) -> go.Figure:
    """What removal and induction with each selection's direction do, beside the cost of removal.

    Args:
        comparison: From `compare_selections`.

    Example:
        >>> from cosmic_tl import CosmicOptions, RefusalTokenOptions, compare_selections, load_model, load_prompts
        >>> cosmic = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=50.0)
        >>> tokens = RefusalTokenOptions(mode="affine", n_train=8, n_val=4, n_positions=1, max_kl=50.0)
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> found = compare_selections(model, prompts, cosmic=cosmic, refusal_tokens=tokens, n_test=2)
        >>> [trace.name for trace in plot_comparison(found).data][:2]
        ['removal', 'induction']
    """
    effects, labels = comparison.effects, list(comparison.selections)
    terms = effects.terms
    figure = make_subplots(1, 3, shared_yaxes=True)
    names = [as_text(label) for label in labels]
    for edit, (side, colour) in EDITS.items():
        rates = [effects.rate(side, f"{edit}, {label}") for label in labels]
        value, low, high = np.array([(one.value, one.low, one.high) for one in rates]).T
        figure.add_scatter(
            x=value,
            y=names,
            error_x=whiskers(value, low, high),
            mode="markers",
            name=edit,
            marker={"color": colour, "size": 8},
            hovertemplate=f"%{{y}}, {edit}: %{{x:.1%}}<extra></extra>",
            row=1,
            col=1,
        )
        figure.add_vline(
            effects.rate(side, "baseline").value, line={"color": colour, "dash": "dash", "width": 1}, row=1, col=1
        )
    for edit, (_, colour) in EDITS.items():
        figure.add_scatter(
            x=comparison.table[f"{edit}_garbled"],
            y=names,
            mode="markers",
            showlegend=False,
            marker={"color": colour, "size": 8},
            hovertemplate=f"%{{y}}, {edit}: %{{x:.1%}} garbled<extra></extra>",
            row=1,
            col=2,
        )
    figure.add_bar(
        x=comparison.table.kl,
        y=names,
        orientation="h",
        marker_color=PALE,
        showlegend=False,
        hovertemplate="%{y}: %{x:.3g} nats<extra></extra>",
        row=1,
        col=3,
    )
    for k, title in enumerate([f"share of {terms.outcome}", "share garbled", "KL of removal (nats)"]):
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    figure.update_xaxes(nticks=4, tickangle=0)
    for k in (1, 2):
        figure.update_xaxes(range=[-0.05, 1.05], tickvals=[0, 0.5, 1], row=1, col=k)
    figure.update_yaxes(autorange="reversed")
    return finish(
        figure,
        "What each selection's direction does",
        f"removal on {terms.sides['positive']} prompts, induction on {terms.sides['negative']} ones, with 95 % intervals; "
        "dashed: no edit, in the same colour",
        columns=3,
        flow=False,
        height=1.9 * len(labels),
    )
