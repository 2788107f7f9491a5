"""The completions in a page, to look through: baseline, steered and with a random direction side by side."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cosmic_tl.data.contrast_set import Side
from cosmic_tl.experiments.effects import Effects

CONDITIONS: Mapping[Side, tuple[str, str, str]] = {
    "positive": ("baseline", "removal", "random removal"),
    "negative": ("baseline", "induction", "random induction"),
}
"""The conditions shown side by side, for each side's prompts."""
BUDGET = 800_000
"""Maximum number of characters of completions in a page: with 5 MB of plotly.js it stays under 6 MB."""
NAMES = ("baseline", "steered", "random direction")


def completion_rows(effects: Effects, conditions: Mapping[Side, Sequence[str]] = CONDITIONS) -> list[dict[str, Any]]:
    """One row per prompt: side, prompt, category, and, in the order of the conditions, answers (text, verdict, garbled).

    Example:
        >>> import pandas as pd
        >>> row = {"side": "positive", "prompt": "Rob a clerk.", "completion": "No.", "verdict": "compliance"}
        >>> effects = Effects(pd.DataFrame([{**row, "condition": name} for name in CONDITIONS["positive"]]))
        >>> completion_rows(effects)[0]["answers"]
        [['No.', 'compliance', False], ['No.', 'compliance', False], ['No.', 'compliance', False]]
    """
    rows = []
    for side, names in conditions.items():
        some = effects.completions[effects.completions.side == side]
        if "garbled" not in some:
            some = some.assign(garbled=False)
        first, *others = [_of_one_seed(some[some.condition == name]) for name in names]
        categories = first.category if "category" in first else [None] * len(first)
        answers = zip(
            *(zip(one.completion, one.verdict, one.garbled.tolist(), strict=True) for one in (first, *others)),
            strict=True,
        )
        for prompt, category, every in zip(first.prompt, categories, answers, strict=True):
            # A missing category is None, or NaN where a table was read from a file.
            named = category if isinstance(category, str) else ""
            rows.append({"side": side, "prompt": prompt, "category": named, "answers": [list(one) for one in every]})
    return rows


def _of_one_seed(some: pd.DataFrame) -> pd.DataFrame:
    """The first seed of a placebo with several."""
    return some[some.seed == some.seed.iloc[0]] if "seed" in some and some.seed.notna().any() else some


def fitting(rows: list[dict[str, Any]], budget: int = BUDGET) -> list[dict[str, Any]]:
    """As many rows as fit, the same number from each side as far as possible.

    Example:
        >>> rows = [{"side": side, "prompt": "x" * 100} for side in ("positive", "positive", "negative")]
        >>> [row["side"] for row in fitting(rows, 300)]
        ['positive', 'negative']
    """
    before: Counter[str] = Counter()
    turns = []
    for i, row in enumerate(rows):
        turns.append((before[row["side"]], i))
        before[row["side"]] += 1
    kept = []
    for _, i in sorted(turns):
        if (budget := budget - len(json.dumps(rows[i]))) < 0:
            break
        kept.append(i)
    return [rows[i] for i in sorted(kept)]


def choices(effects: Effects, rows: list[dict[str, Any]], names: Sequence[str] = NAMES) -> dict[str, dict[str, str]]:
    """The options of each filter, by value; no categories if no prompt has one.

    Args:
        effects: Their labels.
        rows: Those in the page.
        names: What the conditions are called.
    """
    categories = sorted({row["category"] for row in rows} - {""})
    return {
        "side": {"": "both sides", **effects.terms.sides},
        "condition": {"": "side by side", **{str(i): name for i, name in enumerate(names)}},
        "verdict": {"": "any", **effects.terms.verdicts, "garbled": "garbled"},
        "category": {"": "any", **{name: name for name in categories}} if categories else {},
    }


def browser(
    effects: Effects, conditions: Mapping[Side, Sequence[str]] = CONDITIONS, names: Sequence[str] = NAMES
) -> dict[str, Any]:
    """What the completions section is filled with: filters, the data for the page's script, and how many rows are left out.

    Args:
        effects: Their completions.
        conditions: Those shown side by side, for each side's prompts; the verdicts to filter by are those of the second.
        names: What these are called.
    """
    everything = completion_rows(effects, conditions)
    rows = fitting(everything)
    terms = effects.terms
    data = {"names": list(names), "sides": dict(terms.sides), "verdicts": dict(terms.verdicts), "rows": rows}
    return {"options": choices(effects, rows, names), "completions": data, "left_out": len(everything) - len(rows)}
