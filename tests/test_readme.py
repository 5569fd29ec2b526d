"""The README: every Python example runs, each as a program of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_readme_runs(number):
    example = EXAMPLES[number]
    if "import torch" in example:
        pytest.importorskip("torch")
    run = subprocess.run([sys.executable, "-W", "error", "-"], input=example, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


def test_the_readme_has_no_gaps_left_to_fill():
    assert EXAMPLES
    assert not re.findall(r"\b[A-Z]+_TABLE\b|TODO|FIXME", README.read_text(encoding="utf-8"))
