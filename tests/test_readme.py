"""The README: every Python example runs, each as a program of its own; commands, pictures and links are of what is there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrnn import training

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
TRAINING = sorted((ROOT / "scripts").glob("train_*.py"))
KERAS = "ignore:__array__ implementation:DeprecationWarning"  # Keras's own, with NumPy 2
CACHE = "ignore:Error reading persistent compilation cache:UserWarning"  # of an entry that another test is writing: compiled again


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_readme_runs(number):
    example = EXAMPLES[number]
    for package in ("torch", "keras"):
        if f"import {package}" in example and importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}")
    command = [sys.executable, "-W", "error", "-W", KERAS, "-W", CACHE, "-"]
    run = subprocess.run(command, input=example, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


def test_the_readme_has_no_gaps_left_to_fill():
    assert EXAMPLES
    assert not re.findall(r"\b[A-Z]+_TABLE\b|TODO|FIXME", README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", TRAINING, ids=lambda path: path.stem)
def test_a_training_script_is_shown_and_its_commands_are_right(script):
    """Those of the README, and those of its own first lines."""
    text = TEXT + script.read_text(encoding="utf-8")
    commands = re.findall(rf"^ *python scripts/{script.name}\b([^#\n]*)", text, flags=re.MULTILINE)
    assert f"python scripts/{script.name}" in TEXT
    assert len(commands) >= 2
    for words in commands:
        training.parse(importlib.import_module(script.stem).Config, words.split(), description="README")


def test_pictures_and_links_of_the_readme_are_there_and_pictures_are_small():
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    pictures = [target for target in targets if target.endswith(".png")]
    assert len(pictures) >= 5
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert [target for target in pictures if (ROOT / target).stat().st_size > 150_000] == []
