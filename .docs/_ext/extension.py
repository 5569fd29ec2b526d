"""The Sphinx extension: makes pages before the site is built, hands docstrings, signatures and links over. What is made of them
is said in the files beside this one."""

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
        lines += ["", f"Inherited: {', '.join(f':py:meth:`{member.rpartition('.')[2]} <{member}>`' for member in inherited)}.", ""]


def read_signature(app, what, name, obj, options, signature, returned):
    if what not in ("class", "function", "method"):
        return signature, returned
    return api.signature(obj), None if what == "class" else api.returned(obj)


def setup(app):
    app.add_directive("also-called", AlsoCalled)
    app.connect("builder-inited", make_pages)
    app.connect("source-read", turn_links)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-signature", read_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
