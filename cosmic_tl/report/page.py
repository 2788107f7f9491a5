"""The page: the answer first, then figures, the choice, completions, and what is needed to repeat the run."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
from markupsafe import Markup

from cosmic_tl.experiments.effects import Effects
from cosmic_tl.experiments.layer_similarity import LayerSimilarity
from cosmic_tl.figures.export import plotly_js
from cosmic_tl.generation.sampling import generation_sentence
from cosmic_tl.report.completions import CONDITIONS, browser
from cosmic_tl.report.parts import joined, percent, scrolling, spread, table
from cosmic_tl.report.pictures import drawn, pictures
from cosmic_tl.selection.result import Selection
from cosmic_tl.selection.scores import parts

_HEADS = ("without steering", "with the direction", "with a random one")


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    key: str
    title: str
    body: Markup


def _counted(effects: Effects, summary: dict[str, Any]) -> str:
    """What the shares are of."""
    n = {side: effects.rate(side, names[0]).n for side, names in CONDITIONS.items()}
    sides = effects.terms.sides
    text = (
        f"Share of {effects.terms.outcome}, with Wilson 95 % intervals in brackets (of several random directions the mean, and "
        f"the range over them); {n['positive']} {sides['positive']} and {n['negative']} {sides['negative']} test prompts. "
        "Garbled: answers that are more repetitive, or after their first eight tokens less probable to the unsteered model, "
        "than its own. Nats: cross-entropy per token under the unsteered model."
    )
    if effects.generation:
        text += f" {generation_sentence(effects.generation)}"
    if phrases := summary.get("phrases"):
        return f"{text} An answer shows the concept if it contains {' or '.join(f'“{phrase}”' for phrase in phrases)}."
    return text


def _quality(row: "pd.Series[Any]", nats: "pd.Series[float]") -> str:
    """What stands under a rate: the share of garbled answers, and their nats, of several seeds as a range."""
    garbled = [f"{row.garbled:.0%} garbled"] if "garbled" in row and row.garbled == row.garbled else []
    return ", ".join([*garbled, spread(nats, "nats")])


def _answer(selection: Selection, effects: Effects, summary: dict[str, Any]) -> Section:
    d, terms = selection.direction, effects.terms
    token = selection.positions.labels[d.position].replace("\n", "\\n")
    rows, sentences = [], []
    measured = effects.table.set_index(["side", "condition"])
    nats = dict(list(effects.by_seed().groupby(["side", "condition"]).cross_entropy))
    for (side, names), what in zip(CONDITIONS.items(), ("Removing", "Inducing"), strict=True):
        prompts = terms.sides[side]
        rates = [effects.rate(side, name) for name in names]
        sentences.append(
            Markup("{} it takes {} on {} prompts from <strong>{:.0%}</strong> to <strong>{:.0%}</strong>.").format(
                what, terms.outcome, prompts, rates[0].value, rates[1].value
            )
        )
        cells = joined(
            Markup('<td>{}<div class="interval">{}</div></td>').format(
                percent(rate), _quality(measured.loc[(side, name)], nats[side, name])
            )
            for rate, name in zip(rates, names, strict=True)
        )
        rows.append(Markup('<tr><th scope="row">{} on {} prompts</th>{}</tr>').format(names[1], prompts, cells))
    heads = joined(Markup('<th scope="col">{}</th>').format(head) for head in _HEADS)
    counts = Markup("<table><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table>").format(heads, joined(rows))
    warnings = joined(Markup('<p class="warning" role="note">{}</p>').format(text) for text in summary["warnings"])
    notes = joined(Markup("<li>{}</li>").format(text) for text in summary["notes"])
    body = Markup(
        '<p class="lead">Selection by {} ({} mode; induction with {}) chose the direction at <strong>layer {}, '
        "position {}</strong> (<code>{}</code>). {}</p>{}"
        '<p class="muted">{}</p>{}{}'
    ).format(
        selection.method,
        selection.mode,
        selection.edits.induced,
        d.layer,
        d.position,
        token,
        Markup(" ").join(sentences),
        scrolling(counts, "What removal and induction did"),
        _counted(effects, summary),
        warnings,
        Markup('<ul class="notes" aria-label="Notes">{}</ul>').format(notes) if notes else "",
    )
    return Section("answer", "What was found", body)


def _choice(selection: Selection, effects: Effects) -> Section:
    best, d = selection.top(), selection.direction
    chosen = (best.layer == d.layer) & (best.position == d.position)
    named = best.rename(
        columns={"s_comply": "S comply", "s_refuse": "S refuse"}
        | {name: name.replace("kl", "KL") for name in parts("kl")}
    )
    candidates = named.drop(columns=["kept", "reason"]).assign(
        outcome=[
            "chosen" if one else f"dropped by {why}" if why else ""
            for one, why in zip(chosen, best.reason, strict=True)
        ]
    )
    body = Markup(
        "<p>{}.</p><h3>Filters</h3>{}<h3>The ten best candidates</h3>{}<h3>What each condition does</h3>{}{}"
        "<h3>Removal and induction against baseline and placebos</h3>{}{}"
    )
    return Section(
        "choice",
        "How the choice was made",
        body.format(
            selection.basis[:1].upper() + selection.basis[1:],
            table(selection.filters, "Filters"),
            table(candidates, "The ten best candidates"),
            table(_in_percent(effects.terms.of(effects.table)), "What each condition does"),
            _fluency(effects),
            table(_tests(effects), "Paired tests"),
            Markup('<p class="muted">{}</p>').format(
                "McNemar's exact test, two-sided, on the same prompts: only prompts whose verdicts differ count. Of a placebo "
                "with several seeds the one with the largest p is shown. A random direction leaves removal as it is by "
                "construction; shuffled: the difference in means of the training prompts with random labels; equal-KL: a "
                "random direction whose α moves the next token on negative prompts as far as the induction; translation: a "
                "random shift as long as the one that removal causes."
            ),
        ),
    )


def _tests(effects: Effects) -> pd.DataFrame:
    tests, terms = effects.paired_table(), effects.terms
    return pd.DataFrame(
        {
            "prompts": tests.side.map(dict(terms.sides)),
            "condition": tests.condition,
            "against": tests.against,
            "n": tests.n,
            f"{terms.outcome} under the condition alone": tests.only_condition,
            "under the other alone": tests.only_against,
            "p": tests.p_value,
            "seeds": tests.seeds,
        }
    )


def _in_percent(measured: pd.DataFrame) -> pd.DataFrame:
    shares = measured.select_dtypes(float).columns.drop("cross entropy", errors="ignore")
    return measured.assign(**{name: measured[name].map("{:.0%}".format, na_action="ignore") for name in shares})


def _fluency(effects: Effects) -> Markup:
    text = (
        "Cross-entropy is the unsteered model's, in nats a token: answers that it would not give cost more than its own, and "
        "garbled text most."
    )
    if "well_formed" in effects.completions:
        text += (
            " Well formed is the share of answers that the demo model's grammar could have made, and names topic the share, "
            f"among those of them judged “{effects.terms.verdicts['compliance']}”, that name what was asked about."
        )
    return Markup('<p class="muted">{}</p>').format(text)


def _flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{above}{name}.")
        else:
            found.append((above + name, json.dumps(value, ensure_ascii=False)))
    return found


def _repeat(settings: dict[str, Any], command: str) -> Section:
    shown = pd.DataFrame(_flat(settings), columns=["setting", "value"])
    return Section(
        "repeat",
        "To repeat this run",
        Markup("{}<p>Results depend on this:</p>{}").format(
            Markup('<pre id="command" tabindex="0" aria-label="Command">{}</pre>').format(command) if command else "",
            table(shown, "Settings and versions"),
        ),
    )


def write_report(
    selection: Selection,
    effects: Effects,
    similarity: LayerSimilarity,
    summary: dict[str, Any],
    settings: dict[str, Any],
    command: str = "",
) -> str:
    """The page as text.

    Args:
        selection: The choice and its score table.
        effects: Completions under every condition.
        similarity: Cosines before and after the intervention.
        summary: As in `summary.json`.
        settings: As in `settings.json`.
        command: How to repeat the run.

    Example:
        >>> from cosmic_tl import CosmicOptions, load_model, load_prompts, measure_effects, select_cosmic
        >>> from cosmic_tl.experiments.conditions import standard_conditions
        >>> from cosmic_tl.experiments.layer_similarity import layer_similarities
        >>> model, prompts = load_model("demo", device="cpu"), load_prompts("demo")
        >>> options = CosmicOptions(n_train=8, n_val=4, n_positions=1, max_kl=10.0)
        >>> selection = select_cosmic(model, prompts, options)
        >>> asked = prompts.side("positive", "test", 2), prompts.side("negative", "test", 2)
        >>> conditions = standard_conditions(selection)
        >>> effects = measure_effects(model, asked, conditions=conditions, max_new_tokens=4)
        >>> similarity = layer_similarities(model, asked, selection)
        >>> summary = dict(model="demo", prompts="demo", seconds=1.0, notes=[], warnings=[])
        >>> write_report(selection, effects, similarity, summary, {}).startswith("<!doctype html>")
        True
    """
    sections = [
        _answer(selection, effects, summary),
        Section("figures", "Figures", drawn(pictures(selection, effects, similarity))),
        _choice(selection, effects),
        Section("completions-section", "Completions", browser(effects)),
        _repeat(settings, command),
    ]
    contents = joined(Markup('<li><a href="#{}">{}</a></li>').format(one.key, one.title) for one in sections)
    bodies = joined(
        Markup('<section id="{0}" aria-labelledby="{0}-heading"><h2 id="{0}-heading">{1}</h2>{2}</section>').format(
            one.key, one.title, one.body
        )
        for one in sections
    )
    own = {name: Markup((files("cosmic_tl.report") / f"report.{name}").read_text("utf-8")) for name in ("css", "js")}
    page = Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>cosmic_tl: {model}</title><style>{style}</style></head><body><header><h1>A concept direction in {model}</h1>"
        '<p class="muted">Contrast set {prompts}; {seconds} s; cosmic_tl {version}</p>'
        '<nav aria-label="Contents"><ul>{contents}</ul></nav></header><main>{bodies}</main>'
        "<noscript><p class='warning'>Figures and completions need JavaScript; it is all in this page.</p></noscript>"
        "<script>{plotly}</script><script>{script}</script></body></html>"
    ).format(
        model=summary["model"],
        prompts=summary["prompts"],
        seconds=summary["seconds"],
        version=settings.get("versions", {}).get("cosmic_tl", ""),
        contents=contents,
        bodies=bodies,
        style=own["css"],
        plotly=Markup(plotly_js()),
        script=own["js"],
    )
    return str(page)
