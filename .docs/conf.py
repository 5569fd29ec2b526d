"""The documentation site: `python -m sphinx -W --keep-going -b html .docs FOLDER`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jaxrnn  # noqa: E402

project = "jaxrnn"
author = "the authors of jaxrnn"
version = release = jaxrnn.__version__
copyright = author

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # puts MathJax into the site, which asks nobody else for anything
    "myst_nb",
    "sphinx_copybutton",
    "_ext.extension",
]
exclude_patterns = ["_ext"]

html_theme = "furo"
html_title = f"jaxrnn {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sphinx = False
highlight_language = "none"  # a block that names no language is a command
pygments_style = "friendly"
pygments_dark_style = "monokai"

toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 80
autodoc_typehints = "none"  # `_ext.signatures` writes types as the code has them
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_use_param = napoleon_use_rtype = napoleon_use_keyword = False
napoleon_use_ivar = True

nb_execution_mode = "off"  # notebooks are committed with their outputs
nb_merge_streams = True
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "amsmath"]
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {
    "chtml": {"displayAlign": "left", "scale": 0.9},
    "loader": {"load": ["[tex]/textmacros"]},  # so that `\_` in `\text` is an underscore, as in LaTeX
    "tex": {"packages": {"[+]": ["textmacros"]}},
}
copybutton_prompt_text = ">>> |... "
copybutton_prompt_is_regexp = False
