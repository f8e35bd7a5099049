"""Sphinx configuration."""

from importlib import metadata

project = "polydistill"
copyright = "the polydistill authors"
release = metadata.version("polydistill")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "polydistill"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
