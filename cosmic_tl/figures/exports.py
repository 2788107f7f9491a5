"""The figure of an exported edit in its own reader."""

import plotly.graph_objects as go

from cosmic_tl._util.border import checked
from cosmic_tl.export.checking import FACTOR, ExportCheck
from cosmic_tl.figures.style import BLUE, GREEN, LINE, PALE, finish


@checked
def plot_export_check(check: ExportCheck) -> go.Figure:
    """The largest difference of a logit for each prompt, or its KL divergence, beside the control.

    Args:
        check: From `check_export`.

    Example:
        >>> import pandas as pd
        >>> row = {"prompt": "hello", "difference": 1e-5, "same_completion": True, "control": 0.4}
        >>> figure = plot_export_check(ExportCheck(pd.DataFrame([row]), "steer.py", "transformers", "no edit"))
        >>> [trace.name for trace in figure.data]
        ['exported', 'control: no edit']
    """
    table = check.table
    numbers = list(range(1, len(table) + 1))
    figure = go.Figure()
    shown = [("exported", "difference", BLUE), (f"control: {check.control}", "control", PALE)]
    unit, allowed = "largest difference of a logit", check.tolerance
    if "unedited" in table:
        shown.insert(1, ("without the edit", "unedited", GREEN))
        unit, allowed = "KL divergence, nats per token", FACTOR * float(table.unedited.mean())
    for name, column, color in shown:
        figure.add_scatter(
            x=numbers,
            y=table[column].clip(lower=1e-9),  # 0 has no place on a logarithmic axis
            mode="markers",
            name=name,
            marker={"color": color, "size": 8},
            hovertemplate="%{y:.1e}",
        )
    figure.add_hline(allowed, line={"color": LINE, "dash": "dash"})
    figure.update_xaxes(title_text="prompt", tickvals=numbers)
    figure.update_yaxes(title_text=unit, type="log", exponentformat="power")
    said = "The same edit" if check.passed else "Not the same edit"
    return finish(figure, f"{said} in {check.reader}", f"exported to {check.to}; dashed: what counts as the same")
