"""The Sphinx extension: makes pages before the site is built, hands docstrings, signatures and links over. What is made of them
is said in the files beside this one."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils.parsers.rst import Directive
from _ext import api, docstrings, pages


class AlsoCalled(Directive):
    """Register another name of what is described: `.. also-called:: OTHER NAME KIND`."""

    required_arguments = 3

    def run(self):
        other, name, kind = self.arguments
        env = self.state.document.settings.env
        env.domains["py"].note_object(other, kind, name, aliased=True, location=None)
        return []


def make_pages(app):
    pages.make()


def turn_links(app, docname, source):
    source[0] = pages.turn_links(source[0], Path(app.env.doc2path(docname)))


def read_docstring(app, what, name, obj, options, lines):
    lines[:] = docstrings.rest(lines, api.links())
    inherited = api.inherited(obj) if what == "class" else []
    if inherited:
        links = (f":py:meth:`{member.rpartition('.')[2]} <{member}>`" for member in inherited)
        lines += ["", f"Inherited: {', '.join(links)}.", ""]


def read_signature(app, what, name, obj, options, signature, returned):
    if what not in ("class", "function", "method"):
        return signature, returned
    return api.signature(obj), None if what == "class" else api.returned(obj)


MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts")
"""What is needed of MathJax to set mathematics in a browser."""


def copy_mathjax(app, exception):
    """Into the site, so that it needs no other server: from a package that has all of MathJax."""
    if exception is None and app.builder.format == "html":
        source = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static" / "mathjax"
        for part in MATHJAX:
            target = Path(app.outdir) / "_static" / "mathjax" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / part).is_dir():
                shutil.copytree(source / part, target, dirs_exist_ok=True)
            else:
                shutil.copy(source / part, target)


def setup(app):
    app.add_directive("also-called", AlsoCalled)
    app.connect("builder-inited", make_pages)
    app.connect("source-read", turn_links)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-signature", read_signature)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
