"""The documentation site, before Sphinx: what the reference names, what becomes of docstrings, equations, signatures and links, and
that the messages of errors which a page quotes are those that are raised."""

import ast
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import check_links
import pytest
from _ext import api, docstrings, equations, pages, signatures

import jaxrnn

ROOT = Path(__file__).parents[1]
ENTRIES = {entry.name: entry for module in api.entries().values() for entry in module}
MEMBERS = {
    f"{entry.name}.{member}": inspect.getattr_static(entry.value, member, None)
    for entry in ENTRIES.values()
    if entry.kind == "class"
    for member in api.members(entry.value)
}
DESCRIBED = [
    (name, value)
    for name, value in ({name: entry.value for name, entry in ENTRIES.items()} | MEMBERS).items()
    if inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, property)
]


def texts():
    """What users read: the README, the guides, the notebooks."""
    for path in (ROOT / "README.md", *(ROOT / ".docs").glob("guides/*.md"), *(ROOT / ".docs").glob("*.md")):
        if path.name != "index.md":
            yield path.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        yield "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


# The reference ------------------------------------------------------------------------------------------------------------


def test_every_public_name_has_a_place_in_the_reference():
    written = {
        page.module: re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)", api.write(page), flags=re.MULTILINE) for page in api.pages()
    }
    places = [name for names in written.values() for name in names]
    assert len(places) == len(set(places))
    for module in map(import_module, written):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            known = [entry for entry in ENTRIES.values() if entry.value is value and entry.name.endswith(f".{name}")]
            assert inspect.ismodule(value) or (len(known) == 1 and known[0].name in places), f"{module.__name__}.{name}"


def test_every_public_module_has_a_page():
    """Those that `import jaxrnn` brings, or that come when they are first used."""
    lazy = inspect.getsource(jaxrnn.__getattr__)
    modules = {module.name for module in pkgutil.iter_modules(jaxrnn.__path__)}
    public = {name for name in modules if name in jaxrnn.__all__ or f'"{name}"' in lazy}
    assert public >= {"cells", "interop", "linen", "models"}
    assert {f"jaxrnn.{name}" for name in public} <= {page.module for page in api.pages()}


def test_what_pages_and_notebooks_name_is_in_the_reference():
    known = {name for entry in ENTRIES.values() for name in (entry.name, *entry.aliases)} | {page.module for page in api.pages()}
    text = "\n".join(texts())
    named = {match.rstrip(".") for match in re.findall(r"(?<![\w/.])jaxrnn(?:\.[A-Za-z]\w*)+", text)}
    for module, names in re.findall(r"^ *from (jaxrnn[\w.]*) import ([\w, ]+)", text, flags=re.MULTILINE):
        named |= {f"{module}.{name.partition(' as ')[0].strip()}" for name in names.split(",")}
    assert len(named) > 30
    assert {name for name in named if name not in known and name.rpartition(".")[0] not in known} == set()


def test_everything_described_has_a_docstring():
    assert [name for name, value in DESCRIBED if not inspect.getdoc(value)] == []


def test_guides_are_in_the_menu_once():
    listed = [page for _, of_part in pages.contents() for page in of_part]
    assert len(listed) == len(set(listed))
    assert {f"guides/{path.stem}" for path in (ROOT / ".docs" / "guides").glob("*.md")} <= set(listed)


# Signatures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), DESCRIBED)
def test_signatures_are_python(name, value):
    """Sphinx takes others apart at their commas."""
    if callable(value):
        ast.parse(f"def f{signatures.signature(value, api.types())}: pass")


