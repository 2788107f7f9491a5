"""Figures of an edited model against its base: rates and divergences, and the direction that its weights lost."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cosmic_tl._util.border import checked
from cosmic_tl.experiments.model_comparison import BASE, DIVERGENCES, EDITED, RATES, ModelComparison
from cosmic_tl.experiments.removed_direction import RemovedDirection
from cosmic_tl.figures.style import BLUE, GREEN, GREY, LINE, VERMILION, finish, whiskers
from cosmic_tl.figures.text import as_text

COLOURS = {BASE: GREY, EDITED: VERMILION}
SYMBOLS = {BASE: "circle", EDITED: "diamond"}
PARTS = {"attention": (BLUE, "circle"), "MLP": (VERMILION, "diamond"), "embedding": (GREEN, "square")}
"""Colour and marker of each part that writes to the stream."""


@checked
def plot_model_comparison(comparison: ModelComparison) -> go.Figure:
    """Refusals and garbled completions of both models, and how far the edited one is from its base on harmless prompts.

    Args:
        comparison: From `compare_models`.

    Example:
        >>> import pandas as pd
        >>> from cosmic_tl import Effects
        >>> row = {"side": "positive", "prompt": "a", "completion": "No.", "garbled": False, "cross_entropy": 0.5}
        >>> rows = [{**row, "condition": name, "verdict": "refusal"} for name in ("base", "edited")]
        >>> kl = pd.DataFrame({"prompt": ["b"], "first": [0.5], "first_reverse": 0.5, "tokens": 2, "total": 3.0})
        >>> found = ModelComparison(Effects(pd.DataFrame(rows)), kl, "demo", "demo-weak")
        >>> [trace.name for trace in plot_model_comparison(found).data][:2]
        ['base: demo', 'edited: demo-weak']
    """
    terms, table = comparison.effects.terms, comparison.table
    figure = make_subplots(1, 2)
    rates = table[table.measure.isin(RATES)]
    words = {"refusal": terms.outcome, "garbled": "garbled"}
    names = [
        as_text(f"{words[measure]}, {terms.sides[side]}").replace(", ", ",<br>")
        for measure, side in zip(rates.measure, rates.side, strict=True)
    ]
    for name, label, beside in ((BASE, comparison.base, -0.12), (EDITED, comparison.edited, 0.12)):
        value, low, high = (rates[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=[place + beside for place in range(len(names))],
            y=value,
            customdata=names,
            error_y=whiskers(value, low, high),
            mode="markers",
            name=as_text(f"{name}: {label}"),
            marker={"color": COLOURS[name], "symbol": SYMBOLS[name], "size": 9},
            hovertemplate=f"%{{customdata}}, {name}: %{{y:.1%}}<extra></extra>",
            cliponaxis=False,
            row=1,
            col=1,
        )
    far = table[table.measure.isin(DIVERGENCES)]
    value, low, high = (far[f"{EDITED}{end}"].to_numpy() for end in ("", "_low", "_high"))
    figure.add_scatter(
        x=[
            DIVERGENCES[one].replace(" ‖ ", "‖").replace(", ", "<br>").replace(" per", "<br>per") for one in far.measure
        ],
        y=value,
        error_y=whiskers(value, low, high),
        mode="markers",
        showlegend=False,
        marker={"color": COLOURS[EDITED], "symbol": SYMBOLS[EDITED], "size": 9},
        hovertemplate="%{x}: %{y:.3g} nats<extra></extra>",
        cliponaxis=False,
        row=1,
        col=2,
    )
    figure.update_yaxes(title_text="share", range=[-0.03, 1.03], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(title_text="nats", rangemode="tozero", row=1, col=2)
    figure.update_xaxes(tickangle=0)
    figure.update_xaxes(tickvals=[*range(len(names))], ticktext=names, range=[-0.5, len(names) - 0.5], row=1, col=1)
    harmless = as_text(terms.sides["negative"])
    for k, title in enumerate(["completions", f"distance from the base, {harmless} prompts"]):
        figure.add_annotation(name=f"panel {k}", text=title, showarrow=False)
    return finish(
        figure,
        "What the edited model does differently",
        "lines: 95 % intervals, Wilson for shares and bootstrapped over prompts for nats",
        columns=2,
        own_labels=True,
        tick_lines=3.4,
    )


@checked
def plot_removed_direction(removed: RemovedDirection) -> go.Figure:
    """By layer: how alike the directions are that an edit changed, how much of the change they are, and what is left of them.

    Args:
        removed: From `find_removed_direction`.

    Example:
        >>> from cosmic_tl import load_model
        >>> from cosmic_tl.experiments import find_removed_direction
        >>> demo, weak = (load_model(name, device="cpu") for name in ("demo", "demo-weak"))
        >>> sorted({trace.name for trace in plot_removed_direction(find_removed_direction(demo, weak)).data})
        ['MLP', 'attention', 'embedding']
    """
    compared = removed.given is not None
    panels = {
        "cosine" if compared else "common": "cosine with the given direction"
        if compared
        else "cosine with the common direction",
        "share": "share of the difference",
        "left": "what is left along it",
    }
    figure, table = make_subplots(1, len(panels)), removed.matrices
    for column, (measure, title) in enumerate(panels.items(), 1):
        for part, (colour, symbol) in PARTS.items():
            some = table[table.part == part]
            if some.empty:
                continue
            figure.add_scatter(
                x=some.layer,
                y=some[measure],
                mode="lines+markers",
                name=part,
                legendgroup=part,
                showlegend=column == 1,
                line={"color": colour, "width": 2},
                marker={"symbol": symbol, "size": 6},
                customdata=some.parameter.map(as_text),
                hovertemplate="%{customdata}: %{y:.3f}<extra></extra>",
                cliponaxis=False,
                row=1,
                col=column,
            )
        level = removed.chance if column == 1 else 0.0
        figure.add_hline(level, line={"color": LINE, "dash": "dot", "width": 1}, row=1, col=column)
        figure.add_annotation(name=f"panel {column - 1}", text=title, showarrow=False)
    figure.update_xaxes(title_text="layer")
    for column in (1, 2):
        figure.update_yaxes(range=[-0.03, 1.03], row=1, col=column)
    if not table.empty:
        ends = table.left.min(), table.left.max()
        figure.update_yaxes(range=[min(-0.03, 1.1 * ends[0]), max(1.03, 1.1 * ends[1])], row=1, col=3)
    nothing = "no matrix that writes to the stream differs" if table.empty else ""
    return finish(
        figure,
        "Which direction the edit removes",
        nothing
        or "leading singular vector of each matrix's difference; dotted on the left: what random directions stay below in 95 %",
        columns=3,
        own_labels=True,
        span=int(removed.table.layer.max()) + 1,
    )
