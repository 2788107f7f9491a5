"""What the package imports is what pyproject.toml declares."""

import ast
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

import cosmic_tl

PACKAGE = Path(cosmic_tl.__file__).parent


def imported():
    """Top-level names of other packages in the import statements of the package, lazy ones included."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module)
    return {name.partition(".")[0] for name in found} - {"cosmic_tl"} - sys.stdlib_module_names


def normal(name):
    return name.lower().replace("_", "-")


def declared():
    """Base dependencies, and those of the extras that users install."""
    source = (PACKAGE.parent / "pyproject.toml").read_text()
    tables = tomllib.loads(source)["project"]
    extras = {name: some for name, some in tables["optional-dependencies"].items() if name not in ("dev", "docs")}
    names = lambda some: {normal(Requirement(one).name) for one in some}  # noqa: E731
    return names(tables["dependencies"]), names(one for some in extras.values() for one in some)


def distributions():
    homes = packages_distributions()
    return {normal(homes[name][0]) for name in imported()}


def test_every_import_is_declared():
    base, extras = declared()
    assert "torch" in base and "numpy" in base
    assert distributions() - base - extras == set()


def test_every_base_dependency_is_imported():
    base, _ = declared()
    assert base - distributions() == set()


def test_the_installed_versions_are_in_the_ranges():
    tables = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    for one in map(Requirement, tables["dependencies"]):
        assert one.specifier.contains(version(one.name), prereleases=True), one
