"""Docstrings as they stand in the code to reStructuredText: indented blocks to mathematics or code, backticks to links or code,
sources to links. Sections ("Args:", "Returns:", …) are left to `sphinx.ext.napoleon`. Nothing about Sphinx may live here."""

import re
from collections.abc import Iterator, Mapping

from _ext import equations

HEADS = ("Args:", "Attributes:", "Example:", "Raises:", "Returns:")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
ERROR = r"[A-Z]\w*(?:Error|Exception|Warning)"
ROLES = {"class": "class", "function": "func", "method": "meth", "data": "data"}


def rest(lines: list[str], links: Mapping[str, tuple[str, str]]) -> list[str]:
    """The docstring in reStructuredText.

    Args:
        lines: the docstring, without the indentation of the code around it.
        links: for names that stand in backticks, what they are ("class", "function", "method") and their full names.
    """
    made: list[str] = []
    for kind, block in _blocks(lines):
        if kind == "block":
            made += _display(block)
        elif kind in ("bare", "example"):
            made += block
        elif kind == "raises":
            made += _inline(_one_error_each(block), links)
        else:
            made += _inline(block, links)
    return made


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Runs of lines of one kind: "bare" (blank, or the head of a section), "text", "example", "block" (indented, outside of a
    section), "raises"."""
    section, at = "", 0
    while at < len(lines):
        line = lines[at]
        indented = line.startswith("    ")
        if line.strip() and not indented:
            section = line.rstrip().removesuffix(":") if line.rstrip() in HEADS else ""
        kind = _kind(line, section, indented)
        end = at + 1
        while end < len(lines) and _continues(kind, lines[end], section):
            end += 1
        yield kind, lines[at:end]
        at = end


def _kind(line: str, section: str, indented: bool) -> str:
    if not line.strip() or line.rstrip() in HEADS:
        return "bare"
    if line.lstrip().startswith(">>>"):
        return "example"
    if indented and not section:
        return "block"
    return "raises" if indented and section == "Raises" else "text"


def _continues(kind: str, line: str, section: str) -> bool:
    """Whether `line` belongs to the run of that kind that the line before belongs to."""
    if not line.strip() or kind == "bare":
        return False
    if kind == "example":  # its output, too
        return True
    return line.startswith("    ") == (kind == "block" or bool(section)) and not line.lstrip().startswith(">>>")


def _display(block: list[str]) -> list[str]:
    """Equations, or, where weights are multiplied with `@`, code."""
    if any("@" in line for line in block):
        return ["", ".. code-block:: text", "", *block, ""]
    return ["", ".. math::", "", *(f"   {line}" for line in equations.display(block).splitlines()), ""]


def _one_error_each(block: list[str]) -> list[str]:
    """An entry for each kind of error, of those that stand in one paragraph."""
    text = " ".join(line.strip() for line in block)
    entries = re.split(rf"(?:^|(?<=\. ))(?=(?:{ERROR}(?:, )?)+: )", text)
    return [f"    {entry.strip()}" for entry in entries if entry.strip()]


def _inline(block: list[str], links: Mapping[str, tuple[str, str]]) -> list[str]:
    """Text with its marks: `code`, **strong**; what else reStructuredText would read as a mark stays what it is."""
    text = "\n".join(block)
    parts = re.split(r"(``[^`]+``|`[^`]+`|\*\*[^*\s][^*]*\*\*)", text)
    made = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            made += ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part))
        elif part.startswith("`"):
            before, after = made[-1:], parts[index + 1][:1]
            known = {} if made.endswith("'s ") else links  # ONNX's `LSTM` is not ours
            made += "" if not before or before in " \n([{'\"-/:<" else r"\ "
            made += code(part.strip("`"), known)
            made += r"\ " if after and (after.isalnum() or after in "_√|²") else ""
        else:
            made += part
    return made.split("\n")


def code(name: str, links: Mapping[str, tuple[str, str]]) -> str:
    """Code, and a link if there is a page about it."""
    if name in links:
        kind, full = links[name]
        return f":py:{ROLES[kind]}:`{name} <{full}>`"
    return f"``{name}``"
