"""Sphinx configuration."""

import os

# Type hints must read as written, and the run-time checker is not wanted here.
os.environ["JAXTYPING_DISABLE"] = "1"

project = "cosmic_tl"
author = "The cosmic_tl authors"
copyright = "2026, The cosmic_tl authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "cosmic_tl"
nb_execution_mode = "off"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
