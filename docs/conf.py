"""The documentation's site: ``make docs`` builds it from these pages, the docstrings and the schema of the keys."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

import generate  # noqa: E402

import ga_scope  # noqa: E402

project = "ga_scope"
version = release = ga_scope.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"ga_scope {release}"
exclude_patterns = ["_build", "ablations/shapes/*.json"]

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# The pages name files of the repository, which are no part of the site, in backticks and not as links.
suppress_warnings = []

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

linkcheck_timeout = 20


def setup(app):
    app.connect("builder-inited", lambda _: generate.write(HERE / "generated"))
