"""The figure of a causal map."""

import numpy as np
import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.errors import CosmicError
from cosmic_tl.experiments.causal_plan import CausalPlan
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.figures.heatmaps import Panel, heatmaps, height_of
from cosmic_tl.figures.style import BLUE, finish, position_labels
from cosmic_tl.figures.text import as_text

LABELS = {"score": "log-odds", "cosine": "cosine", "kl": "KL (nats)"}


@checked
def plot_causal_map(causal_map: CausalMap, measure: str | None = None) -> go.Figure:
    """What exchanging one place's contribution does, by layer and position: along the direction, along random ones, altogether.

    Args:
        causal_map: From `causal_map`.
        measure: "score", "cosine" or "kl". Default the first one that was measured.

    Raises:
        CosmicError: If it was not measured.

    Example:
        >>> import pandas as pd
        >>> from cosmic_tl import Positions
        >>> rows = {"side": "positive", "measure": "kl", "treatment": "direction", "layer": [0, 1], "position": -1, "effect": 0.5}
        >>> table = pd.DataFrame(rows)
        >>> figure = plot_causal_map(CausalMap(table, table, "block", "removal", "at", Positions(("a",)), (8, 8)))
        >>> figure.layout.annotations[0].text
        'harmful prompts: direction'
    """
    found = causal_map
    measure = found.measures[0] if measure is None else measure
    if measure not in found.measures:
        raise CosmicError(f"measure: found {measure!r}; it has {', '.join(found.measures)}")
    labels = position_labels(found.positions)
    rows = [name for name in found.place if name != "position"]
    panels = []
    some = found.table[found.table.measure == measure]
    for side in [side for side in SIDES if (some.side == side).any()]:
        for treatment in some.treatment.unique():
            own = some[(some.side == side) & (some.treatment == treatment)]
            values = own.pivot(index=rows, columns="position", values="effect")
            columns = [".".join(map(str, np.atleast_1d(where))) for where in values.index]
            title = f"{as_text(found.terms.sides[side])} prompts: {treatment}"
            panels.append(Panel(title, values.to_numpy(float), labels, signed=measure != "kl", columns=columns))
    figure = heatmaps(panels, shared=True, bar_title=LABELS[measure], column_title=".".join(rows))
    n, m = found.n_prompts
    reach = {"at": "one layer at a time", "up-to": "all layers up to each", "from": "all layers from each on"}[
        found.span
    ] + (", each token and all after it" if found.token_span == "from" else "")
    return finish(
        figure,
        f"Where the concept acts: {found.treatment} of {found.what}",
        f"change towards the other class, {reach}; {n} + {m} prompts"
        if measure != "kl"
        else f"divergence from the clean model, {reach}; {n} + {m} prompts",
        columns=some.treatment.nunique(),
        span=len(panels[0].values),
        height=height_of(panels),
    )


@checked
def plot_causal_plan(plan: CausalPlan) -> go.Figure:
    """What each step of a causal map takes.

    Args:
        plan: From `plan_causal_map`.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"step": ["clean", "direction"], "patches": [0, 8], "gmacs": [1.0, 2.5]})
        >>> plot_causal_plan(CausalPlan(table, (4, 4))).data[0].x
        (1.0, 2.5)
    """
    table = plan.table
    figure = go.Figure(
        go.Bar(
            x=table.gmacs.tolist(),
            y=table.step.tolist(),
            orientation="h",
            marker={"color": BLUE},
            customdata=table.patches.tolist(),
            hovertemplate="%{y}: %{x:.3g} GMACs, %{customdata} patches<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="GMACs")
    figure.update_yaxes(autorange="reversed")
    n, m = plan.n_prompts
    return finish(figure, "What a causal map takes", f"{int(table.patches.sum())} patches of {n} + {m} prompts")
