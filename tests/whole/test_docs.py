"""README and docs hold: snippets run, commands parse, links lead somewhere, and what is said of the code is so."""

import ast
import importlib.util
import json
import re
import shlex
from collections import Counter
from contextlib import suppress
from dataclasses import fields
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from operator import attrgetter
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from cyclopts import MissingArgumentError
from docutils.utils.math.latex2mathml import tex2mathml
from safetensors import safe_open
from sphinx.pycode import ModuleAnalyzer

import cosmic_tl
from cosmic_tl import Direction
from cosmic_tl.cli import app
from cosmic_tl.suffixes import Suffix, head_attention, head_contributions, suffix_cosines, suffix_groups

ROOT = Path(__file__).parents[2]
DOCS, NOTEBOOKS = ROOT / "docs", ROOT / "notebooks"
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if not page.relative_to(DOCS).parts[0].startswith("_")),
]
WRITTEN = [*PAGES, NOTEBOOKS / "README.md", *sorted(NOTEBOOKS.glob("*.ipynb"))]
BROWSER = "<!-- needs a browser -->\n"
COMMANDS = {name: app[name] for name in app if not name.startswith("-")}


def name_of(page):
    return str(page.relative_to(ROOT))


def text_of(page):
    """A page's Markdown; of a notebook, that of its cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown")


def fenced(page, language):
    """Code of one language: the line before it, the code, and its output where that follows."""
    block = rf"^([^\n]*\n)```{language}\n(.*?)^```\n(?:```text\n(.*?)^```)?"
    return re.findall(block, text_of(page) + "\n", flags=re.DOTALL | re.MULTILINE)


def prose(page):
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def section(page, heading):
    """From a heading to the next one as high."""
    level = heading.split(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{level} |\Z)", prose(page), flags=re.DOTALL | re.MULTILINE)
    assert found, f"{name_of(page)} has no {heading!r}"
    return found[1]


def code_in(text):
    return set(re.findall(r"`([^`]+)`", text))


def with_browser(page):
    """The page as a parameter, marked where a snippet needs a browser."""
    needs = any(before == BROWSER for before, *_ in fenced(page, "python"))
    return pytest.param(page, marks=pytest.mark.browser) if needs else page


@pytest.mark.parametrize("page", [with_browser(page) for page in PAGES if fenced(page, "python")], ids=name_of)
def test_snippets_run(page, tmp_path, monkeypatch, capsys, request):
    """And print what is said to be printed, where that is said."""
    monkeypatch.chdir(tmp_path)
    names, printed = {}, False
    for before, code, said in fenced(page, "python"):
        if before == BROWSER:
            request.getfixturevalue("chromium")
        exec(compile(code, name_of(page), "exec"), names)
        found = capsys.readouterr().out
        assert not said or OutputChecker().check_output(said, found, ELLIPSIS | NORMALIZE_WHITESPACE), found
        printed |= bool(found)
    assert printed


def test_there_are_snippets():
    """So that a changed fence does not leave the tests with nothing to run."""
    assert sum(len(fenced(page, "python")) for page in PAGES) >= 40


def options_of(page):
    """Those that a page may name: the commands', or on the benchmarks' page those of their scripts."""
    if page == DOCS / "benchmarks.md":
        scripts = "".join(script.read_text() for script in (ROOT / "benchmarks").glob("*.py"))
        return set(re.findall(r'add_argument\("(--[\w-]+)"', scripts))
    options = [one for command in COMMANDS.values() for one in command.assemble_argument_collection()]
    return {"--help", "--version"} | {name for one in options for name in (*one.names, *one.negatives)}


def parse(words):
    """What follows the program's name; raises for unknown options and values that are none."""
    app.parse_args(words, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_commands_parse(page):
    lines = [
        line[2:] for _, block, _ in fenced(page, "console") for line in block.splitlines() if line.startswith("$ ")
    ]
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words[0].endswith("cosmic-tl"):
            continue
        assert words[1] in COMMANDS
        parse(words[1:])
    for code in code_in(prose(page)):
        if code.startswith("cosmic-tl ") and "COMMAND" not in code:
            words = shlex.split(code)[1:]
            assert words[0] in [*COMMANDS, "--help", "--version"]
            with suppress(MissingArgumentError):  # in a sentence a command may stand for itself
                parse(words)
        elif code.startswith("--"):
            assert code.split(" ")[0] in options_of(page), code


def slugs(page):
    """Anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    if page == DOCS / "reference" / "command-line.md":  # whose headings are made with the page
        headings += [f"cosmic-tl {name}" for name in COMMANDS]
    if page == DOCS / "benchmarks.md":
        headings += re.findall(r"^#+ (.+)$", (ROOT / "benchmarks" / "RESULTS.md").read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if to.parent == DOCS / "tutorials" and to.suffix == ".ipynb":
            to = NOTEBOOKS / to.name
        assert to.exists(), target
        assert not anchor or anchor in slugs(to), target


@pytest.mark.parametrize("page", [page for page in PAGES if "$" in prose(page)], ids=name_of)
def test_formulas_can_be_drawn(page):
    """A fraction has braces: without them 12 is read as one number."""
    formulas = re.findall(r"\$([^$]+)\$", re.sub(r"`[^`]*`", "", prose(page)))
    assert formulas
    for formula in formulas:
        assert "<math" in tex2mathml(formula) and not re.search(r"frac[^{]", formula), formula


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in DOCS.rglob("index.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {page.parent / f"{name}.md" for name in names}
    assert {page for page in PAGES if page.is_relative_to(DOCS)} <= listed


PACKAGE = Path(cosmic_tl.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.pyi"))


def declared(folder):
    """Name to the module that it comes from, as the folder's stub declares them; of a topic module nothing."""
    found, package = {}, ".".join(("cosmic_tl", *folder.relative_to(PACKAGE).parts))
    for node in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            found |= {one.name: f"{package}.{node.module}" if node.module else "" for one in node.names}
    return found


def public_names():
    """As people write them (`ct.run`, `ct.judges.Judge`), to the module that they come from."""
    top = declared(PACKAGE)
    found = {f"ct.{name}": home for name, home in top.items()}
    for room in ROOMS:
        assert room.name in top
        own = {name: home for name, home in declared(room).items() if top.get(name) != home}
        found |= {f"ct.{room.name}.{name}": home for name, home in own.items()}
    return found


def test_every_public_name_is_in_the_reference():
    """Once, with one line that says what it is for, on the page that has its docstring."""
    said, shown, described = Counter(), Counter(), {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        modules = re.findall(r"automodule:: (cosmic_tl[\w.]*)\n +:members:$", text, flags=re.MULTILINE)
        names = re.findall(r"^\| `(ct\.[\w.]+)` \| \S.*\|$", text, flags=re.MULTILINE)
        said.update(names)
        shown.update(modules)
        described |= {(name, module): page for name in names for module in modules}
    public = public_names()
    assert len(public) > 100
    assert not public.keys() - said.keys(), "not in the reference"
    assert not said.keys() - public.keys(), "in the reference and not public"
    assert set(said.values()) == {1}, said.most_common(3)
    assert set(shown.values()) == {1}, shown.most_common(3)  # or each would be described twice
    for name, home in public.items():
        assert not home or (name, home) in described, f"{name}: its page has no automodule:: {home}"


def test_every_public_name_has_a_docstring():
    """Members without one are left out of the reference, and so are those that a module only imports."""
    for name, home in public_names().items():
        thing, short = attrgetter(name.removeprefix("ct."))(cosmic_tl), name.split(".")[-1]
        documented = not home or (getattr(thing, "__module__", None) == home and thing.__doc__)
        assert documented or ("", short) in ModuleAnalyzer.for_module(home).find_attr_docs(), name


def test_no_module_hides_a_public_name():
    """An imported module is an attribute of its package, and would take the place of a function of the same name."""
    for folder in (PACKAGE, *ROOMS):
        names = {name for name, home in declared(folder).items() if home}
        assert not {path.stem for path in folder.iterdir()} & names, folder.name


@pytest.fixture
def conf(monkeypatch):
    monkeypatch.setenv("JAXTYPING_DISABLE", "0")  # which conf.py sets, and this takes back
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_page_is_complete(conf, tmp_path, monkeypatch):
    monkeypatch.setattr(conf, "HERE", tmp_path)
    conf.write_command_line(None, None)
    made = (tmp_path / "_generated" / "command-line.md").read_text()
    for name, command in COMMANDS.items():
        part = made.partition(f"## cosmic-tl {name}\n")[2].partition("\n## ")[0]
        options = {option for one in command.assemble_argument_collection() for option in one.names}
        assert options and all(option in part for option in options), name
        assert f"(#cosmic-tl-{name})" in text_of(DOCS / "reference" / "command-line.md")


def test_tutorials_are_pages_with_figures_to_hover_over(conf):
    figure = {"data": [{"type": "scatter", "y": [1, 2]}], "layout": {}, "config": {}}
    outputs = [nbformat.v4.new_output("display_data", {conf.PLOTLY_JSON: figure, "image/png": "eA=="})] * 2
    cells = [nbformat.v4.new_markdown_cell("[m](../docs/methods.md)"), nbformat.v4.new_code_cell("1", outputs=outputs)]
    page = conf._page(nbformat.from_dict(json.loads(json.dumps({"cells": cells}))))
    assert page.cells[0].source == "[m](../methods.md)"
    first, second = (output.data["text/html"] for output in page.cells[1].outputs)
    assert "Plotly.newPlot" in first and "Plotly.newPlot" in second
    assert conf.PLOTLY_JS in first and conf.PLOTLY_JS not in second


def source_texts():
    """Every text in the source, with … for what is filled in."""
    found = set()
    for path in (ROOT / "cosmic_tl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return {one_gap(text) for text in found}


def one_gap(text):
    return re.sub(r"…( …)+", "…", text)


@pytest.mark.parametrize(
    ("page", "pattern", "least"),
    [("troubleshooting.md", r"^`(.+)`\n: ", 40), ("how-to/reading-a-run.md", r"^\| `(.+?)` \|", 3)],
)
def test_quoted_messages_are_the_codes_own(page, pattern, least):
    quoted = re.findall(pattern, text_of(DOCS / page), flags=re.MULTILINE)
    assert len(quoted) >= least
    texts = source_texts()
    for message in quoted:
        message = one_gap(message).removesuffix("…").rstrip()
        assert any(text.startswith(message) for text in texts), message


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "run"
    few = ["--n-test", "2", "--max-new-tokens", "4"]
    for command in (
        [
            "run",
            "demo",
            "--out",
            str(out),
            "--n-train",
            "16",
            "--n-val",
            "8",
            "--max-kl",
            "10",
            "--placebos",
            "1",
            *few,
        ],
        ["judge", str(out)],
        ["sweep", str(out), "--alphas", "0,1", *few],
        ["calibrate", str(out), "--alphas", "1", *few],
        ["causal", str(out), "--n-test", "4", "--positions", "1"],
        ["follow", str(out), "--max-new-tokens", "4"],
    ):
        app(command, print_error=False, exit_on_error=False)
    return out


def test_file_formats_are_described(finished_run):
    """Every column and key that is written has its description."""
    lines = {name: (finished_run / name).read_text().splitlines() for name in ("completions.jsonl", "judgements.jsonl")}
    whole = {name: json.loads((finished_run / name).read_text()) for name in ("summary.json", "settings.json")}
    with safe_open(finished_run / "direction.safetensors", "pt") as file:
        metadata = file.metadata()
        direction = {*file.keys(), *metadata, *(found := json.loads(metadata["settings"])), found["format"]}
    settings = {*whole["settings.json"], *whole["settings.json"]["settings"]}
    written = {
        "direction.safetensors": direction,
        "scores.csv": set(pd.read_csv(finished_run / "scores.csv")),
        "completions.jsonl": set(json.loads(lines["completions.jsonl"][0])),
        "summary.json": set(whole["summary.json"]),
        "settings.json": settings,
        "judgements.jsonl": set(json.loads(lines["judgements.jsonl"][0]))
        - set(json.loads(lines["completions.jsonl"][0])),
        "sweep.csv": set(pd.read_csv(finished_run / "sweep.csv")),
        "causal.csv": set(pd.read_csv(finished_run / "causal.csv")),
        "conversation.csv": set(pd.read_csv(finished_run / "conversation.csv")),
        "calibration.csv": set(pd.read_csv(finished_run / "calibration.csv")),
        "suffix.json": {"format", *(field.name for field in fields(Suffix))},
    }
    page = DOCS / "reference" / "files.md"
    for name, keys in written.items():
        missing = keys - code_in(section(page, f"## {name}"))
        assert not missing, f"{name}: {sorted(missing)}"
    made = {path.name for path in finished_run.iterdir() if path.is_file()}
    assert made <= code_in(prose(page))


def test_suffix_tables_are_described(demo):
    direction = Direction(torch.ones(demo.cfg.d_model), torch.zeros(demo.cfg.d_model), layer=3, position=-1)
    groups = suffix_groups(demo, ["Rob a clerk."], ["Bake a pie."], " x x")
    tables = {
        "cosines": suffix_cosines(demo, groups, direction),
        "contributions": head_contributions(demo, groups, direction),
        "attention": head_attention(demo, groups, [(4, 0)]),
    }
    described = section(DOCS / "reference" / "files.md", "## suffix.json")
    for name, table in tables.items():
        row = re.search(rf"^\| `suffix-{name}.csv` \|.*$", described, flags=re.MULTILINE)[0]
        assert set(table) - {"group"} <= code_in(row), name


def test_every_benchmark_is_explained():
    explained = section(DOCS / "benchmarks.md", "## What the measures mean")
    for part in re.findall(r"^## (.+)$", (ROOT / "benchmarks" / "RESULTS.md").read_text(), flags=re.MULTILINE):
        assert f"**{part}**" in explained, part
