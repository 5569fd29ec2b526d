"""Trained models of a run's folder: every public model comes back as it was, and what cannot be loaded is said with a way on."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import export_model
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import training
from flax import nnx
from support import drawn_like, unannotated

import jaxrnn
from jaxrnn import _checkpoints, initializers
from jaxrnn.model_json import build, describe
from jaxrnn.models import GRUModel, LSTMModel, RNNModel, SequenceModel
from jaxrnn.runs import load_run
from jaxrnn.scaling import Scaler
from jaxrnn.text import CharModel

SCALER = Scaler(("y", "x"), 7, 4, (0.1, 0.5, 0.9), True, 2.0, (5.0, -3.0), (1.5, 0.5))
chrono = {"b_ih_init": initializers.chrono(9), "b_hh_init": initializers.zeros}
MODELS = {
    "RNN": partial(jaxrnn.RNN, 3, 5, nonlinearity="relu", merge="sum", bidirectional=True),
    "LSTM": partial(jaxrnn.LSTM, 3, 5, 2, proj_size=2, skip_connections=True, param_dtype=jnp.bfloat16),
    "GRU": partial(jaxrnn.GRU, 3, (5, 4), 2, batch_first=False, zoneout=0.2, truncate=3, dtype=jnp.bfloat16, remat=True),
    "Recurrent": partial(
        jaxrnn.Recurrent, jaxrnn.LSTMCell(**chrono, activation="relu"), 3, 5, learn_initial_state=True, bias=False
    ),
    "output only": partial(jaxrnn.Recurrent, jaxrnn.LiGRUCell(), 3, 3, 2, residual=True, output_only=True, weight_dropout=0.1),
    "RNNModel": partial(RNNModel, 3, 5, 2),
    "LSTMModel": partial(LSTMModel, 3, 5, 2, num_layers=2, bidirectional=True, dropout=0.3),
    "GRUModel": partial(GRUModel, 3, 5, 2, input_dropout=0.1),
    "SequenceModel": partial(SequenceModel, jaxrnn.LRUCell(r_min=0.9, r_max=0.99), 3, 4, 2, num_layers=3, last=True, dropout=0.1),
    "SequenceModel, both ways": partial(SequenceModel, jaxrnn.SLSTMCell(forget_gate="exp"), 3, 4, 2, bidirectional=True),
    "CharModel": partial(CharModel, "\n äbc", jaxrnn.GRUCell(), 3, 4, num_layers=2),
    "CharModel, blocks": partial(CharModel, "ab", jaxrnn.RGLRUCell(blocks=2), 3, 4, num_layers=1, blocks=True),
}


def made(name):
    """A model with random parameters, none of them zero."""
    model = MODELS[name](rngs=nnx.Rngs(1))
    nnx.update(model, drawn_like(nnx.state(model, nnx.Param), seed=2))
    return model


def config_of(path):
    return training.RunConfig(out=str(path))


def save(path, model, *, name="a", steps=(3, 6), scaler=None, holds="params"):
    """A run with checkpoints of a model, as a script leaves it; the newest has the model's own parameters."""
    params = nnx.state(model, nnx.Param)
    with training.open_folder(config_of(path)) as folder:
        run = training.Run(folder, name, save_every=1, model=model, scaler=scaler, holds=holds)
        run.restore(**{holds: params})
        run.last = steps[-1]
        for step in steps:
            now = params if step == steps[-1] else jax.tree.map(lambda a: a + 1, params)
            run.checkpoint(step, **{holds: now, "more": {"params": np.zeros(3)}})
    return path / name


def same(one, other):
    a, b = (jax.tree.leaves(nnx.state(model, nnx.Param)) for model in (one, other))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_its_description(name):
    """Through JSON: the same class, the same printed form initialisers aside, and, given the same arrays, the same answer."""
    model = made(name)
    again = build(json.loads(json.dumps(describe(model))))
    assert type(again) is type(model)
    assert describe(again) == describe(model)
    nnx.update(again, nnx.state(model, nnx.Param))
    for one in (model, again):
        one.eval()
    x = jax.random.normal(jax.random.key(0), (4, 3, 3))
    if isinstance(model, CharModel):
        x = np.arange(12).reshape(4, 3) % len(model.symbols)
        assert again.symbols == model.symbols
    jax.tree.map(np.testing.assert_array_equal, again(x), model(x))


