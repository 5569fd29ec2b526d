"""The Sphinx extension: makes pages before the site is built, hands docstrings, signatures and links over. What is made of them
is said in the files beside this one."""

from pathlib import Path

from _ext import api, docstrings, pages, signatures


def make_pages(app):
    pages.make()


def turn_links(app, docname, source):
    source[0] = pages.turn_links(source[0], Path(app.env.doc2path(docname))) + pages.below(docname)


def read_docstring(app, what, name, obj, options, lines):
    lines[:] = docstrings.rest(lines, api.links(name))


def read_bases(app, name, obj, options, bases):
    bases[:] = [f":py:class:`~{base}`" for base in api.bases(obj)]


def read_signature(app, what, name, obj, options, signature, returned):
    if what not in ("class", "function", "method"):
        return signature, returned
    shown = signatures.signature(obj, api.types())
    return shown, None if what == "class" else signatures.returned(obj, api.types())


def setup(app):
    app.connect("builder-inited", make_pages)
    app.connect("source-read", turn_links)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-bases", read_bases)
    app.connect("autodoc-process-signature", read_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
