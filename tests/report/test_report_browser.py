"""The report of a small run in a real browser, offline."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from cosmic_tl import CosmicOptions, Direction, RunSettings, run
from cosmic_tl.experiments import Conversation
from cosmic_tl.experiments.study_result import EDITS, StudyResult
from cosmic_tl.experiments.sweeps import Sweep
from cosmic_tl.report.experiment_pages import write_conversations, write_suffix, write_sweep
from cosmic_tl.report.page import write_report
from cosmic_tl.report.study_page import write_study
from cosmic_tl.runs.run_files import read_settings
from cosmic_tl.suffixes import Suffix, SuffixAnalysis
from cosmic_tl.suffixes.groups import ADVERSARIAL, HARMFUL, HARMLESS, RANDOM, REGIONS

HOSTILE = (
    "</script><script>window.hacked = 1</script><!--<img src=x onerror='window.hacked = 1'>\u2028\u2029"
    "<a href='javascript:window.hacked = 1'>&amp;</a> ${window.hacked = 1} %{y}"
)
N_TEST = 30
GREEDY = {
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "repetition_penalty": 1.0,
    "max_new_tokens": 8,
    "unused": {},
}


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def result(demo, prompts, tmp_path_factory):
    settings = RunSettings(
        CosmicOptions(n_train=40, n_val=8, max_kl=10.0), n_test=N_TEST, max_new_tokens=8, batch_size=100, n_placebos=1
    )
    return run(
        demo, prompts, tmp_path_factory.mktemp("browser") / "run", settings, command="cosmic-tl run demo --n-test 30"
    )


@contextmanager
def opened(browser, path, n_plots=7, **options):
    """A page from a file, that must ask for nothing else and have nothing to complain about."""
    context = browser.new_context(offline=True, **{"viewport": {"width": 1100, "height": 900}, **options})
    page = context.new_page()
    page.set_default_navigation_timeout(90_000)  # five megabytes of script, on a machine that may be busy
    asked, trouble = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function(f"document.querySelectorAll('.plot > .plot-container').length === {n_plots}")
    yield page
    context.close()
    assert asked == [path.as_uri()]
    assert trouble == []


@pytest.fixture(scope="module")
def page(browser, result):
    with opened(browser, result.out / "report.html") as page:
        yield page


@pytest.fixture
def filters(page):
    page.get_by_role("button", name="Show all").click()
    return page.get_by_role("search", name="Filter the completions")


def rows(page):
    return page.locator("#completions > li")


def test_figures_draw(page, result):
    assert page.locator(".plot").evaluate_all(
        "all => all.map(p => p.querySelectorAll('.heatmaplayer .hm').length)"
    ) == [
        0,
        4,  # S_comply, S_refuse, sum, KL
        0,  # wins and intervals
        3,  # before, removal, induction
        0,
        1,
        1,  # fresh samples
    ]
    expect(page.locator(".plot").first.locator(".bars .point")).to_have_count(len(result.effects.table))
    lines = page.locator(".plot").nth(4).locator(".scatterlayer .trace")
    expect(lines.first.locator(".point")).to_have_count(len(result.selection.layer_similarity))
    assert page.locator(".plot").nth(1).locator(".xtick").all_text_contents()


def test_hover_shows_layer_position_and_value(page, result):
    cells = page.locator(".plot").nth(3).locator(".heatmaplayer .hm image").first
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    page.mouse.move(box["x"] + 2.5 / 8 * box["width"], box["y"] + 0.5 / 5 * box["height"])
    expect(page.locator(".hoverlayer .hovertext")).to_contain_text("layer 2")
    shown = page.locator(".hoverlayer .hovertext").text_content()
    before = result.similarity.before[2]
    assert any(
        f"{float(value):.4f}" in shown and f"({i})" in shown for i, value in zip(range(-5, 0), before, strict=True)
    )


def test_filters_filter(page, filters, result):
    frame = result.effects.completions
    expect(rows(page)).to_have_count(50)
    expect(page.locator("#count")).to_have_text(f"{2 * N_TEST} of {2 * N_TEST} prompts, the first 50 shown")
    page.get_by_role("button", name="Show 10 more").click()
    expect(rows(page)).to_have_count(2 * N_TEST)
    assert rows(page).nth(50).evaluate("row => row === document.activeElement")

    filters.get_by_label("Prompts").select_option("negative")
    expect(rows(page)).to_have_count(N_TEST)
    filters.get_by_label("Verdict").select_option("refusal")
    induced = frame[(frame.side == "negative") & (frame.condition == "induction")]
    refused = int((induced.verdict == "refusal").sum())
    assert refused > 0
    expect(rows(page)).to_have_count(refused)

    filters.get_by_label("Condition").select_option("baseline")
    answering = frame[(frame.side == "negative") & (frame.condition == "baseline") & (frame.verdict == "refusal")]
    expect(rows(page)).to_have_count(len(answering))
    filters.get_by_label("Verdict").select_option("any")
    expect(rows(page)).to_have_count(N_TEST)
    expect(rows(page).first.locator("dd")).to_have_count(1)

    page.get_by_role("button", name="Show all").click()
    prompt = induced.prompt.iloc[3]
    filters.get_by_label("Containing").fill(prompt.upper())
    expect(rows(page)).to_have_count(int(frame[frame.condition == "baseline"].prompt.eq(prompt).sum()))
    shown = frame[(frame.prompt == prompt) & frame.condition.isin(["baseline", "induction", "random induction"])]
    side_by_side = shown.drop_duplicates("condition").completion.tolist()  # of a placebo's seeds the first
    assert rows(page).first.locator("dd").all_inner_texts() == side_by_side
    filters.get_by_label("Containing").fill("no prompt has this")
    expect(page.locator("#count")).to_have_text(f"0 of {2 * N_TEST} prompts")


def test_the_keyboard_reaches_everything(page, filters):
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.get_by_role("link", name="Completions").focus()
    page.keyboard.press("Enter")
    for label in ("Prompts", "Condition", "Verdict", "Containing"):
        page.keyboard.press("Tab")
        expect(filters.get_by_label(label)).to_be_focused()
        expect(filters.get_by_label(label)).to_be_in_viewport()
    page.keyboard.type("no prompt has this")
    expect(rows(page)).to_have_count(0)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(50)
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowDown")
    expect(filters.get_by_label("Prompts")).to_have_value("positive")
    expect(rows(page)).to_have_count(N_TEST)


def test_hostile_output_stays_text(browser, result, tmp_path):
    frame = result.effects.completions.copy()
    frame.loc[frame.condition == "removal", "completion"] = HOSTILE
    frame.loc[frame.side == "negative", "prompt"] = HOSTILE
    frame["category"] = HOSTILE
    effects = replace(result.effects, completions=frame)
    summary = {**result.summary, "model": HOSTILE, "prompts": HOSTILE, "notes": [HOSTILE]}
    path = tmp_path / "report.html"
    text = write_report(result.selection, effects, result.similarity, summary, {"system": HOSTILE}, HOSTILE)
    path.write_text(text, "utf-8")
    with opened(browser, path) as page:
        expect(page.locator("#completions dd").nth(1)).to_contain_text(
            "</script><script>window.hacked = 1</script><!--<img"
        )
        expect(page.locator("#completions dd").nth(1)).to_contain_text("&amp;")
        page.get_by_role("combobox", name="Prompts", exact=True).select_option("negative")
        expect(page.locator("#completions .prompt").first).to_contain_text("<img src=x onerror='window.hacked = 1'>")
        expect(page.get_by_label("Category").locator("option")).to_have_count(2)
        assert page.locator("img, main a, main script:not([type='application/json'])").count() == 0
        assert page.evaluate("window.hacked") is None


def test_fits_a_phone(page, filters):
    page.set_viewport_size({"width": 390, "height": 844})
    plots = page.locator(".plot")
    page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth < 390")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert plots.evaluate_all("all => all.every(p => p.scrollWidth <= p.clientWidth)")
    assert rows(page).first.evaluate("row => row.scrollWidth <= row.clientWidth")
    page.set_viewport_size({"width": 1100, "height": 900})
    page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth > 390")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_accessible(page, filters, result, scheme):
    """By axe: contrast (WCAG AA), names of figures and controls, headings, landmarks."""
    page.emulate_media(color_scheme=scheme)
    filters.get_by_label("Containing").fill(result.effects.completions.prompt[0])
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.locator(".plot .xtick text").first.evaluate("label => getComputedStyle(label).fill")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) > 384 for colour in (paper, ink)]
    assert light == ([True, False] if scheme == "light" else [False, True])
    page.emulate_media(color_scheme="light")


def test_figures_say_what_is_in_them(page, result):
    chosen = result.selection.direction
    expect(page.locator("svg[role=img][aria-label]")).to_have_count(7)
    expect(page.get_by_role("img", name=f"Layer {chosen.layer}, position {chosen.position} is framed")).to_be_visible()
    removed = result.effects.rate("positive", "removal").value
    expect(page.get_by_role("img", name=f"harmful prompts, removal: {removed:.0%}")).to_be_visible()
    expect(page.get_by_role("figure", name="Refusal rate").get_by_role("heading", level=3)).to_be_visible()


def test_what_is_printed_is_light(page, filters):
    page.emulate_media(color_scheme="dark")
    filters.get_by_label("Containing").fill("no prompt has this")
    page.evaluate(
        "addEventListener('beforeprint', () => { window.printed = document.querySelector('.xtick text').style.fill })"
    )
    page.pdf(format="A4")
    assert page.evaluate("window.printed") == "rgb(26, 26, 26)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.emulate_media(media="screen", color_scheme="light")


def test_the_page_is_small_and_says_how_to_repeat_it(page, result):
    assert (result.out / "report.html").stat().st_size < 6_000_000
    expect(page.locator("#command")).to_have_text("cosmic-tl run demo --n-test 30")
    settings = read_settings(result.out)
    table = page.get_by_role("region", name="Settings and versions")
    expect(table.get_by_role("row", name="settings.n_test")).to_contain_text(str(N_TEST))
    expect(table.get_by_role("row", name="versions.torch")).to_contain_text(settings["versions"]["torch"])


# Pages of sweeps, suffixes and conversations


def sweep_page(summary, run, command):
    row = {"prompt": HOSTILE, "completion": HOSTILE, "sample": 0, "cross_entropy": 0.5, "garbled": False}
    rows = [
        {**row, "method": method, "side": side, "alpha": alpha, "verdict": verdict}
        for side, verdict in (("positive", "refusal"), ("negative", "compliance"))
        for method, alpha in (("none", 0.0), ("affine", 0.0), ("affine", 1.0))
    ]
    return write_sweep(Sweep(pd.DataFrame(rows)), summary, run=run, command=command), 1


def suffix_page(summary, run, command):
    groups, measured = (HARMFUL, RANDOM, ADVERSARIAL, HARMLESS), {"mean": 0.3, "sd": 0.1, "n": 4}
    heads = {"layer": 4, "head": 1}
    analysis = SuffixAnalysis(
        pd.DataFrame([{"group": group, "n": 5, "rate": 0.8, "low": 0.4, "high": 1.0} for group in groups]),
        pd.DataFrame([{"group": group, "layer": layer, **measured} for group in groups for layer in range(8)]),
        pd.DataFrame([{"group": group, **heads, **measured} for group in groups]),
        pd.DataFrame(
            [
                {"group": one, **heads, "region": region, **measured}
                for one in (RANDOM, ADVERSARIAL)
                for region in REGIONS
            ]
        ),
    )
    suffix = Suffix(HOSTILE, (1, 2), (0.5,), (HOSTILE,), (HOSTILE,), (HOSTILE,), ("compliance",))
    return write_suffix(suffix, analysis, summary, run=run, command=command), 3


def conversation_page(summary, run, command):
    rows = [
        {"condition": name, "index": i, "token": HOSTILE, "id": 5, "part": part, "layer": layer, "projection": value}
        for name in ("baseline", HOSTILE)
        for i, (part, value) in enumerate((("template", -9.0), ("prompt", 9.0), ("completion", 0.5)))
        for layer in range(4)
    ]
    direction, about = Direction(torch.ones(4), torch.zeros(4), 3, -1), {**GREEDY, "seed": 0}
    found = Conversation(pd.DataFrame(rows), HOSTILE, {"baseline": HOSTILE, HOSTILE: HOSTILE}, direction, about)
    return write_conversations([found], summary, run=run, command=command), 1


@pytest.mark.parametrize("make", [sweep_page, suffix_page, conversation_page])
def test_other_pages_are_like_the_report(browser, result, tmp_path, make):
    """Offline, accessible, on a phone too, and what others wrote stays text."""
    summary = {**result.summary, "model": HOSTILE, "prompts": HOSTILE}
    text, n_plots = make(summary, HOSTILE, HOSTILE)
    path = tmp_path / "page.html"
    path.write_text(text, "utf-8")
    with opened(browser, path, n_plots, viewport={"width": 390, "height": 844}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("window.hacked") is None and page.locator("img, main a").count() == 0
        header = page.locator("header")
        expect(header).to_contain_text("direction of layer")
        for what in ("Run ", "model ", "contrast set "):
            expect(header).to_contain_text(f"{what}</script><script>window.hacked = 1</script>")
        expect(page.locator("#command")).to_contain_text("<img src=x onerror='window.hacked = 1'>")
        expect(page.locator("figcaption")).to_have_count(n_plots)
        expect(page.locator("svg[role=img][aria-label]")).to_have_count(n_plots)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def study_result(name, n_runs):
    """A study of runs whose names, tokens and sources are somebody else's, one of which is not there."""
    runs = [f"{name} {k}" for k in range(n_runs)]
    place = {"prompts": name, "settings": name, "seed": None, "alpha": None}
    rate = {"rate": 0.5, "low": 0.2, "high": 0.8, "placebo_low": 0.4, "placebo_high": 0.6, "problem": ""}
    rows = [
        {**place, "run": run, "model": run, "side": side, "condition": condition, **rate}
        for run in runs
        for side, edit in EDITS.items()
        for condition in ("baseline", edit)
    ]
    chosen = {
        "method": "COSMIC",
        "mode": "affine",
        "layer": 3,
        "position": -1,
        "token": name,
        "depth": 0.4,
        "score": 1.9,
    }
    chosen |= {
        "s_comply": 0.9,
        "s_refuse": 1.0,
        "kl": 0.1,
        "stability": 0.5,
        "null_p": None,
        "n_layers": 8,
        "d_model": 4,
    }
    chosen |= {"dtype": "float32", "seconds": 9.0, "memory_gb": 1.0, "gpu_gb": None, "folder": name, "problem": ""}
    selections = pd.DataFrame(
        [{**place, "run": run, "model": run, **chosen} for run in runs]
        + [{**place, "run": f"{name} bad", "model": name, "folder": name, "problem": name}]
    )
    cell = {"token": name, "kl": 0.1, "kept": True}
    scores = pd.DataFrame(
        [
            {"run": run, "layer": layer, "position": place, **cell, "score": layer, "chosen": (layer, place) == (3, -1)}
            for run in runs
            for layer in range(8)
            for place in (-2, -1)
        ]
    )
    published = [
        {
            "model": runs[0],
            "settings": None,
            "measure": measure,
            "published": value,
            "source": name,
            "run": runs[0],
            "ours": 0.5,
        }
        for measure, value in (("layer", 3.0), ("positive_baseline", 0.9), ("negative_induction", 0.1))
    ]
    return StudyResult(name, pd.DataFrame(rows), selections, scores, pd.DataFrame(published), others=(name,))


