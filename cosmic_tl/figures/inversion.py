"""The figure of the reply-inversion test."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.inversion import NOTHING, RANDOM, ReplyInversion
from cosmic_tl.figures.style import BLUE, LINE, PALE, finish, whiskers
from cosmic_tl.figures.text import as_text

MEASURES = {"judgement": "judgement", "refusal": "refusal token"}


@checked
def plot_inversion(inversion: ReplyInversion) -> go.Figure:
    """How far steering along each direction moves the judgement and the refusal of each side's prompts, beside random directions.

    Args:
        inversion: From `reply_inversion`.

    Example:
        >>> from cosmic_tl import Direction, load_model
        >>> from cosmic_tl.experiments import reply_inversion
        >>> import torch
        >>> some = {"x": Direction(torch.ones(128), None, layer=3, position=-1)}
        >>> sides = ["Rob a bank clerk."], ["Bake a pizza."]
        >>> figure = plot_inversion(reply_inversion(load_model("demo", device="cpu"), sides, some, n_placebos=1))
        >>> [note.text for note in figure.layout.annotations]
        ['harmful: judgement', 'harmless: judgement']
    """
    table = inversion.table[inversion.table.steered != NOTHING]
    measures = [name for name in MEASURES if (table.measure == name).any()]
    places = [(name, scope) for scope in table.tokens.unique() for name in inversion.places]
    rows = list(range(len(places)))
    figure = make_subplots(1, len(measures) * len(SIDES))
    for column, (measure, side) in enumerate(((m, s) for m in measures for s in SIDES), 1):
        own = table[(table.measure == measure) & (table.side == side)]
        for row, (name, scope) in enumerate(places):
            there = own[(own.tokens == scope) & (own.layer == inversion.places[name])]
            placebos, one = there[there.steered == RANDOM], there[there.steered == name]
            figure.add_scatter(
                x=placebos.change,
                y=[row] * len(placebos),
                mode="markers",
                name="random directions",
                legendgroup=RANDOM,
                showlegend=column == 1 and row == 0,
                marker={"color": PALE, "size": 7},
                hovertemplate="random: %{x:.2f}<extra></extra>",
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=one.change,
                y=[row],
                error_x=whiskers(one.change, one.low, one.high),
                mode="markers",
                name="direction",
                legendgroup="direction",
                showlegend=column == 1 and row == 0,
                marker={"color": BLUE, "size": 9},
                customdata=one[["value", "share"]],
                hovertemplate=f"{as_text(name)}: %{{x:.2f}}, to %{{customdata[0]:.2f}}, above 0 in "
                "%{customdata[1]:.0%} of the prompts<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_vline(0, line={"color": LINE, "width": 1}, row=1, col=column)
        title = f"{as_text(inversion.terms.sides[side])}: {MEASURES[measure]}"
        figure.add_annotation(name=f"panel {column - 1}", text=title, showarrow=False)
    labels = [f"{as_text(name)}, {scope}" for name, scope in places]
    figure.update_xaxes(title_text="change of log-odds")
    figure.update_yaxes(tickvals=rows, ticktext=labels, range=[len(rows) - 0.5, -0.5])
    (yes, no), named = map(as_text, inversion.replies), inversion.terms.sides
    return finish(
        figure,
        "Reply inversion",
        f"judgement: log-odds of “{yes}” against “{no}”; steered by {inversion.length:.3g} along the direction on "
        f"{as_text(named['negative'])} prompts, against it on {as_text(named['positive'])} ones, on the text's tokens or on all",
        columns=2,
        height=max(5.0, 1.9 * len(rows)),
    )
