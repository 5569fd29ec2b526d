"""The script for the day when a GPU is at hand, tried without one: what it measures, what it does not time, what its rule says."""

import importlib
import json

import gpu_day
import jax
import numpy as np
import pytest
from test_fused import LOOPS


def rows(**ms):
    """Measurements of one case, by way: (forward, training) in ms."""
    case = {"what": "backend", "cell": "LSTM", "size": (5, 4, 3, 2, "float32")}
    both = [(way, mode, value) for way, pair in ms.items() for mode, value in zip(("forward", "training"), pair, strict=True)]
    return [case | {"way": way, "mode": mode, "ms": value} for way, mode, value in both]


@pytest.mark.parametrize(
    ("measured", "auto"),
    [
        (rows(xla=(2.6, 5.2), pallas=(2.0, 4.0)), "pallas"),
        (rows(xla=(2.6, 5.2), pallas=(2.0, 4.1)), "xla"),  # 1.27 × in training
        (rows(xla=(2.6, 5.2), pallas=(2.1, 1.0)), "xla"),
        (rows(xla=(2.6, 5.2), pallas=(2.0, 4.0), cudnn=(1.0, 2.0), torch=(0.1, 0.1)), "cudnn"),
        (rows(xla=(2.6, 5.2), pallas=(1.0, 1.0))[:-1], "xla"),  # training was not timed
        (rows(pallas=(1.0, 1.0)), "xla"),
    ],
)
def test_auto_is_what_the_rule_says(measured, auto):
    (said,) = gpu_day.verdict(measured)
    assert said["auto"] == auto


def test_wrong_values_are_not_timed():
    fns = {mode: jax.jit(lambda x, factor=factor: factor * x) for mode, factor in (("forward", 1.0), ("training", 1.1))}
    x = np.ones(3, np.float32)
    right, wrong = gpu_day.measure(fns, (x,), {"forward": x, "training": x}, "float32", 5, 0.0)
    assert right["us_per_step"] == pytest.approx(right["ms"] * 1e3 / 5) and right["ms"] > 0
    assert "ms" not in wrong and "too far apart" in wrong["error"]
    (nan,) = gpu_day.measure({"forward": jax.jit(lambda x: x * np.float32(np.nan))}, (x,), {"forward": x}, "float32", 5, 0.0)
    assert "ms" not in nan


@pytest.mark.parametrize(("module", "options"), [("wavefront", {"num_layers": 2}), ("directions", {"bidirectional": True})])
def test_a_form_whose_values_are_wrong_is_not_compared_with_itself(module, options, monkeypatch):
    """But with the plain loop."""
    joined = importlib.import_module(f"jaxrnn.engine.{module}")._joined
    monkeypatch.setattr(f"jaxrnn.engine.{module}._joined", lambda *args: jax.tree.map(lambda a: 1.5 * a, joined(*args)))
    monkeypatch.setattr(f"jaxrnn.engine.{module}.GPUS", ("cpu",))
    jax.clear_caches()
    found = gpu_day.by_stack("RNN", (34, 3, 4, 8, "float32"), 0.0, **options)
    jax.clear_caches()
    assert [row["mode"] for row in found] == ["forward", "training"]
    assert all("too far apart" in row.get("error", "") for row in found)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu_day.py"])
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main()
    assert stopped.value.code == 1
    assert "JAX has no GPU here, only cpu; --smoke tries the script without one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_smoke_test_writes_what_was_measured_and_the_devices_name(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["gpu_day.py", "--smoke", "--output", str(tmp_path)])
    try:
        gpu_day.main()
    finally:
        for loop in LOOPS:
            loop.lower(loop.meaning, "cpu")
        jax.clear_caches()
    said = json.loads((tmp_path / "gpu_day_cpu.json").read_text())
    assert (said["device"], said["smoke"]) == ("cpu", True)
    measured = {(row["what"], row["way"], row["mode"]): row for row in said["rows"]}
    wanted = [("backend", "xla"), ("backend", "pallas"), ("form", "2 directions, one after the other")]
    for what, way in wanted:
        for mode in ("forward", "training"):
            row = measured[what, way, mode]
            assert row["apart"] < 1e-5 and row["ms"] > 0 and row["first_s"] > 0
    assert "compiled for an NVIDIA GPU" in measured["backend", "cudnn", "both"]["error"]
    table = (tmp_path / "gpu_day_cpu.md").read_text()
    assert "a smoke test: says nothing of speed" in table and 'backend="auto" should be:' in table
    monkeypatch.setattr("sys.argv", ["gpu_day.py", "--smoke", "--output", str(tmp_path), "--limit", "0"])
    gpu_day.main()
    said = json.loads((tmp_path / "gpu_day_cpu.json").read_text())
    assert {row["error"] for row in said["rows"]} == {"not begun, time was up"}