@pytest.mark.parametrize("width", [390, 1100])
def test_a_study_is_a_page_like_the_report(browser, tmp_path, width):
    path = tmp_path / "study.html"
    path.write_text(write_study(study_result(HOSTILE, 3), command=HOSTILE), "utf-8")
    with opened(browser, path, 3, viewport={"width": width, "height": 844}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("window.hacked") is None and page.locator("img, main a:not([href^='#'])").count() == 0
        expect(page.locator("h1")).to_contain_text("</script><script>window.hacked = 1</script>")
        expect(page.locator("svg[role=img][aria-label]")).to_have_count(3)
        expect(page.get_by_role("region", name="Rates without and with the edit").locator("tbody tr")).to_have_count(3)
        expect(page.get_by_role("region", name="Published and found").locator("tbody tr")).to_have_count(3)
        expect(page.get_by_role("region", name="Runs that are not there, and why").locator("tbody tr")).to_have_count(1)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_the_page_runs_no_other_script_and_fetches_nothing(browser, result):
    context = browser.new_context()
    page = context.new_page()
    page.goto((result.out / "report.html").as_uri())
    added = (
        "const one = document.createElement('script'); one.textContent = 'window.hacked = 1'; document.body.append(one)"
    )
    assert page.evaluate(f"() => {{ {added}; return window.hacked === undefined }}")
    assert page.evaluate("() => fetch('data:text/plain,x').then(() => 'fetched', () => 'refused')") == "refused"
    context.close()
