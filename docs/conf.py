"""Sphinx configuration: python -m sphinx -W docs docs/_build/html."""

import http.client
import sys
import tomllib
import urllib.request
from pathlib import Path

import nbbn
from nbbn.layer._words import ATTRIBUTES

ROOT = Path(__file__).parent.parent
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["nbbn"]["address"]

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "nbbn"
author = "nbbn contributors"
copyright = "nbbn contributors"
version = release = nbbn.__version__

extensions = [
    "mathml",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "gallery/backreferences", "**sg_execution_times.rst"]
default_role = "py:obj"  # `name` in a docstring is a link
templates_path = ["_templates"]

html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3


def is_reached(address: str) -> bool:
    """Tell whether the index of other pages can be read: a build without a network has no links to them."""
    try:
        with urllib.request.urlopen(f"{address}objects.inv", timeout=3) as answer:
            return answer.read(16).startswith(b"# Sphinx")
    except (OSError, http.client.HTTPException):
        return False


OTHERS = {"python": "https://docs.python.org/3/", "numpy": "https://numpy.org/doc/stable/"}
intersphinx_mapping = {name: (url, None) for name, url in OTHERS.items() if is_reached(url)}

autodoc_preserve_defaults = True
autodoc_typehints = "none"  # numpydoc's sections name the types
autosummary_generate = True  # a page for each public object
autosummary_context = {"foreign": list(ATTRIBUTES)}  # words of other libraries, which are errors
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "backreferences_dir": "gallery/backreferences",  # what the reference shows of it
    "doc_module": ("nbbn",),
    "download_all_examples": False,
    "min_reported_time": 1e9,  # how long they took, like what they used, is the machine's business
    "show_memory": False,
    "show_signature": False,
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "nbbn"
html_static_path = ["_static"]
html_css_files = ["nbbn.css"]
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "show_nav_level": 2,
    "show_prev_next": True,
    "footer_end": [],
}
if ADDRESS:
    html_theme_options["icon_links"] = [
        {"name": "Source", "url": ADDRESS, "icon": "fa-solid fa-code"},
    ]
html_sidebars = {"index": [], "quickstart": []}  # pages without others beside them
html_show_sourcelink = False
html_domain_indices = False


def without_others(app, what, name, obj, options, signature, result):
    """Leave out ``**others``, which catches another library's words to answer them with nbbn's."""
    return signature and (signature.replace(", **others", ""), result)


def setup(app):
    """Connect what Sphinx is to call."""
    app.connect("autodoc-process-signature", without_others)