NUMPY = """
import json
import jaxrnn, numpy as np
from flax import nnx
from jaxrnn.model_json import build, describe
from jaxrnn.models import GRUModel, SequenceModel
from jaxrnn.text import CharModel

i, f, r = np.int64, np.float32, nnx.Rngs(0)
for model in (
    GRUModel(i(3), i(5), i(2), num_layers=np.int32(2), dropout=f(0.5), bidirectional=np.bool_(True), rngs=r),
    jaxrnn.GRU(3, (i(5), np.int32(4)), i(2), truncate=i(3), rngs=r),
    jaxrnn.Recurrent(jaxrnn.LRUCell(r_min=f(0.9), r_max=np.float64(0.99)), i(3), 4, rngs=r),
    SequenceModel(jaxrnn.RGLRUCell(blocks=i(2)), 3, i(4), i(2), num_layers=i(1), dropout=f(0.1), rngs=r),
    CharModel("ab", jaxrnn.GRUCell(), i(3), i(4), num_layers=i(1), rngs=r),
):
    described = describe(model)
    again = json.loads(json.dumps(described))
    assert again == described, described
    assert describe(build(again)) == described, described
"""


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers_in_json():
    """In a process of its own, since the tests check the types of arguments, which are Python's."""
    subprocess.run([sys.executable, "-c", NUMPY], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRU", "LSTM", "output only", "LSTMModel", "SequenceModel", "CharModel"])
def test_a_run_gives_its_model_scaler_and_configuration(name, tmp_path):
    model = made(name)
    folder = save(tmp_path / "run", model, scaler=SCALER if name == "LSTMModel" else None, holds="best_params")
    for place in (folder, str(folder), tmp_path / "run", tmp_path):  # of the run, or a folder that has one
        loaded = load_run(place)
        assert type(loaded.model) is type(model)
        same(loaded.model, model)
        assert loaded.scaler == (SCALER if name == "LSTMModel" else None)
        assert loaded.config == training.config.to_json(config_of("anywhere"))
    x = jax.random.normal(jax.random.key(0), (4, 3, 3)) if name != "CharModel" else np.ones((4, 3), int)
    jax.tree.map(np.testing.assert_array_equal, loaded.model(x), loaded.model(x))  # nothing is drawn
    model.eval()
    jax.tree.map(np.testing.assert_array_equal, loaded.model(x), model(x))
    older = MODELS[name](rngs=nnx.Rngs(3))
    nnx.update(older, jax.tree.map(lambda a: a + 1, nnx.state(model, nnx.Param)))
    same(load_run(folder, step=3).model, older)
    shutil.copytree(folder, tmp_path / "elsewhere" / "production")  # the folder of the run alone
    same(load_run(tmp_path / "elsewhere").model, model)


class Mine(nnx.Module):
    def __init__(self, hidden_size, *, rngs):
        self.rnn = jaxrnn.GRU(3, hidden_size, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(hidden_size, 2, rngs=rngs) for _ in range(2)])


