import json
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from cosmic_tl import (
    CosmicOptions,
    Effects,
    RefusalTokenOptions,
    layer_similarities,
    select_by_refusal_tokens,
    select_cosmic,
)
from cosmic_tl.experiments.conditions import CONCEPT
from cosmic_tl.report.completions import CONDITIONS
from cosmic_tl.report.page import write_report

EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)> ' \" &\u2028"
SUMMARY = {"model": "demo", "prompts": "demo", "seconds": 1.0, "notes": [], "warnings": []}
SMALL = {"n_train": 16, "n_val": 8, "max_kl": 50.0}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, shown text, and embedded data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.data, self.inside = [], [], "", {}, {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = {"tag": tag, **dict(attrs)}

    def handle_endtag(self, tag):
        self.inside = {}

    def handle_data(self, data):
        if self.inside.get("type") == "application/json":
            self.data[self.inside["id"]] = json.loads(data)
        elif self.inside.get("tag") not in ("script", "style"):
            self.text += data


def effects_with(prompt="What?", completion="That.", n=1, **columns):
    row = {"prompt": prompt, "completion": completion, "verdict": "compliance", "cross_entropy": 1.0, **columns}
    kinds = [(side, name) for side, names in CONDITIONS.items() for name in names]
    return Effects(pd.DataFrame([{"side": k, "condition": c, **row} for k, c in kinds for _ in range(n)]))


@pytest.fixture(scope="module")
def selections(demo, prompts):
    return {
        "COSMIC": select_cosmic(demo, prompts, CosmicOptions(**SMALL), batch_size=16),
        "refusal tokens": select_by_refusal_tokens(demo, prompts, RefusalTokenOptions(**SMALL), batch_size=16),
    }


@pytest.fixture(scope="module")
def report(demo, prompts, selections):
    """Makes a page from a selection and effects."""
    sides = prompts.side("positive", "val", 4), prompts.side("negative", "val", 4)
    similarities = {name: layer_similarities(demo, sides, one) for name, one in selections.items()}

    def make(effects, method="COSMIC", summary=SUMMARY, settings=None, command=""):
        return Page(write_report(selections[method], effects, similarities[method], summary, settings or {}, command))

    return make


def test_rates_stand_beside_fluency(report):
    effects = effects_with()
    garbled, empty = effects.completions.condition == "random induction", effects.completions.condition == "removal"
    nats = effects.completions.cross_entropy.mask(garbled, 3.377).mask(empty)
    page = report(Effects(effects.completions.assign(cross_entropy=nats)))
    rows = page.text[page.text.index("removal on harmful") :].split("nats")[:6]
    assert [row.rpartition("]")[2].strip() for row in rows] == ["1.00", "–", "1.00", "1.00", "1.00", "3.38"]
    page = report(Effects(effects.completions.assign(cross_entropy=nats, garbled=garbled)))
    assert "100% garbled, 3.38 nats" in page.text and page.text.count("0% garbled, 1.00 nats") >= 4
    rows = page.data["completion-data"]["rows"]
    assert [[answer[2] for answer in row["answers"]] for row in rows][-1] == [False, False, True]


def test_model_output_stays_text(report):
    summary = {**SUMMARY, "model": EVIL, "prompts": EVIL, "notes": [EVIL]}
    page = report(effects_with(EVIL, EVIL, category=EVIL), summary=summary, settings={"system": EVIL}, command=EVIL)
    assert "img" not in page.tags and "onerror" not in dict(page.attributes)
    assert page.tags.count("script") == 11  # seven figures, their templates, completions, plotly.js, the page's own
    row = page.data["completion-data"]["rows"][0]
    assert row == {"side": "positive", "prompt": EVIL, "category": EVIL, "answers": [[EVIL, "compliance", False]] * 3}
    assert page.text.count(EVIL) == 6  # title, heading, contrast set, note, category, command


def test_the_answer_comes_first(report, selections):
    page = report(
        effects_with(n=20), settings={"settings": {"n_test": 20}, "versions": {"cosmic_tl": "1.2.3"}}, command="x --y"
    )
    d = selections["COSMIC"].direction
    assert f"chose the direction at layer {d.layer}, position {d.position}" in page.text
    assert "0% [0%, 16%]" in page.text  # 0 of 20, by Wilson
    answer, figures, completions, command = map(
        page.text.index, ("What was found", "Whether the layers", "Containing", "x --y")
    )
    assert answer < figures < completions < command
    assert "settings.n_test" in page.text and "1.2.3" in page.text


def test_captions_fit_the_selection(report, selections):
    cosmic, tokens = report(effects_with()), report(effects_with(), "refusal tokens")
    assert "S_comply" in cosmic.text and "evaluation layers" in cosmic.text and "log-odds" not in cosmic.text
    assert "S_comply" not in tokens.text and "evaluation layer" not in tokens.text
    assert "log-odds that the answer begins with a refusal token" in tokens.text
    assert f"tokens {selections['refusal tokens'].tokens}" in tokens.text  # with their coverage
    assert "Removal acts at every layer" in tokens.text and "at the input of the chosen layer" in cosmic.text


def test_another_concept_is_not_called_refusal(report):
    page = report(replace(effects_with(), terms=CONCEPT), summary={**SUMMARY, "phrases": ["ahoy", "<b>"]})
    assert "An answer shows the concept if it contains “ahoy” or “<b>”." in page.text
    assert "answers with the concept on positive prompts" in page.text
    completions = page.data.pop("completion-data")
    labels = [value for name, value in page.attributes if name in ("data-alt", "aria-label", "title")]
    shown = " ".join(
        [page.text, *labels, json.dumps(page.data), *completions["sides"].values(), *completions["verdicts"].values()]
    )
    for name in ("S_refuse", "S<sub>refuse", "S\\u003csub\\u003erefuse", "S refuse", "share refuse"):  # the paper's
        shown = shown.replace(name, "")
    assert "refus" not in shown.lower() and "harm" not in shown.lower()


def test_too_many_completions_are_cut_and_counted(report):
    page = report(effects_with(completion="word " * 2000, n=20))
    rows = page.data["completion-data"]["rows"]
    assert [row["side"] for row in rows].count("positive") == len(rows) / 2 > 5
    assert f"{40 - len(rows)} more prompts would make the page too large" in page.text
    assert "too large" not in report(effects_with(n=20)).text


def test_categories_are_a_filter_where_there_are_some(report):
    assert dict(report(effects_with(category="poems")).attributes)["value"] == "poems"
    missing = report(effects_with(category=None))
    assert ("id", "category") not in missing.attributes
