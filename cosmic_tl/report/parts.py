"""What the pages share: their templates, and tables as the templates take them."""

import json
import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from cosmic_tl._util.versions import versions
from cosmic_tl.experiments.causal_result import CausalMap
from cosmic_tl.figures.causal import LABELS
from cosmic_tl.figures.export import figure_json, plotly_js
from cosmic_tl.figures.style import TEMPLATES

NUMBER = re.compile(r"–|-?[\d.]+(e[+-]?\d+)?%?")


@dataclass(frozen=True)
class Table:
    """A table in a page. The template escapes its text."""

    label: str
    columns: list[str]
    numeric: list[bool]
    """Which columns hold numbers, which are aligned to the right."""
    rows: list[list[str]]


def table(frame: pd.DataFrame, label: str) -> Table:
    """A DataFrame as text: numbers with four digits, "–" for missing values.

    Example:
        >>> shown = table(pd.DataFrame({"cross_entropy": [0.123456, None]}), "Fluency")
        >>> shown.columns, shown.numeric, shown.rows
        (['cross entropy'], [True], [['0.1235'], ['–']])
    """
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    numeric = [bool(rows) and all(NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(frame.columns))]
    return Table(label, [str(name).replace("_", " ") for name in frame.columns], numeric, rows)


def strongest_places(found: CausalMap) -> dict[str, Table]:
    """The strongest places of each side of a causal map, by their caption.

    Example:
        >>> from cosmic_tl import Positions
        >>> place = {"side": "positive", "measure": "kl", "layer": 3, "position": -1}
        >>> rows = [{**place, "treatment": name, "effect": 0.5, "low": 0.0, "high": 1.0} for name in ("direction", "placebo")]
        >>> shares = pd.DataFrame([{**place, "share": 0.7, "low": 0.6, "high": 0.8}])
        >>> found = CausalMap(pd.DataFrame(rows), shares, "block", "interchange", "at", Positions(("a",)), (1, 1))
        >>> list(strongest_places(found))
        ['Strongest places, harmful prompts (KL (nats))']
    """
    captions = {
        side: f"Strongest places, {found.terms.sides[side]} prompts ({LABELS[found.measures[0]]})"
        for side in found.table.side.unique()
    }
    return {caption: table(found.strongest(side), caption) for side, caption in captions.items()}


def _text(value: Any) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_percent(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of rates with these as whole percentages; α, scores and nats stay as they are.

    Example:
        >>> in_percent(pd.DataFrame({"low": [0.5], "cross_entropy": [0.5]})).values.tolist()
        [['50%', 0.5]]
    """
    others = [name for name in frame if re.search("entropy|alpha|score", str(name))]
    shares = frame.drop(columns=others).select_dtypes(float).columns
    return frame.assign(**{name: frame[name].map("{:.0%}".format, na_action="ignore") for name in shares})


def flat_settings(settings: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as names with dots, and their values as JSON.

    Example:
        >>> flat_settings({"chat": {"system": None}, "n": 2})
        [('chat.system', 'null'), ('n', '2')]
    """
    found = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found += flat_settings(value, f"{above}{name}.")
        else:
            found.append((above + name, json.dumps(value, ensure_ascii=False)))
    return found


def spread(values: "pd.Series[float]", unit: str) -> str:
    """A number measured under one condition, or the range over several seeds.

    Example:
        >>> spread(pd.Series([0.75, 3.6]), "nats"), spread(pd.Series([float("nan")]), "nats")
        ('0.75 to 3.60 nats', '– nats')
    """
    known = sorted(values.astype(float).dropna())
    shown = [f"{value:.2f}" for value in ([known[0], known[-1]] if len(known) > 1 else known)]
    return f"{' to '.join(shown) or '–'} {unit}"


def in_script(content: Any) -> Markup:
    """Figures as JSON in a script element, which no text inside can end.

    Example:
        >>> "<" in in_script({"title": "</script>"})
        False
    """
    return htmlsafe_json_dumps(content, dumps=figure_json)


def render(name: str, **values: Any) -> str:
    """A page of HTML that asks nothing of the network.

    Everything is escaped but the package's own CSS and JavaScript, and an undefined name in a template is an error.

    Args:
        name: The template, without its suffix.
        **values: What it is filled with: `title`, `heading` and `about` (parts of the line below the heading), and what the
            template names.

    Example:
        >>> render("report")
        Traceback (most recent call last):
        jinja2.exceptions.UndefinedError: 'title' is undefined
    """
    environment = Environment(
        loader=PackageLoader("cosmic_tl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys keep their order
    environment.filters["percent"] = "{:.0%}".format

    def source(file: str) -> Markup:
        assert environment.loader is not None
        return Markup(environment.loader.get_source(environment, file)[0])

    environment.globals |= {"source": source, "plotly": Markup(plotly_js()), "templates": in_script(TEMPLATES)}
    page = environment.get_template(f"{name}.html.j2").render({"version": versions()["cosmic_tl"], **values})
    return page.replace("POLICY", _policy(page), 1)


def _policy(page: str) -> str:
    """What a browser may do in a page: run its own scripts, by their hashes, and fetch nothing."""
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    hashes = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    # Plotly sets styles, and makes its pictures from data.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