@pytest.mark.slow
def test_a_model_of_a_script_is_given_and_filled_or_left_alone(tmp_path):
    model = Mine(5, rngs=nnx.Rngs(1))
    folder = save(tmp_path / "run", model)
    message = r"the model of .*run/a is a Mine of a script, which is no class of jaxrnn\.\nMake one with the sizes .* model=…\)\."
    with pytest.raises(ValueError, match=message):
        load_run(folder)
    with pytest.raises(SystemExit, match=r'no class of jaxrnn(?s:.*)exported by hand: .*production\.md, "A model of a script"'):
        export_model.main([str(folder)])
    other = Mine(5, rngs=nnx.Rngs(2))
    assert load_run(folder, model=other).model is other
    same(other, model)
    small = Mine(4, rngs=nnx.Rngs(2))
    before = nnx.state(small, nnx.Param)
    message = (
        r"load_run: `model` should have the parameters of the run in .*run/a, but differs:\n"
        r"    heads/0/kernel: float32\[5, 2\] in the run, float32\[4, 2\] in the model\n"
    )
    with pytest.raises(ValueError, match=message):
        load_run(folder, model=small)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(small, nnx.Param), before)
    with pytest.raises(ValueError, match=r"layer_0/forward/b_ih: nothing in the run, float32\[3, 5\] in the model\n    …$"):
        load_run(folder, model=jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="load_run: `model` should be a Module, got an array"):
        load_run(folder, model=jnp.ones(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("runs") / "run", made("GRUModel"))


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_without_a_run_is_refused_with_the_next_step(tmp_path, copy):
    (tmp_path / "file").write_text("x")
    cases = [
        (tmp_path / "nowhere", FileNotFoundError, r"should be the folder of a run, got '.*nowhere', which is not there\."),
        (tmp_path / "file", FileNotFoundError, r"got '.*file', which is a file\."),
        ("a\0b", FileNotFoundError, "which is not there"),
        (7, TypeError, "`folder` should be the path of a run, got int"),
        (
            copy / "checkpoints",
            FileNotFoundError,
            rf"is the folder of a run's checkpoints\.\nName the run: load_run\('{copy}'\)\.$",
        ),
        (copy / "checkpoints/3", FileNotFoundError, rf"is a checkpoint of a run\.\nName the run: load_run\('{copy}', step=3\)\.$"),
        (copy / "checkpoints/6/arrays", FileNotFoundError, r"should hold a run, with a folder `checkpoints` .*\nTrain one first"),
    ]
    for folder, error, message in cases:
        with pytest.raises(error, match=message):
            load_run(folder)
    shutil.copytree(copy, tmp_path / "all/b/c")
    shutil.copytree(copy, tmp_path / "all/a")
    with pytest.raises(ValueError, match=r"should hold one run, got .*all, which holds 2\.\nName one: .*all/a, .*all/b/c\."):
        load_run(tmp_path / "all")
    with pytest.raises(FileNotFoundError, match=r"`step` should be one of 3, 6, the checkpoints in .*checkpoints, got 4\."):
        load_run(copy, step=4)
    with pytest.raises(TypeError, match="`step` should be an integer, got '6'"):
        load_run(copy, step="6")
    for step in (3, 6):
        shutil.rmtree(copy / f"checkpoints/{step}")
    with pytest.raises(FileNotFoundError, match=r"should hold a finished checkpoint, got none in .*\nStart the script that trains"):
        load_run(copy)


DAMAGES = {
    "an array": (lambda newest: _flip(newest / "arrays"), "arrays/"),
    "a missing file": (lambda newest: (newest / "_CHECKPOINT_METADATA").unlink(), "_CHECKPOINT_METADATA"),
    "text in the manifest": (lambda newest: (newest / "manifest.json").write_text("{"), "manifest.json"),
    "a manifest of nothing": (lambda newest: (newest / "manifest.json").write_text("{}"), "manifest.json"),
    "another class": (lambda newest: _replace(newest / "manifest.json", "GRUModel", "RNNModel"), "manifest.json"),
    "another size": (lambda newest: _replace(newest / "manifest.json", '"hidden_size": 5', '"hidden_size": 6'), "manifest.json"),
}


def _flip(folder):
    file = max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _replace(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_whole_one_before_named(damage, copy):
    """Never loaded in its place without a word."""
    do, named = DAMAGES[damage]
    do(copy / "checkpoints/6")
    message = (
        rf"the checkpoint of step 6 in .*checkpoints is damaged \({named}.*\)\.\nThe one of step 3 is whole: pass step=3, or train"
    )
    with pytest.raises(ValueError, match=message):
        load_run(copy)
    assert type(load_run(copy, step=3).model) is GRUModel
    (copy / "checkpoints/3/manifest.json").write_text("")
    with pytest.raises(ValueError, match=r"step 3 .* is damaged \(manifest.json\)\.\nStart the script .* with the same command"):
        load_run(copy, step=3)


def without(name):
    def change(metadata):
        del metadata[name]

    return change


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        *[(without(name), name) for name in ("model", "params", "scaler", "config")],
        (lambda metadata: metadata["model"].pop("class"), "model"),
        (lambda metadata: metadata.update(scaler={"columns": ["y"]}), "scaler"),
        (lambda metadata: metadata.update(scaler=asdict(SCALER) | {"power": 2}), "scaler"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_in_a_sentence(change, entry, copy):
    """Its manifest is whole, and says less, or something else."""
    newest = copy / "checkpoints/6"
    content = json.loads((newest / "manifest.json").read_text())
    del content["digest"], content["files"]
    change(content["metadata"])
    (newest / "manifest.json").write_text(json.dumps(_checkpoints.manifest(newest, **content)))
    message = rf"load_run: the checkpoint .*checkpoints/6 is of another version of jaxrnn \('{entry}' is missing, or .* again\.$"
    with pytest.raises(ValueError, match=message):
        load_run(copy)


def test_a_manifest_of_another_version_is_not_called_damaged(copy):
    newest = copy / "checkpoints/6"
    content = {"run": "a", "step": 6}
    (newest / "manifest.json").write_text(json.dumps(_checkpoints.manifest(newest, **content)))
    message = r"step 6 in .*checkpoints is of another version of jaxrnn \(it has no 'shapes'\)\.\nThe one of step 3 is whole"
    with pytest.raises(ValueError, match=message):
        load_run(copy)


def test_a_checkpoint_that_is_being_written_is_passed_over(copy):
    shutil.copytree(copy / "checkpoints/6", copy / "checkpoints/7")
    (copy / "checkpoints/7/manifest.json").unlink()
    (copy / "checkpoints/8.orbax-checkpoint-tmp-1").mkdir()
    (copy / "checkpoints/notes").write_text("x")
    same(load_run(copy).model, made("GRUModel"))
    with pytest.raises(ValueError, match=r"step 7 in .* was not finished\.\nThe one of step 6 is whole: pass step=6"):
        load_run(copy, step=7)
    shutil.copytree(copy / "checkpoints/3", copy / "checkpoints/9")
    with pytest.raises(ValueError, match=r"step 9 in .* is a copy of the one of step 3\."):
        load_run(copy)


def test_a_description_of_something_else_is_refused():
    described = describe(made("GRUModel"))
    for wrong in (
        None,
        {},
        {"class": "os.system", "arguments": {}},
        described | {"class": "GRUModel"},
        {"class": described["class"]},
    ):
        with pytest.raises(ValueError, match=r"build: `description` should name a model among jaxrnn.RNN, "):
            build(wrong)
    with pytest.raises(ValueError, match=r"should fit the constructor of GRUModel, which says:\nGRU: `hidden_size` should be"):
        build(described | {"arguments": described["arguments"] | {"hidden_size": 0}})
    with pytest.raises(ValueError, match=r"which says:\nGRUModel: arguments should be among .*, got `depth`"):
        build(described | {"arguments": described["arguments"] | {"depth": 2}})
    described = describe(made("SequenceModel"))
    described["arguments"]["cell"]["class"] = "MyCell"
    with pytest.raises(ValueError, match=r"^build: `description` should name a cell among RNNCell, "):
        build(described)
    for kind, wrong in (
        ("GRUCell", {"cell": {"class": "GRUCell", "arguments": {"depth": 2}}}),
        ("SequenceModel", {"dtype": "float7"}),
    ):
        with pytest.raises(ValueError, match=rf"should fit the constructor of {kind}, which says:\n.*(`depth`|float7)"):
            build(described | {"arguments": describe(made("SequenceModel"))["arguments"] | wrong})


def test_what_is_no_model_of_jaxrnn_cannot_be_described():
    class MyGRU(jaxrnn.GRU):
        pass

    class MyCell(jaxrnn.GRUCell):
        pass

    with pytest.raises(TypeError, match=r"describe: `model` should be of a class among jaxrnn.RNN, .*, got a MyGRU\."):
        describe(MyGRU(3, 5, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"describe: `model` should have a cell of jaxrnn.cells, got a MyCell\."):
        describe(jaxrnn.Recurrent(MyCell(), 3, 5, rngs=nnx.Rngs(0)))


@pytest.mark.slow
def test_no_framework_is_imported_before_it_is_used_and_a_missing_one_is_named(run):
    """Nor any script."""
    code = f"""
import sys
import jaxrnn, jaxrnn.runs, jaxrnn.padding, jaxrnn.data_parallel, jaxrnn.text
found = [name for name in ("orbax", "tqdm", "matplotlib", "training") if name in sys.modules]
assert not found, found
sys.modules["orbax"] = None
try:
    jaxrnn.runs.load_run({str(run)!r})
except ImportError as error:
    assert str(error) == "load_run: the package orbax-checkpoint is missing: pip install 'jaxrnn[train]'", error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# The scaler -----------------------------------------------------------------------------------------------------------------


def test_a_scaler_reads_the_end_of_a_series_as_one_window():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 2))
    values[-2, 0] = values[-4] = np.nan
    last, given = SCALER.inputs(values), SCALER.inputs(values, np.array([12, 19]))
    unsigned = SCALER.inputs(values, np.array([12, 19], np.uint64))
    for one, several, same in zip(last, given, unsigned, strict=True):
        np.testing.assert_array_equal(one[0], several[1])
        np.testing.assert_array_equal(several, same)
    x, mask = given
    assert np.isnan(x[~mask]).all() and np.isfinite(x[mask]).all()  # so that a mask that was forgotten is seen
    assert mask[0].all() and mask[1].tolist() == [True] * 3 + [False] + [True] * 3
    np.testing.assert_array_equal(SCALER.level(values, [12, 19]), values[[12, 19], 0])
    outputs = rng.standard_normal((2, 12))
    restored = SCALER.restored(outputs, values, [12, 19])
    np.testing.assert_array_equal(restored[1:], SCALER.restored(outputs[1:].reshape(1, 4, 3), values))
    wanted = np.sort(outputs.reshape(2, 4, 3), -1) * 2 + values[[12, 19], 0][:, None, None]
    np.testing.assert_allclose(restored, wanted)


def test_a_scaler_takes_the_columns_of_a_table_by_name():
    values = np.random.default_rng(0).standard_normal((20, 2))
    values[[3, 15], [0, 1]] = np.nan
    swapped = frame(values)[["x", "y"]].assign(name="a")
    for index in EQUAL:
        for got, wanted in zip(SCALER.inputs(swapped.set_index(pd.Index(index))), SCALER.inputs(values), strict=True):
            np.testing.assert_array_equal(got, wanted)
    outputs = np.random.default_rng(1).standard_normal((1, 12))
    np.testing.assert_array_equal(SCALER.restored(outputs, swapped, 13), SCALER.restored(outputs, values, [13]))


DAYS = pd.date_range("2024-01-01", periods=21, freq="D")
MONTHS = pd.date_range("2023-01-31", periods=20, freq="ME")
HOURS = pd.date_range("2024-03-30 12:00", periods=20, freq="h", tz="Europe/Paris")  # summer time begins
EQUAL = (
    DAYS[:20],
    DAYS[:20].astype(str),
    DAYS[:20].date,
    DAYS[:20] - DAYS[0],
    DAYS[:20].to_period("D"),
    pd.date_range("2024-03-20", periods=20, freq="D", tz="Europe/Paris"),
    HOURS,
    MONTHS,
    MONTHS + pd.Timedelta(days=15),
    MONTHS.strftime("%Y-%m"),
    MONTHS.to_period("M"),
    pd.date_range("1990-01-01", periods=20, freq="QS"),
    pd.date_range("1990-01-01", periods=20, freq="YS"),
    np.arange(20) + 1700,
    np.arange(20) / 10,
)
UNEQUAL = (
    DAYS.delete(5),
    DAYS.delete(5).astype(str),
    DAYS.delete(5).date,
    DAYS.delete(5) - DAYS[0],
    DAYS[:20][::-1],
    DAYS[:19].insert(5, DAYS[5]),
    DAYS.to_period("D").delete(5),
    DAYS.to_period("D")[:19].insert(5, DAYS.to_period("D")[5]),
    pd.date_range(HOURS[0], periods=21, freq="h").delete(5),
    pd.date_range("2024-01-01", periods=20, freq="B"),
    pd.DatetimeIndex([day + pd.Timedelta(hours=hour) for day in DAYS for hour in range(9, 17)])[:20],
    pd.date_range("2024-01-01", periods=21, freq="WOM-3FRI").delete(5),
    pd.date_range("2024-01-31", periods=21, freq="ME").delete(5),
    pd.Index(np.delete(np.arange(21), 5)),
    pd.Index(np.arange(20)[::-1]),
    DAYS[:20].strftime("%d.%m.%Y"),
    DAYS[:20].tz_localize("UTC").astype(str),
    pd.date_range("2024-10-27", periods=20, freq="h").tz_localize("Europe/Paris", ambiguous=np.zeros(20, bool)),  # one 2:00 of two
    pd.MultiIndex.from_product([["a", "b"], DAYS[:10]]),
)


def frame(values):
    return pd.DataFrame(values, columns=["y", "x"])


def gap(values, first, last):
    values = values.copy()
    values[first:last, 0] = np.nan
    return values


def mean_scaler():
    return Scaler(**asdict(SCALER) | {"from_last": False})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s, v: s.inputs(v[:, 0]),
            ValueError,
            r"inputs: `values` should have shape \(time, 2\), the columns y, x, got \(20,\)",
        ),
        (lambda s, v: s.inputs(v[:, :1]), ValueError, r"inputs: `values` should have shape \(time, 2\), .* got \(20, 1\)"),
        (lambda s, v: s.inputs(v[:6]), ValueError, "inputs: `values` should have at least 7 rows, by window=7, got 6"),
        (lambda s, v: s.targets(v[:9], [6]), ValueError, "at least 11 rows, by window=7 and horizon=4, got 9"),
        (lambda s, v: s.inputs(v, [5]), ValueError, "`ends` should be rows from 6 to 19, got 5 to 5"),
        (lambda s, v: s.inputs(v, [20]), ValueError, "`ends` should be rows from 6 to 19, got 20 to 20"),
        (lambda s, v: s.targets(v, [16]), ValueError, "`ends` should be rows from 6 to 15, got 16 to 16"),
        (lambda s, v: s.inputs(v, [[8]]), ValueError, r"`ends` should be rows from 6 to 19, got shape \(1, 1\)"),
        (lambda s, v: s.inputs(v, 20), ValueError, "`ends` should be rows from 6 to 19, got 20 to 20"),
        (lambda s, v: s.inputs(v.astype(str)), TypeError, "`values` should be an array of numbers, got dtype <U"),
        (lambda s, v: s.inputs(v.tolist()), TypeError, "`values` should be an array, got list"),
        (
            lambda s, v: s.inputs(np.where(v == v[8, 1], -np.inf, v)),
            ValueError,
            r"inputs: `values` should be numbers, NaN in gaps, got \[.*, -inf\] in row 8",
        ),
        (lambda s, v: s.level(v * np.inf), ValueError, r"level: `values` should be numbers, NaN in gaps, got \[.*inf\] in row 0"),
        (lambda s, v: s.inputs(v, [6.5]), TypeError, "inputs: `ends` should be an integer array, got dtype float64"),
        (lambda s, v: s.inputs(v, np.uint64([2**64 - 1])), ValueError, "`ends` should be rows from 6 to 19, got"),
        (
            lambda s, v: s.inputs(v * np.nan),
            ValueError,
            "a value of 'y' in each window of 7 rows, got gaps only in rows 13 to 19",
        ),
        (lambda s, v: s.inputs(gap(v, 3, 10), [8, 9, 10]), ValueError, "`values` should have .*, got gaps only in rows 3 to 9"),
        (lambda s, v: s.restored(np.ones((1, 12)), gap(v, 3, 10), 9), ValueError, "restored: .* gaps only in rows 3 to 9"),
        (lambda s, v: mean_scaler().inputs(gap(v, 13, 20)), ValueError, "inputs: .* gaps only in rows 13 to 19"),
        (lambda s, v: s.inputs(pd.DataFrame(v, columns=["x", "z"])), ValueError, r"have one column 'y', .* \(y, x\), got x, z\."),
        (lambda s, v: s.inputs(pd.DataFrame(v, columns=["y", "y"])), ValueError, "have one column 'y', .* got y, y"),
        (lambda s, v: s.inputs(pd.Series(v[:, 0])), TypeError, "`values` should be an array or a DataFrame, got a Series"),
        (lambda s, v: s.inputs(frame(v).astype({"y": object})), TypeError, r"got dtype object\.\nWrite values\.astype\(float\)"),
        *(
            (
                lambda s, v, index=index: s.inputs(frame(v).set_index(index)),
                ValueError,
                r"in equal steps, .* got .+\.\nRows that .* dayfirst=True for dates such as 31\.01\.2024",
            )
            for index in UNEQUAL
        ),
        (lambda s, v: s.restored(np.ones((1, 11)), v), ValueError, r"`outputs` should have shape \(1, 4, 3\), .* got \(1, 11\)"),
    ],
)
def test_a_scaler_refuses_what_it_was_not_fitted_to(call, error, message):
    with unannotated(), pytest.raises(error, match=message):
        call(SCALER, np.random.default_rng(0).standard_normal((20, 2)))


@pytest.mark.parametrize(
    ("index", "came"),
    [
        (DAYS.delete(5), "2024-01-04, 2024-01-05, 2024-01-07"),
        (DAYS.delete(1).astype(str), "2024-01-01, 2024-01-03, 2024-01-04"),
        (DAYS.to_period("D").delete(19), "2024-01-18, 2024-01-19, 2024-01-21"),
        (HOURS.insert(3, HOURS[2])[:20], "2024-03-30 13:00:00+01:00, 2024-03-30 14:00:00+01:00, 2024-03-30 14:00:00+01:00"),
        (MONTHS.delete(2).insert(19, DAYS[20]), "2023-01-31, 2023-02-28, 2023-04-30"),
        (pd.Index(np.arange(20)[::-1]), "19, 18"),
        (DAYS[:20].strftime("%d.%m.%Y"), "01.01.2024"),
    ],
)
def test_a_scaler_names_the_first_steps_that_are_unequal(index, came):
    with pytest.raises(ValueError, match=f"in equal steps, .* no value, got {re.escape(came)}\\.\n"):
        SCALER.inputs(frame(np.zeros((20, 2))).set_index(index))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"columns": "yx"}, TypeError, "`columns` should be a tuple, got 'yx'"),
        ({"columns": (1, 2)}, TypeError, r"`columns` should be names, at least one, got \(1, 2\)"),
        ({"window": "7"}, TypeError, "`window` should be an integer, got '7'"),
        ({"horizon": 0}, ValueError, "`horizon` should be at least 1, got 0"),
        ({"quantiles": (0.5, 0.1)}, ValueError, r"`quantiles` should ascend, and be at least one, got \(0.5, 0.1\)"),
        ({"quantiles": (0.5, 9)}, ValueError, "`quantiles` should be a probability, from 0 to 1, got 9"),
        ({"from_last": 1}, TypeError, "`from_last` should be True or False, got 1"),
        ({"scale": 0.0}, ValueError, "`scale` should be above 0 and finite, got 0.0"),
        ({"mean": (1.0,)}, ValueError, r"`mean` should have a number for each of 2 `columns`, got \(1.0,\)"),
        ({"mean": (1.0, np.nan)}, ValueError, "`mean` should be finite, got nan"),
        ({"deviation": (1.0, 1.0, 1.0)}, ValueError, "`deviation` should have a number for each of 2 `columns`, got"),
        ({"deviation": (1.0, 0)}, ValueError, "`deviation` should be above 0 and finite, got 0"),
    ],
)
def test_a_scaler_that_would_scale_wrongly_is_not_made(given, error, message):
    kept = asdict(SCALER)
    assert Scaler(**kept | {"columns": list(kept["columns"]), "mean": list(kept["mean"])}) == SCALER
    with unannotated(), pytest.raises(error, match=f"Scaler: {message}"):
        Scaler(**kept | given)
