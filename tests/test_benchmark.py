"""The benchmark runs, skips what it cannot, and computes its targets rightly; no time is judged."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import report

ROOT = Path(__file__).parents[1]
BENCHMARK = ROOT / "scripts" / "benchmark"


def run(*arguments):
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_quick_run_measures_every_contender_it_can(tmp_path):
    """Times, compile times and memory of both modes; what needs a GPU is skipped with a line."""
    names = ["jaxrnn", "jaxrnn-sharded", "naive", "floor"]
    options = ["--quick", "--lines", "grid", "--cells", "LSTM", "--sizes", "3,4,5,6", "--rounds", "2", "--seconds", "0.01"]
    done = run(*options, "--output", tmp_path, "--contenders", *names, "cudnn")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{'cudnn':22}skipped: jax.experimental.rnn has the LSTM only, and needs an NVIDIA GPU" in done.stdout

    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert "--sizes 3,4,5,6" in results["header"]["command"]
    assert {"jax", "jaxrnn", "torch"} <= set(results["header"]["versions"])
    (line,) = results["lines"]
    assert [line[k] for k in ("time", "batch", "input_size", "hidden_size")] == [3, 4, 5, 6]
    assert set(line["contenders"]) == set(names)
    assert not line["failed"]
    for record in line["contenders"].values():
        for mode in ("forward", "train"):
            time = record[mode]["time"]
            assert len(time["turns"]) == 2
            assert 0 < time["min"] <= time["median"]
            assert time["calls"] >= 20
            assert record[mode]["compile"]["min"] > 0
            assert record[mode]["temp"] >= 0
    assert len(results["summary"]) > 10
    assert (tmp_path / "benchmark.txt").read_text() in done.stdout


@pytest.mark.slow
def test_contenders_are_the_layers_that_they_should_be():
    done = run("--check", "--cells", "GRU", "--contenders", "torch", "onnxruntime", "naive", "MinGRU", "jaxrnn, jax.jit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row.split()[-1] for row in done.stdout.splitlines()] == ["ok"] * 5


@pytest.mark.slow
def test_a_stream_is_timed_on_one_core(tmp_path):
    names = ["jaxrnn, jax.jit", "torch"]
    done = run("--lines", "step", "--rounds", "1", "--seconds", "0.01", "--contenders", *names, "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = json.loads((tmp_path / "benchmark.json").read_text())["lines"]
    assert {name: list(record) for name, record in line["contenders"].items()} == {n: ["devices", "step"] for n in names}
    assert all(record["step"]["time"]["min"] > 0 for record in line["contenders"].values())


def line(kind="grid", batch=32, hidden=128, time=100, **milliseconds):
    contenders = {
        name: {mode: {"time": {"min": t, "median": 2 * t}} for mode in ("forward", "train")} for name, t in milliseconds.items()
    }
    return {
        "kind": kind,
        "batch": batch,
        "hidden_size": hidden,
        "time": time,
        "contenders": contenders,
    }


def test_targets_are_means_over_lines_of_the_best_on_each():
    """The fastest peer of each line counts; small lines do not count against the floor."""
    lines = [
        line(jaxrnn=1.0, linen=8.0, haiku=2.0, torch=3.0, floor=0.5),
        line(jaxrnn=2.0, linen=1.0, haiku=4.0, torch=3.0, floor=0.1, hidden=8),
        line("features", jaxrnn=1.0, linen=100.0, **{"jaxrnn+mask": 1.5}),
    ]
    for name, sharded in zip(lines, (4.0, 1.0), strict=False):
        name["contenders"] |= line(**{"jaxrnn-sharded": sharded})["contenders"]
    found = {(row["row"], row["mode"]): row for row in report.summarise(lines)}

    def reached(name, mode="forward"):
        row = found[name, mode]
        return row["min"], row["lines"], row.get("met")

    assert reached("fastest JAX peer / one device") == (pytest.approx(1.0), 2, False)
    assert reached("fastest JAX peer / one device per core")[0] == pytest.approx(0.5**0.5)
    assert reached("fastest JAX peer / better of both, worst line") == (1.0, 2, True)
    assert reached("torch / better of both", "train") == (pytest.approx(3.0), 2, True)
    assert reached("one device / floor, B·H ≥ 2048") == (2.0, 1, False)
    assert reached("mask / without, worst line") == (1.5, 1, False)
    assert reached("compile time, 4 layers, / linen", "train") == (None, 0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sizes 3,5", "argument --sizes: should be four positive whole numbers"),
        ("--rounds 0", "argument --rounds: should be a positive whole number, got '0'"),
        ("--contenders abacus", "argument --contenders: invalid choice: 'abacus'"),
        ("--lines compile --contenders torch", "no line is left"),
        ("--fast", "unrecognized arguments: --fast"),
    ],
)
def test_bad_options_are_named_and_end_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARK / "__main__.py"))["main"](arguments.split())
    assert end.value.code == 2
    assert message in capsys.readouterr().err
