"""How Sphinx builds the pages of this folder; ci/docs.sh calls it."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "daskmeans"
author = "the authors of daskmeans"
version = release = version_of("daskmeans")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"daskmeans {version}"
html_copy_source = html_show_copyright = html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say them in words
numpydoc_show_class_members = False  # autodoc lists them
numpydoc_class_members_toctree = False

# Every reference is to be found. The types in docstrings are words, such as "path, optional", and no references.
nitpicky = True


def name_files_outside(app, docname, source):
    """Links to files that are no pages, which work where the pages are read as files, become their names."""
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)+((?:benchmarks/)?[A-Z]+\.md)\)", r"\1 (`\2`)", source[0])


def setup(app):
    app.connect("source-read", name_files_outside)
