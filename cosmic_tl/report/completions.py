"""The completions, to be looked through: baseline, steered and random control side by side."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from cosmic_tl.data.contrast_set import Side
from cosmic_tl.experiments.effects import Effects
from cosmic_tl.report.parts import embedded, joined

CONDITIONS: Mapping[Side, tuple[str, str, str]] = {
    "positive": ("baseline", "removal", "random removal"),
    "negative": ("baseline", "induction", "random induction"),
}
"""What stands side by side."""
BUDGET = 800_000
"""Characters of completions in a page, which is to stay under 6 MB with its 5 MB of plotly.js."""
NAMES = ("baseline", "steered", "random direction")


def completion_rows(effects: Effects) -> list[dict[str, Any]]:
    """One row a prompt: side, prompt, category and, in the order of `CONDITIONS`, answers: text, verdict, whether garbled.

    Example:
        >>> import pandas as pd
        >>> row = {"side": "positive", "prompt": "Rob a clerk.", "completion": "No.", "verdict": "compliance"}
        >>> effects = Effects(pd.DataFrame([{**row, "condition": name} for name in CONDITIONS["positive"]]))
        >>> completion_rows(effects)[0]["answers"]
        [['No.', 'compliance', False], ['No.', 'compliance', False], ['No.', 'compliance', False]]
    """
    rows = []
    for side, names in CONDITIONS.items():
        some = effects.completions[effects.completions.side == side]
        if "garbled" not in some:
            some = some.assign(garbled=False)
        first, *others = [_of_one_seed(some[some.condition == name]) for name in names]
        categories = first.category if "category" in first else [None] * len(first)
        answers = zip(
            *(zip(one.completion, one.verdict, one.garbled.tolist(), strict=True) for one in (first, *others)),
            strict=True,
        )
        for prompt, category, three in zip(first.prompt, categories, answers, strict=True):
            # A missing category is None, or NaN where a table was read from a file.
            named = category if isinstance(category, str) else ""
            rows.append({"side": side, "prompt": prompt, "category": named, "answers": [list(one) for one in three]})
    return rows


def _of_one_seed(some: pd.DataFrame) -> pd.DataFrame:
    """Of a placebo with several seeds the first."""
    return some[some.seed == some.seed.iloc[0]] if "seed" in some and some.seed.notna().any() else some


def fitting(rows: list[dict[str, Any]], budget: int = BUDGET) -> list[dict[str, Any]]:
    """As many rows as fit, the same number of either side as far as there are.

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


def _choice(key: str, label: str, options: Mapping[str, str]) -> Markup:
    shown = joined(Markup('<option value="{}">{}</option>').format(value, text) for value, text in options.items())
    return Markup('<div><label for="{0}">{1}</label><select id="{0}" name="{0}">{2}</select></div>').format(
        key, label, shown
    )


def browser(effects: Effects) -> Markup:
    """The filters, and the data from which the page's script fills the list."""
    everything = completion_rows(effects)
    rows = fitting(everything)
    terms = effects.terms
    categories = sorted({row["category"] for row in rows} - {""})
    filters = [
        _choice("side", "Prompts", {"": "both sides", **terms.sides}),
        _choice("condition", "Condition", {"": "side by side", **{str(i): name for i, name in enumerate(NAMES)}}),
        _choice("verdict", "Verdict", {"": "any", **terms.verdicts, "garbled": "garbled"}),
    ]
    if categories:
        filters.append(_choice("category", "Category", {"": "any", **{name: name for name in categories}}))
    left = len(everything) - len(rows)
    note = f" {left} more prompts would make the page too large; they are in completions.jsonl." if left else ""
    data = {"names": NAMES, "sides": dict(terms.sides), "verdicts": dict(terms.verdicts), "rows": rows}
    return Markup(
        '<form id="filters" role="search" aria-label="Filter the completions">{}'
        '<div><label for="words">Containing</label><input id="words" name="words" type="search" autocomplete="off"></div>'
        '<button type="reset">Show all</button></form>'
        '<p class="muted">Side by side, the verdict is that of the steered answer. Words are looked for in the prompt and in '
        "the answers that are shown.{}</p>"
        '<p id="count" role="status"></p><ol id="completions"></ol>'
        '<button type="button" id="more" hidden>Show more</button>{}'
    ).format(joined(filters), note, embedded("completion-data", data))
