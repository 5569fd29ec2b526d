"""Trained models where jaxrnn is not: exported for JAX alone and for onnxruntime, whole and as streams, from runs too."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import export_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_forecast
import training
from flax import nnx
from support import close, drawn_like, jit, normal

import jaxrnn
from jaxrnn import models
from jaxrnn.interop import from_onnx, to_onnx
from jaxrnn.runs import load_run

onnxruntime = pytest.importorskip("onnxruntime")

BATCH, TIME, INPUT, HIDDEN, OUTPUT = 4, 6, 3, 5, 2
LENGTHS = np.array([6, 0, 5, 1], np.int32)


def randomised(make):
    """A module in evaluation mode whose parameters are all random, none zero."""
    module = make(rngs=nnx.Rngs(0))
    nnx.update(module, drawn_like(nnx.state(module, nnx.Param)))
    module.eval()
    return module


MADE = {
    "a model that learned its start": lambda rngs: models.LSTMModel(
        INPUT, HIDDEN, OUTPUT, num_layers=2, dropout=0.5, learn_initial_state=True, rngs=rngs
    ),
    "layers of different sizes": lambda rngs: jaxrnn.LSTM(INPUT, (HIDDEN, 4), 2, rngs=rngs),
    "complex states in blocks": lambda rngs: models.SequenceModel(jaxrnn.LRUCell(), INPUT, HIDDEN, OUTPUT, rngs=rngs),
    "both directions": lambda rngs: models.GRUModel(INPUT, HIDDEN, OUTPUT, bidirectional=True, rngs=rngs),
}
STREAMS = [name for name in MADE if name != "both directions"]


def inputs(batch=BATCH, time=TIME, seed=0):
    return np.asarray(normal(batch, time, INPUT, seed=seed), np.float32)


def called(model, x, lengths):
    return [np.asarray(a) for a in jax.tree.leaves(jit(lambda x, lengths: model(x, lengths=lengths))(x, lengths))]


def streamed(model, x, state):
    """The outputs at every step, and the leaves of the state at the end."""
    step, ys = jit(model.step), []
    for t in range(x.shape[1]):
        y, state = step(x[:, t], state)
        ys.append(y)
    return np.stack(ys, 1), [np.asarray(a) for a in jax.tree.leaves(state)]


# For JAX alone ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process that can import neither jaxrnn nor flax found with all the files: for each model the model, its input, its
    state before and what was found. Exported for three platforms; the sizes are none that the files hold."""
    place, made, code = tmp_path_factory.mktemp("alone"), {}, "import sys\n"
    for k, (name, make) in enumerate(MADE.items()):
        model, out = randomised(make), place / str(k)
        out.mkdir()
        left_out = export_model.write(model, out, ("cpu", "cuda", "tpu"))
        start = export_model.start_of(model, BATCH)
        state = [np.asarray(0.5 * normal(*a.shape, seed=7 + i), a.dtype) for i, a in enumerate(start)]
        np.savez(out / "given.npz", inputs(), LENGTHS, *state)
        made[name] = model, state, left_out, out
        code += f"sys.argv[1:] = [{str(out)!r}, {str(out)!r}, '2']\n{export_model.ALONE}\n"
    code += (
        "print(sorted({name.split('.')[0] for name, module in sys.modules.items() if module} & {'jax', 'jaxrnn', 'flax'}))\n"
        "import jaxrnn\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert run.stdout == "['jax']\n", run.stderr
    assert run.stderr.endswith("ModuleNotFoundError: import of jaxrnn halted; None in sys.modules\n")
    read = lambda file: list(np.load(file).values()) if file.exists() else []
    return {name: (*parts, read(out / "whole.npz"), read(out / "stream.npz")) for name, (*parts, out) in made.items()}


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", MADE)
def test_whole_sequences_are_the_models_where_neither_jaxrnn_nor_flax_can_be_imported(name, alone):
    """With lengths, 0 among them."""
    model, _, _, whole, _ = alone[name]
    close(whole, called(model, inputs(), LENGTHS), 1e-6)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_models_where_neither_jaxrnn_nor_flax_can_be_imported(name, alone):
    """From any state: every output, and the state at the end."""
    model, state, left_out, _, stream = alone[name]
    structure = jax.tree.structure(model.initial_state(1))
    ys, ends = streamed(model, inputs(), jax.tree.unflatten(structure, state))
    close(stream, [ys, *ends], 1e-6)
    assert "step.stablehlo" not in left_out


@pytest.mark.slow
@pytest.mark.newest
def test_a_stream_that_cannot_be_and_a_cell_that_onnx_lacks_are_left_out_with_a_reason(alone):
    left_out = {name: parts[2] for name, parts in alone.items()}
    assert {name: sorted(reasons) for name, reasons in left_out.items() if reasons} == {
        "complex states in blocks": ["model.onnx"],
        "both directions": ["step.stablehlo"],
    }
    assert "GRU.step: `bidirectional` should be False" in str(left_out["both directions"]["step.stablehlo"])
    assert "got SequenceModel" in str(left_out["complex states in blocks"]["model.onnx"])


# In onnxruntime -------------------------------------------------------------------------------------------------------------

WHOLE = {
    "a model that learned its start": MADE["a model that learned its start"],
    "layers of different sizes": MADE["layers of different sizes"],
    "a GRU model": lambda rngs: models.GRUModel(INPUT, HIDDEN, OUTPUT, num_layers=2, rngs=rngs),
    "an RNN model": lambda rngs: models.RNNModel(INPUT, HIDDEN, OUTPUT, nonlinearity="relu", rngs=rngs),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_stream_in_onnxruntime_is_the_models(name, tmp_path):
    """Frame by frame from any state; one row in two of the last frame pauses, and keeps its state to the bit."""
    model = randomised(WHOLE[name])
    to_onnx(model, tmp_path / "m.onnx", lengths=True, states=True)
    run = export_model.onnx_runner(tmp_path / "m.onnx")
    start = export_model.start_of(model, BATCH)
    state = [np.asarray(normal(*a.shape, seed=3 + k), np.float32) for k, a in enumerate(start)]
    ys, ends = streamed(model, inputs(), jax.tree.unflatten(jax.tree.structure(model.initial_state(1)), state))
    put = state
    for t in range(TIME):
        y, *put = run(inputs()[:, t : t + 1], *put)
        close(y.reshape(ys[:, t].shape), ys[:, t], 1e-5)
    close([a.reshape(end.shape) for a, end in zip(put, ends, strict=True)], ends, 1e-5)

    y_paused, *paused = run(inputs(time=1, seed=1), *put, lengths=np.array([1, 0, 1, 0], np.int32))
    for before, after in zip(put, paused, strict=True):
        np.testing.assert_array_equal(after[:, 1::2], before[:, 1::2])
        assert (after[:, ::2] != before[:, ::2]).any(axis=-1).all()
    if y.ndim == 2:  # a model: what it predicts is made of the state
        close(y_paused[1::2], y[1::2], 1e-6)


def test_a_sequence_without_steps_ends_where_it_starts_in_onnxruntime(tmp_path):
    """Also where the start is learned and in the file, and where the head reads it."""
    model = randomised(MADE["a model that learned its start"])
    to_onnx(model, tmp_path / "m.onnx", lengths=True)
    (got,) = export_model.onnx_runner(tmp_path / "m.onnx")(inputs(), lengths=LENGTHS)
    close([got], called(model, inputs(), LENGTHS), 1e-5)
    assert np.abs(got[1]).max() > 0.01


def gru(rngs, **options):
    return jaxrnn.GRU(INPUT, HIDDEN, output_only=True, **options, rngs=rngs)


def tagger(rngs, output_only=True, **options):
    """Layers around a GRU, every activation among them."""
    of = {"rngs": rngs}
    return nnx.Sequential(
        nnx.Linear(INPUT, 7, **of), jax.nn.relu, nnx.Dropout(0.5, **of), nnx.Linear(7, 4, use_bias=False, **of), nnx.tanh,
        jaxrnn.GRU(4, HIDDEN, 2, output_only=output_only, **options, **of),
        nnx.sigmoid, nnx.Linear(HIDDEN, 8, **of), nnx.softplus, nnx.Linear(8, 3, **of), nnx.soft_sign, nnx.Linear(3, 3, **of),
        nnx.log_softmax, nnx.Linear(3, OUTPUT, **of), nnx.softmax,
    )  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_sequential_of_a_recurrent_module_and_layers_is_written(batch_first, tmp_path):
    """Whole, and as a stream: the same outputs."""
    model = randomised(lambda rngs: tagger(rngs, batch_first=batch_first, dropout=0.5))
    made = to_onnx(model, tmp_path / "m.onnx", states=True)
    assert [value.name for value in made.graph.input] == ["x", "h_0"]
    assert [value.name for value in made.graph.output] == ["output", "h_n"]
    assert "Dropout" not in {node.op_type for node in made.graph.node}
    turned = (lambda a: a) if batch_first else (lambda a: np.swapaxes(a, 0, 1))
    want = turned(jit(model)(turned(inputs())))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    h, ys = np.zeros((2, BATCH, HIDDEN), np.float32), []
    whole, _ = session.run(None, {"x": turned(inputs()), "h_0": h})
    close(turned(whole), np.asarray(want), 1e-5)
    for t in range(TIME):
        y, h = session.run(None, {"x": turned(inputs()[:, t : t + 1]), "h_0": h})
        ys.append(turned(y))
    close(np.concatenate(ys, 1), np.asarray(want), 1e-5)


def test_padding_of_a_sequential_is_what_its_layers_make_of_zeros(tmp_path):
    model = randomised(lambda rngs: nnx.Sequential(gru(rngs), nnx.Linear(HIDDEN, OUTPUT, rngs=rngs)))
    to_onnx(model, tmp_path / "m.onnx", lengths=True)
    (got,) = export_model.onnx_runner(tmp_path / "m.onnx")(inputs(), lengths=LENGTHS)
    close([got], called(model, inputs(), LENGTHS), 1e-5)
    assert np.abs(got[1]).min() > 0


def test_an_output_only_module_gives_its_output_alone_and_its_states_where_they_are_asked_for():
    module = randomised(lambda rngs: jaxrnn.LSTM(INPUT, HIDDEN, output_only=True, rngs=rngs))
    names = lambda **options: [value.name for value in to_onnx(module, **options).graph.output]
    assert names() == names(lengths=True) == ["output"]
    assert names(states=True) == ["output", "h_n", "c_n"]
    assert from_onnx(to_onnx(module)).output_only
    with_states = randomised(lambda rngs: jaxrnn.LSTM(INPUT, HIDDEN, rngs=rngs))
    assert [value.name for value in to_onnx(with_states).graph.output] == ["output", "h_n", "c_n"]
    assert not from_onnx(to_onnx(with_states)).output_only


REFUSED = {
    "no recurrent module": (lambda rngs: [nnx.Linear(3, 3, rngs=rngs)], r"`module` should have one recurrent module .*got 0\."),
    "two": (
        lambda rngs: [gru(rngs), jaxrnn.GRU(HIDDEN, HIDDEN, output_only=True, rngs=rngs)],
        r"`module` should have one recurrent module .*got 2\.\nSeveral layers are one module with num_layers",
    ),
    "states go on": (
        lambda rngs: [jaxrnn.GRU(INPUT, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, 2, rngs=rngs)],
        r"`output_only` of `module.layers.0` should be True, .*got False",
    ),
    "a norm": (
        lambda rngs: [gru(rngs), nnx.LayerNorm(HIDDEN, rngs=rngs)],
        r"`module.layers.1` should be an nnx.Linear, .* relu, tanh, .*got LayerNorm\.\nAn export with jax.export holds any module",
    ),
    "gelu": (lambda rngs: [gru(rngs), nnx.gelu], r"`module.layers.1` should be .*got gelu"),
    "a function of one's own": (lambda rngs: [gru(rngs), lambda x: x[:, -1]], r"`module.layers.1` should be .*got <lambda>"),
    "widths": (
        lambda rngs: [gru(rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs)],
        r"`module.layers.2` should take 5 features, as many as come to it, got 4",
    ),
    "dtypes": (
        lambda rngs: [gru(rngs), nnx.Linear(HIDDEN, 2, param_dtype=jnp.float16, rngs=rngs)],
        r"the kernel of `module.layers.1` should be float32, as the recurrent weights, got float16",
    ),
    "a product of one's own": (
        lambda rngs: [gru(rngs), nnx.Linear(HIDDEN, 2, dot_general=lambda *a, **k: jax.lax.dot_general(*a, **k), rngs=rngs)],
        r"`dot_general` of `module.layers.1` should be the default of nnx.Linear",
    ),
    "an option": (lambda rngs: [gru(rngs, num_layers=2, residual=True)], r"`residual` should be False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sequential_that_onnx_cannot_hold_is_refused_by_name(name):
    members, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"(?s)^to_onnx: .*{message}"):
        to_onnx(nnx.Sequential(*members(nnx.Rngs(0))))


def test_a_head_of_another_dtype_is_refused():
    model = models.GRUModel(INPUT, HIDDEN, OUTPUT, rngs=nnx.Rngs(0))
    model.fc = nnx.Linear(HIDDEN, OUTPUT, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"the kernel of `module.fc` should be float32, as the recurrent weights, got float16"):
        to_onnx(model)


# From a run -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A series with gaps, a run that forecasts it, and what the script made of that and said."""
    place = tmp_path_factory.mktemp("run")
    values = 100 + 10 * np.sin(np.arange(200)) + np.asarray(normal(200))
    rows = [f"{k},{value:.3f}" for k, value in enumerate(values) if k % 7]
    (place / "sales.csv").write_text("\n".join(["day,sold", *rows]) + "\n", encoding="utf-8")
    words = f"--csv {place / 'sales.csv'} --time day --column sold --horizon 2 --window 12 --hidden-size 6 --cell gru"
    words += " --steps 40 --validate-every 20"
    with jax.numpy_dtype_promotion("standard"):
        train_forecast.main([*words.split(), "--out", str(place / "run")])
    command = [sys.executable, export_model.__file__, str(place / "run"), "--out", str(place / "out"), "--steps", "30"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return np.where(np.arange(200) % 7, values.round(3), np.nan), place, run.stdout


@pytest.mark.slow
@pytest.mark.newest
def test_the_script_writes_compares_and_times_all_of_a_run(exported):
    _, place, said = exported
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model.stablehlo", "step.stablehlo", "model.onnx"]
    assert all(0 <= float(line.split()[-1]) < 1e-5 for line in lines[:3])
    assert [line.rpartition("  ")[0].strip() for line in lines[3:6]] == [
        "a step by the module, jitted", "a step by step.stablehlo", "a step by model.onnx",
    ]  # fmt: skip
    assert all(0 < float(line.split()[-2]) < 1000 for line in lines[3:6])
    kept = json.loads((place / "out/model.json").read_text(encoding="utf-8"))
    assert kept["config"]["horizon"] == 2


@pytest.mark.slow
@pytest.mark.newest
def test_a_forecast_from_the_files_alone_is_the_runs(exported):
    """model.json and model.onnx, NumPy and onnxruntime. A gap is left out, and the other steps counted: as if masked."""
    values, place, _ = exported
    model, scaler, _ = load_run(place / "run")
    x, mask = scaler.inputs(values[:, None])
    assert not mask.all()
    want = scaler.restored(jit(lambda x, mask: model(x, mask=mask))(x, mask), values[:, None])

    kept = json.loads((place / "out/model.json").read_text(encoding="utf-8"))["scaler"]
    past, window = values[-kept["window"] :], kept["window"]
    known = ~np.isnan(past)
    level = past[known][-1] if kept["from_last"] else kept["mean"][0]
    steps = np.stack([(past - level) / kept["scale"], np.arange(1 - window, 1) / window], axis=-1)[known].astype(np.float32)
    run = export_model.onnx_runner(place / "out/model.onnx")
    start = np.load(place / "out/start.npz")
    assert list(start) == ["h_0"]  # as model.onnx calls it
    outputs, _ = run(steps[None], *start.values())
    quantiles = np.sort(outputs.reshape(kept["horizon"], -1), axis=-1) * kept["scale"] + level
    close(quantiles[None], want, 1e-5)


@pytest.mark.slow
def test_files_that_are_not_the_models_are_noticed(tmp_path):
    model, other = (randomised(WHOLE["a GRU model"]) for _ in range(2))
    weight = other.rnn.layer_1.forward.b_hh
    weight.set_value(weight.get_value() + 1e-3)
    for written, fits in ((model, True), (other, False)):
        assert export_model.write(written, tmp_path) == {}
        differences, _ = export_model.compare(model, tmp_path, 1)
        assert {differences[name] <= tolerance for name, tolerance in export_model.TOLERANCES.items()} == {fits}


def test_nothing_of_another_model_is_left_beside_files_that_are_not_finished(tmp_path, monkeypatch):
    """Of all that the script says it writes."""
    names = re.findall(r"^    (\w+\.\w+) ", export_model.__doc__, re.MULTILINE)
    assert set(names) == {*export_model.TOLERANCES, "start.npz", "model.json"}
    for name in names:
        (tmp_path / name).write_text("of another model")
    monkeypatch.setattr(export_model, "export_sequences", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model.write(randomised(WHOLE["a GRU model"]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_in_a_line(tmp_path, capsys, monkeypatch):
    for words, message in (
        ([str(tmp_path / "none")], "load_run: `folder` should be the folder of a run"),
        ([str(tmp_path), "--platforms", "cuda"], "should have cpu among them, where the files are compared, got cuda"),
        ([str(tmp_path), "--steps", "0"], "--steps should be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            export_model.main([*words, "--out", str(tmp_path / "out")])
        assert message in f"{stop.value}{capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(export_model, "load_run", lambda folder: SimpleNamespace(model=None))
    with pytest.raises(training.Failure, match=r"file is a file: name a folder with --out"):
        export_model.main(["run", "--out", str(tmp_path / "file")])
    model = jaxrnn.models.GRUModel(INPUT, HIDDEN, OUTPUT, batch_first=False, rngs=nnx.Rngs(0))
    with pytest.raises(SystemExit, match=r"should take \(batch, time, features\), got a model with batch_first=False"):
        export_model.features_of(model)
    chars = jaxrnn.text.CharModel("ab", jaxrnn.GRUCell(), 3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(SystemExit, match=r"should take \(batch, time, features\), got a CharModel"):
        export_model.features_of(chars)
