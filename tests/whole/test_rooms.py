"""The tour for newcomers names the rooms that there are, in the order in which they may import each other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "cosmic_tl"


def rooms_of_the_page():
    table = PAGE.partition("## The rooms\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)


def layers():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"(\w+)"', re.search(r"^layers = \[\n(.*?)^\]", text, flags=re.DOTALL | re.MULTILINE)[1])


def test_rooms_are_those_of_the_tree():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(rooms_of_the_page()) == len(set(rooms_of_the_page()))
    assert set(rooms_of_the_page()) == folders | modules


def test_data_without_code_is_named():
    without_code = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not any(path.glob("*.py"))}
    assert set(re.findall(r"^`(\w+)` is data", PAGE, flags=re.MULTILINE)) == without_code - {"__pycache__"}


def test_rooms_are_in_the_order_of_their_imports():
    assert rooms_of_the_page() == layers()[::-1]


def test_files_that_the_page_names_exist():
    named = set(re.findall(r"`((?:cosmic_tl/)?[\w/]+\.pyi?)`", PAGE))
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py*")}
    names = {Path(file).name for file in files}
    absent = {name for name in named if name.removeprefix("cosmic_tl/") not in files and name not in names}
    assert absent == {"interventions/steering.py"}  # the example of a name that a module must not have
    assert len(named) > 15


def test_no_module_is_long():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path.relative_to(PACKAGE)): n for path, n in lengths.items() if n > 350} == {}
