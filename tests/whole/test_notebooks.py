"""Every notebook runs from a clean kernel, and its committed outputs are what it gives."""

import ast
import base64
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "run_notebooks.py"
run_notebooks = runpy.run_path(str(SCRIPT))
PLOTLY = run_notebooks["PLOTLY"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
VARIES = "varies"
"""Tag of cells whose outputs are not the same every time, such as times."""


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """What a code cell shows, without pictures, as one text."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        for kind, value in sorted(output.get("data", {}).items()):
            if kind != "image/png":
                parts.append(f"{kind}\n{value if isinstance(value, str) else json.dumps(value, sort_keys=True)}")
    return "\n".join(parts)


def agree(one, other):
    """The same text, spaces aside, with the same numbers to about two digits."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (one, other)]
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (one, other)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=2e-3)


def saves_pictures(path):
    return "save_figure" in path.read_text(encoding="utf-8")  # pictures are written by a browser


PARAMS = [pytest.param(path, marks=pytest.mark.browser) if saves_pictures(path) else path for path in NOTEBOOKS]


@pytest.fixture(scope="module", params=PARAMS, ids=lambda path: path.stem)
def committed(request):
    return request.param, nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def executed(committed, request, tmp_path_factory):
    path, _ = committed
    if saves_pictures(path):
        request.getfixturevalue("chromium")
    return run_notebooks["execute"](path, tmp_path_factory.mktemp(path.stem))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3


def test_it_runs_without_an_error(executed):
    notebook, _ = executed
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))


def test_committed_outputs_are_what_it_gives(committed, executed):
    path, notebook = committed
    pairs = list(zip(code_cells(notebook), code_cells(executed[0]), strict=True))
    assert any(shown(old) for old, _ in pairs)
    for old, new in pairs:
        if VARIES not in old.metadata.get("tags", ()) and not agree(shown(old), shown(new)):
            pytest.fail(
                f"{path.name} is stale: python scripts/run_notebooks.py notebooks/{path.name}\n"
                f"{old.source}\n--- committed\n{shown(old)[:3000]}\n--- now\n{shown(new)[:3000]}"
            )


def test_committed_outputs_are_whole_and_small(committed):
    path, notebook = committed
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert path.stat().st_size < run_notebooks["MAX_BYTES"]
    bundles = [output.data for cell in cells for output in cell.outputs if "data" in output]
    pictures = [data["image/png"] for data in bundles if PLOTLY in data]  # a figure without one is a KeyError
    assert all(2000 < len(base64.b64decode(picture)) < run_notebooks["MAX_PNG_BYTES"] for picture in pictures)
    assert notebook.metadata == run_notebooks["METADATA"]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    text = "\n".join(map(shown, cells))
    assert not re.search(r"(?<![\w:/.])/(tmp|home|root|usr|work|opt|Users)/| at 0x[0-9a-f]+", text)


def test_it_says_what_one_learns_and_how_to_run_it_on_a_real_model(committed):
    _, notebook = committed
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == "markdown" and re.match(r"# .+\n\n.{100,}", first.source, flags=re.DOTALL)
    assert last.cell_type == "markdown" and last.source.startswith("## On a real model")
    snippets = re.findall(r"```python\n(.*?)```", last.source, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        names = [
            alias.name
            for node in ast.walk(ast.parse(snippet))
            if isinstance(node, ast.ImportFrom) and node.module == "cosmic_tl"
            for alias in node.names
        ]
        exec(f"from cosmic_tl import {', '.join(names)}" if names else "", {})


def test_the_quickstart_takes_15_lines_of_code():
    notebook = nbformat.read(ROOT / "notebooks" / "1-quickstart.ipynb", as_version=4)
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 15


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("layer 4  rate 0.900", "layer 4 rate 0.901", True),
        ("layer 4, rate 0.9", "layer 5, rate 0.9", False),
        ("rate 0.50", "rate 0.47", False),
        ("['Sure!']", "['I cannot.']", False),
        ("1.0 nan", "1.0 2.0", False),
    ],
)
def test_stale_text_is_told_from_rounding(one, other, same):
    assert agree(one, other) is same


def test_a_stale_output_and_an_error_are_noticed(tmp_path):
    """The machinery on a notebook of its own."""
    cells = [nbformat.v4.new_code_cell("print('rate', 0.5)")]
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    notebook, _ = run_notebooks["execute"](path, tmp_path)
    assert shown(notebook.cells[0]).strip() == "rate 0.5"
    assert not agree(shown(notebook.cells[0]), "rate 0.4")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_notebooks["execute"](path, tmp_path)