def test_signatures_have_types_as_written_and_links():
    def public(a: int, cell: jaxrnn.Cell, *, c: "str | None" = None, d=len, **e: float) -> list[int]: ...

    assert signatures.signature(public, {}) == "(a: int, cell: jaxrnn.Cell, *, c: 'str | None' = None, d=..., **e: float)"
    assert signatures.returned(public, {}) == "list[int]"
    assert "cell: ~jaxrnn.Cell, params: " in signatures.signature(jaxrnn.unroll, api.types())
    assert "time ..." in signatures.signature(jaxrnn.unroll, api.types())
    assert signatures.signature(jaxrnn.LSTM, {}).startswith("(input_size")  # where flax's metaclass says (*args, **kwargs)
    assert "b_ih_init: ~jaxrnn.initializers.Initializer | ~jaxrnn.initializers.PerGate = uniform" in signatures.signature(
        jaxrnn.GRUCell, api.types()
    )


# Docstrings and equations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("hₜ₋₁", "h_{t-1}"),
        ("W_ir xₜ", "W_{ir} x_{t}"),
        ("σ(a)", r"\sigma(a)"),
        ("tanh(cₜ)", r"\tanh(c_{t})"),
        ("relu(a)", r"\operatorname{relu}(a)"),
        ("rₜ ⊙ hₜ", r"r_{t} \odot h_{t}"),
        ("√(1 − a²)", r"\sqrt{1 - a^{2}}"),
        ("a^{8r}", "a^{8r}"),
        ("h̃ₜ", r"\tilde{h}_{t}"),
        ("`w_hh`", r"\texttt{w\_hh}"),
        ("hidden_size", r"\texttt{hidden\_size}"),
    ],
)
def test_an_expression_becomes_latex(written, made):
    assert equations.latex(written) == made


def test_equations_are_aligned_and_have_their_roles():
    block = ["zₜ = σ(W_iz xₜ)           update gate", "hₜ = (1 − zₜ) ⊙ hₜ₋₁"]
    assert equations.display(block).splitlines() == [
        r"\begin{aligned}",
        r"z_{t} &= \sigma(W_{iz} x_{t}) && \text{update gate} \\",
        r"h_{t} &= (1 - z_{t}) \odot h_{t-1}",
        r"\end{aligned}",
    ]
    assert equations.row("i = f(x)      input gate; the forget gate is 1 − i").endswith(
        r"&& \text{input gate; the forget gate is }1 - i"
    )


@pytest.mark.parametrize(("name", "value"), DESCRIBED)
def test_docstrings_become_mathematics_that_a_browser_sets(name, value):
    """No symbol is left that LaTeX has no name for, no bracket is open, and no equation stays text."""
    lines = inspect.getdoc(value).splitlines()
    made = "\n".join(docstrings.rest(lines, api.links(name)))
    blocks = re.findall(r"^\.\. math::\n\n((?:   .*\n)+)", made + "\n", flags=re.MULTILINE)
    for block in blocks:
        assert block.isascii(), block
        assert block.count("{") == block.count("}"), block
    if (
        inspect.isclass(value)
        and issubclass(value, jaxrnn.Cell)
        and value.__doc__
        and re.search(r"^ {8}hₜ", value.__doc__, re.MULTILINE)
    ):
        assert blocks


def test_docstrings_become_restructuredtext():
    written = [
        "Run `unroll` over `x`, as ONNX's `LSTM` (arXiv:1406.1078).",
        "",
        "    hₜ = σ(xₜ)      the state",
        "",
        "Args:",
        "    x: an array*, see `unroll`.",
        "",
        "Raises:",
        "    ValueError: a shape. TypeError: a kind.",
        "",
        "Example:",
        "    >>> f(`x`)",
    ]
    links = {"unroll": ("function", "jaxrnn.unroll"), "LSTM": ("class", "jaxrnn.LSTM")}
    assert [line for line in docstrings.rest(written, links) if line] == [
        "Run :py:func:`unroll <jaxrnn.unroll>` over ``x``, as ONNX's ``LSTM`` (`arXiv:1406.1078 <https://arxiv.org/abs/1406.1078>`__).",
        ".. math::",
        r"   \begin{aligned}",
        r"   h_{t} &= \sigma(x_{t}) && \text{the state}",
        r"   \end{aligned}",
        "Args:",
        r"    x: an array\*, see :py:func:`unroll <jaxrnn.unroll>`.",
        "Raises:",
        "    ValueError: a shape.",
        "    TypeError: a kind.",
        "Example:",
        "    >>> f(`x`)",
    ]


