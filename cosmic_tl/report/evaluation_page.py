"""The page of an edited model against its base: the numbers first, then figures, weights, completions, and how to repeat it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cosmic_tl.data.contrast_set import SIDES
from cosmic_tl.experiments.model_comparison import BASE, EDITED, ModelComparison
from cosmic_tl.figures.two_models import plot_model_comparison, plot_removed_direction
from cosmic_tl.generation.sampling import generation_sentence
from cosmic_tl.report.completions import browser
from cosmic_tl.report.parts import flat_settings, in_percent, render, table
from cosmic_tl.report.pictures import Picture


def write_evaluation(found: ModelComparison, settings: Mapping[str, Any] | None = None, *, command: str = "") -> str:
    """The page of a comparison (`evaluation.html`) as text.

    Args:
        found: From `compare_models`.
        settings: What the results depend on. Defaults to nothing.
        command: The command that repeats the comparison. Defaults to none.

    Example:
        >>> from cosmic_tl import Effects
        >>> row = {"side": "positive", "prompt": "a", "completion": "<b>No.", "garbled": False, "cross_entropy": 0.5}
        >>> rows = [{**row, "condition": name, "verdict": "refusal"} for name in ("base", "edited")]
        >>> kl = pd.DataFrame({"prompt": ["b"], "first": [0.5], "first_reverse": 0.5, "tokens": 2, "total": 3.0})
        >>> page = write_evaluation(ModelComparison(Effects(pd.DataFrame(rows)), kl, "demo", "demo-weak"))
        >>> "<title>demo-weak against demo</title>" in page, "<b>No." in page
        (True, False)
    """
    removed, terms = found.removed, found.effects.terms
    figures = {"comparison": plot_model_comparison(found)}
    if removed is not None and removed.differs:
        figures["removed"] = plot_removed_direction(removed)
    empty = pd.DataFrame()
    categories = found.categories
    shown = {side for side in SIDES if (found.effects.completions.side == side).any()}
    # Rounding leaves 1e-9 of what is removed.
    weights = (
        empty
        if removed is None
        else removed.table.drop(columns="matrix").assign(left=removed.table.left.round(4) + 0.0)
    )
    if removed is not None and removed.given is None:
        weights = weights.drop(columns="cosine")
    return render(
        "evaluation",
        title=f"{found.edited} against {found.base}",
        heading="An edited model against its base",
        about=[f"Base {found.base}", f"edited {found.edited}"],
        found=found,
        terms=terms,
        headline=table(found.headline, "Both models"),
        categories=table(in_percent(terms.of(categories)) if len(categories) else empty, "By category"),
        capability=table(empty if found.capability is None else found.capability.table, "Tasks"),
        pictures={name: Picture(figure) for name, figure in figures.items()},
        weights=table(weights, "What writes to the stream"),
        changed=table(empty if removed is None else removed.changed, "By kind of parameter"),
        generation=generation_sentence(found.effects.generation) if found.effects.generation else "",
        settings=table(
            pd.DataFrame(flat_settings(dict(settings or {})), columns=["setting", "value"]), "Settings and versions"
        ),
        command=command,
        **browser(found.effects, {side: (BASE, EDITED) for side in SIDES if side in shown}, (BASE, EDITED)),
    )
