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
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the tables of ablations are parts of a page, with smaller headings

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

linkcheck_timeout = 20


def list_all_pages(app, name: str, source: list[str]):
    """Pages that the index does not name come at its end: none is out of reach."""
    if name != "index":
        return
    others = sorted(path.stem for path in HERE.glob("*.md") if path.stem not in source[0] and path.stem != "index")
    if others:
        source[0] += "\n```{toctree}\n:caption: More\n:maxdepth: 1\n\n" + "\n".join(others) + "\n```\n"


def setup(app):
    app.connect("builder-inited", lambda _: generate.write(HERE / "generated"))
    app.connect("source-read", list_all_pages)
