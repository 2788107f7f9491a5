"""The figure of how sure a choice is."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.errors import check_count
from cosmic_tl.figures.style import BLUE, LINE, ORANGE, PALE, VERMILION, finish, whiskers
from cosmic_tl.figures.text import as_text
from cosmic_tl.selection.stability import Stability

COSINES, LOG_ODDS = "S<sub>comply</sub> + S<sub>refuse</sub>", "−bypass (log-odds)"
"""What the score is, by the procedure that chose."""
TITLES = {"induce": "induce (log-odds)", "kl": "KL of removal (nats)"}
"""Of measures that filters look at."""


@checked
def plot_stability(stability: Stability, n: int = 10) -> go.Figure:
    """How often each candidate wins on prompts drawn again, with 95 % intervals of its score and of what filters look at.

    Args:
        stability: `Selection.stability`.
        n: Number of candidates: those that win most often, then the best by score. Defaults to 10.

    Raises:
        CosmicError: If `n` is not positive.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, select_cosmic
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0, n_resamples=50)
        >>> selection = select_cosmic(load_model("demo", device="cpu"), load_prompts("demo"), options)
        >>> [note.text for note in plot_stability(selection.stability).layout.annotations][:3]
        ['share of wins', 'S<sub>comply</sub> + S<sub>refuse</sub>', 'KL of removal (nats)']
    """
    check_count("n", n)
    table = stability.table.nlargest(n, ["wins", "score"])
    names = [as_text(stability.place(row.layer, row.position)) for row in table.itertuples()]
    chosen = (table.layer == stability.chosen[0]) & (table.position == stability.chosen[1])
    colours = [
        VERMILION if here else ORANGE if tied else BLUE if kept else PALE
        for here, tied, kept in zip(chosen, table.tied, table.kept, strict=True)
    ]
    panels = [name for name in ("score", *TITLES) if name == "score" or name in stability.limits]
    n_panels = 1 + len(panels)
    figure = make_subplots(1, n_panels, shared_yaxes=True)
    figure.add_bar(
        x=table.wins,
        y=names,
        orientation="h",
        marker_color=colours,
        hovertemplate="%{y}: %{x:.1%} of the resamples<extra></extra>",
        showlegend=False,
        row=1,
        col=1,
    )
    for k, measure in enumerate(panels, 2):
        figure.add_scatter(
            x=table[measure],
            y=names,
            error_x=whiskers(table[measure], table[f"{measure}_low"], table[f"{measure}_high"]),
            mode="markers",
            marker={"color": colours, "size": 8},
            customdata=table[[f"{measure}_low", f"{measure}_high"]],
            hovertemplate="%{y}: %{x:.4f} [%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra></extra>",
            showlegend=False,
            row=1,
            col=k,
        )
        if measure in stability.limits:
            figure.add_vline(stability.limits[measure], line={"color": LINE, "dash": "dash"}, row=1, col=k)
    score = COSINES if "s_comply" in table else LOG_ODDS
    for k, title in enumerate(["share of wins", score, *(TITLES[name] for name in panels[1:])]):
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    figure.update_xaxes(nticks=4, tickangle=0)
    figure.update_xaxes(range=[0, 1.1], tickvals=[0, 0.5, 1], row=1, col=1)
    figure.update_yaxes(autorange="reversed")
    return finish(
        figure,
        f"The choice on {stability.n_resamples} resamples of the validation prompts",
        "red: chosen; orange: its score cannot be told apart from that; blue: no filter is known to take it; grey: one does. "
        f"Lines: 95 % intervals; dashed: {'the KL filter' if n_panels == 3 else 'filters'}",
        columns=n_panels,
        flow=False,
        height=1.9 * len(table),
    )
