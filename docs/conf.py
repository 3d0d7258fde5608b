"""The site: `make docs`. What is special here is in `_site/`; the pages are the Markdown files beside this one."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))

import safeagent_sa


project = "safeagent_sa"
version = release = safeagent_sa.__version__
html_title = f"safeagent_sa {version}"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "_site.contents",
    "_site.docstrings",
    "_site.made",
    "_site.readers",
]
exclude_patterns = ["_site", "_static", "Thumbs.db"]
root_doc = "index"

# Anchors as GitHub makes them, so that a link works in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "substitution"]
suppress_warnings = ["myst.header"]

# Docstrings are Markdown in Google's form.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False  # _site.readers publishes the Markdown as it was built
html_show_sphinx = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_exclude = ".linenos, .gp, .go"
