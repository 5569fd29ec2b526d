"""The README and the guides: every Python example runs, as a program of its own; commands, pictures and links are right."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import training

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WRITTEN = [*sorted((ROOT / ".docs").glob("*.md")), *sorted((ROOT / ".docs" / "guides").glob("*.md"))]  # the rest is the site's
PAGES = {path.stem: path for path in (README, *WRITTEN) if path.stem != "index"}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
EXAMPLES = {
    f"{name}-{number}": example
    for name, text in TEXTS.items()
    for number, example in enumerate(re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
}
TRAINING = sorted((ROOT / "scripts").glob("train_*.py"))
KERAS = "ignore:__array__ implementation:DeprecationWarning"  # Keras's own, with NumPy 2
CACHE = "ignore:Error reading persistent compilation cache:UserWarning"  # of an entry that another test is writing: compiled again


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(name):
    example = EXAMPLES[name]
    for package in ("torch", "keras"):
        if f"import {package}" in example and importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}")
    command = [sys.executable, "-W", "error", "-W", KERAS, "-W", CACHE, "-"]
    run = subprocess.run(command, input=example, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


def test_pages_have_no_gaps_left_to_fill():
    assert len(EXAMPLES) >= 18
    assert [name for name, text in TEXTS.items() if re.findall(r"(?m)\b[A-Z]+_TABLE\b|TODO|FIXME|^[A-Z]{3,}$", text)] == []


def test_the_readme_is_a_page():
    assert len(TEXTS["README"].splitlines()) <= 150


@pytest.mark.parametrize("script", TRAINING, ids=lambda path: path.stem)
def test_a_training_script_is_shown_and_its_commands_are_right(script):
    """Those of the pages, and those of its own first lines."""
    text = "\n".join(TEXTS.values())
    own = script.read_text(encoding="utf-8")
    commands = re.findall(rf"^ *python scripts/{script.name}\b([^#\n]*)", text + own, flags=re.MULTILINE)
    assert f"python scripts/{script.name}" in text
    assert len(commands) >= 2
    for words in commands:
        training.parse(importlib.import_module(script.stem).Config, words.split(), description="a page")


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_links_are_there_and_pictures_are_small(name):
    """Those to files; `[text](page.md#part)` needs a heading of that name there."""
    here = PAGES[name].parent
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]) if "://" not in target]
    for target in targets:
        file, _, part = target.partition("#")
        path = here / file if file else PAGES[name]
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if part else []
        assert not part or part in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target
        assert path.suffix != ".png" or path.stat().st_size <= 150_000, target


def test_the_pages_show_pictures():
    assert sum(text.count(".png)") for text in TEXTS.values()) >= 8