def test_names_in_docstrings_of_linen_lead_to_linen():
    assert api.links("jaxrnn.linen.LSTM")["Recurrent"] == ("class", "jaxrnn.linen.Recurrent")
    assert api.links("jaxrnn.LSTM")["Recurrent"] == ("class", "jaxrnn.Recurrent")
    assert api.links("jaxrnn.LSTM")["jaxrnn.cells.GRUCell"] == ("class", "jaxrnn.GRUCell")


# Pages --------------------------------------------------------------------------------------------------------------------


def test_links_lead_to_where_the_site_has_a_page():
    docs = ROOT / ".docs"
    turned = {
        "[a](../../notebooks/01_cells_and_gates.ipynb)": "[a](../notebooks/01_cells_and_gates.ipynb)",
        "[a](../../README.md#install)": "[a](../index.md#install)",
        "[a](../../scripts/results/compiled.md)": "[a](../results/compiled.md)",
        "![a](../../scripts/results/benchmark.png)": "![a](../../scripts/results/benchmark.png)",
        "[a](scale.md#memory)": "[a](scale.md#memory)",
        "[a](https://arxiv.org/abs/1406.1078)": "[a](https://arxiv.org/abs/1406.1078)",
    }
    for written, made in turned.items():
        assert pages.turn_links(written, docs / "guides" / "speed.md") == made
    assert pages.turn_links("[a](.docs/guides/speed.md)", docs / "index.md") == "[a](guides/speed.md)"
    assert pages.turn_links("![a](images/b.png)", docs / "notebooks" / "01_cells_and_gates.ipynb") == "![a](images/b.png)"


def test_the_front_page_has_parts_of_the_readme_and_the_menu():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    front = pages.front_page(readme)
    assert front.startswith(readme.partition("\n## ")[0])
    assert "## Install" in front
    assert "guides/sequences\n" in front
    with pytest.raises(ValueError, match=r"which has none called \['Install'\]"):
        pages.front_page(readme.replace("## Install", "## Set up"))


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">a</h1><a href="b.html#part">b</a><a href="https://x.org/">x</a><img src="p.png">'
    )
    (tmp_path / "b.html").write_text('<p id="part">b</p><a href="a.html#top">a</a><script src="data:text/javascript,"></script>')
    (tmp_path / "p.png").write_bytes(b"")
    assert list(check_links.faults(tmp_path)) == []
    (tmp_path / "b.html").write_text('<a href="c.html">c</a><a href="a.html#end">a</a><script src="https://cdn.org/x.js"></script>')
    assert list(check_links.faults(tmp_path)) == [
        "a.html: b.html#part leads to a part that is not there",
        "b.html: c.html leads nowhere",
        "b.html: a.html#end leads to a part that is not there",
        "b.html: loads https://cdn.org/x.js",
    ]
    assert list(check_links.faults(tmp_path / "empty")) == [f"{tmp_path / 'empty'}: no pages"]


@pytest.mark.slow
@pytest.mark.newest
def test_errors_that_a_page_quotes_are_those_that_are_raised(tmp_path):
    text = (ROOT / ".docs" / "guides" / "errors.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```pycon\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert sum(example.count("Traceback") for example in examples) >= 20
    (tmp_path / "errors.txt").write_text("\n\n".join(examples), encoding="utf-8")
    program = (
        "import doctest, sys; sys.exit(doctest.testfile(sys.argv[1], False, optionflags=doctest.ELLIPSIS, encoding='utf-8').failed)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "errors.txt"],
        capture_output=True, text=True, encoding="utf-8", env=os.environ | {"JAX_TRACEBACK_FILTERING": "off"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
