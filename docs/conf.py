"""Sphinx configuration."""

import json
import os
import re
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from plotly.io import from_json
from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx

# Type hints must read as written, and the run-time checker is not wanted here.
os.environ["JAXTYPING_DISABLE"] = "1"

project = "cosmic_tl"
author = "The cosmic_tl authors"
copyright = "2026, The cosmic_tl authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "cosmic_tl"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_math_renderer = "mathml"
nb_execution_mode = "off"
add_module_names = False
toc_object_entries_show_parents = "hide"
default_role = "code"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)"]

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
PLOTLY_JSON = "application/vnd.plotly.v1+json"
PLOTLY_JS = "../_static/plotly.min.js"
CONFIG = {"responsive": True, "displaylogo": False}


def _write(path: Path, text: str) -> None:
    """Leave a file alone that has not changed, so that its page is not built again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _page(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook as a page: its links are seen from docs/tutorials/, and its figures can be hovered over."""
    drawn = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(\.\./docs/", "](../", cell.source)
        for output in cell.get("outputs", []):
            if (figure := output.get("data", {}).pop(PLOTLY_JSON, None)) is not None:
                kept = {part: figure[part] for part in ("data", "layout", "frames") if part in figure}
                output.data["text/html"] = from_json(json.dumps(kept), skip_invalid=True).to_html(
                    full_html=False, include_plotlyjs=False if drawn else PLOTLY_JS, config=CONFIG
                )
                drawn += 1
    return notebook


def bring_in_notebooks(app: Sphinx, config: object) -> None:
    """Copy the notebooks, with the outputs that are committed in them, to docs/tutorials/."""
    tutorials = HERE / "tutorials"
    for path in tutorials.glob("*.ipynb"):
        if not (NOTEBOOKS / path.name).exists():
            path.unlink()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        _write(tutorials / path.name, nbformat.writes(_page(nbformat.read(path, as_version=4))) + "\n")
    _write(HERE / "_static" / "plotly.min.js", get_plotlyjs())


def write_command_line(app: Sphinx, config: object) -> None:
    """Every command with its options, as cyclopts tells them."""
    from cosmic_tl.cli import app as commands  # after JAXTYPING_DISABLE is set

    found = commands.generate_docs()
    # From the first command on: what comes before it is a list of what follows.
    _write(HERE / "_generated" / "command-line.md", found[found.index("## cosmic-tl ") :])


def _inline_math(translator: object, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display_math(translator: object, node: nodes.math_block) -> None:
    translator.body.append(f"<div class='math'>{tex2mathml(node.astext(), as_block=True)}</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    # Formulas as MathML, which browsers draw by themselves: the pages need no network.
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.connect("config-inited", bring_in_notebooks)
    app.connect("config-inited", write_command_line)
