"""The training scripts: what they print, what they refuse, that they end the same however they are stopped, and that the
losses of the regression are PyTorch's."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_chars
import train_classify
import train_forecast
import train_memory
import train_pixels
import train_policy
import train_regression
import training
from flax import nnx, traverse_util

import jaxrnn
from jaxrnn.runs import load_run

ROOT = Path(__file__).parents[1]
TINY = {
    train_forecast: "--task sunspots --hidden-size 3 --batch-size 6 --validate-every 2",
    train_classify: "--task vowels --cell GRU --seed 4 --hidden-size 3 --batch-size 4 --buckets 2",
    train_chars: "--characters 4000 --embed-size 2 --hidden-size 3 --batch-size 6 --length 7 --sample 11",
    train_regression: "--cell RNN --hidden-size 3 --epochs 3",
    train_memory: "--task adding --cell LSTM --length 10 --hidden-size 3 --batch-size 6",
    train_pixels: "--cell lru --seed 4 --hidden-size 3 --num-layers 1 --batch-size 480",
    train_policy: "--task memory --length 2 --cell gru --seed 4 --hidden-size 3 --environments 4 --rollout 9 --report-every 1",
}


@pytest.fixture(autouse=True)
def promotion():
    """Optax mixes dtypes, so what trains does without strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# Regression ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", train_regression.MODELS)
@pytest.mark.parametrize(("num_layers", "precision", "tolerance"), [(1, "float64", 1e-9), (2, "float32", 5e-5)])
def test_every_loss_of_the_regression_is_pytorchs(name, num_layers, precision, tolerance, capsys):
    """From PyTorch's weights, on the same data, all of the 100 epochs."""
    torch = pytest.importorskip("torch")
    from flax import nnx

    torch.set_num_threads(1)  # more than these tiny products can use, where others work too, is very slow
    torch.manual_seed(3)
    dtype = getattr(torch, precision)
    rnn = getattr(torch.nn, name)(10, 20, num_layers, batch_first=True, dtype=dtype)
    fc = torch.nn.Linear(20, 2, dtype=dtype)
    x, y = torch.randn(5, 3, 10, dtype=dtype), torch.randn(5, 2, dtype=dtype)
    start = {k: v.detach().numpy().copy() for k, v in rnn.state_dict().items()}
    kernel, bias = fc.weight.detach().numpy().T.copy(), fc.bias.detach().numpy().copy()

    optimizer = torch.optim.Adam([*rnn.parameters(), *fc.parameters()], lr=1e-3)
    wanted = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(fc(rnn(x)[0][:, -1]), y)
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())

    with jax.enable_x64(precision == "float64"):
        model = train_regression.MODELS[name](10, 20, 2, num_layers=num_layers, rngs=nnx.Rngs(0))
        gates = model.rnn.stack.cell.gates
        for layer, (params,) in enumerate(model.rnn.params):
            for field in ("w_ih", "w_hh", "b_ih", "b_hh"):
                theirs = start[f"{'weight' if field[0] == 'w' else 'bias'}_{field[2:]}_l{layer}"]
                ours = theirs.reshape(len(gates), 20, -1).transpose(2, 0, 1)
                getattr(params, field).set_value(jnp.asarray(ours if field[0] == "w" else ours[0]))
        model.fc.kernel.set_value(jnp.asarray(kernel))
        model.fc.bias.set_value(jnp.asarray(bias))
        data = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
        losses, _ = train_regression.train(name, model, *data, learning_rate=1e-3, epochs=100)

    np.testing.assert_allclose(losses, wanted, rtol=0, atol=tolerance)
    assert f"{name} Epoch [10/100], Loss: {losses[9]:.4f}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_the_regression_prints_lines_and_tables_and_saves_plots_and_models(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_regression.main(["--epochs", "20", "--bidirectional"])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert all(" of 200, loss " in line for line in err.splitlines())  # on a slow machine, a line every ten seconds
    assert [line.split(",")[0] for line in lines[:6]] == [f"{n} Epoch [{k}/20]" for n in ("RNN", "LSTM", "GRU") for k in (10, 20)]
    assert [line.split()[:2] for line in lines[8:11]] == [["RNN", "1,362"], ["LSTM", "5,202"], ["GRU", "3,922"]]
    assert [line.split()[-1] for line in lines[8:11]] == ["ms"] * 3
    assert lines[11].startswith("Random data hold nothing to learn:")
    assert lines[13] == "sunspots, the next year from 22 years, one layer, 200 epochs, seed 0: root mean squared error since 1950"
    errors = {line[:12].strip(): float(line[12:]) for line in lines[14:18]}
    assert errors["as last year"] == 33.2
    assert max(errors[name] for name in ("RNN", "LSTM", "GRU")) < 0.75 * errors["as last year"]
    for name in ("loss.png", "sunspots.png"):
        assert Path("runs/regression", name).read_bytes().startswith(b"\x89PNG")
    assert load_run("runs/regression/GRU-0").config["epochs"] == 20
    words = "--cell RNN --epochs 1 --bidirectional --out new/folder"  # the only step compiles
    train_regression.main(words.split())
    assert load_run("new/folder/RNN-0").config["epochs"] == 1
    assert capsys.readouterr().out.splitlines()[2].split()[-1] == "–"


@pytest.mark.parametrize(
    "words", ["--cell Transformer", "--epochs 0", "--hidden-size 2.5", "--learning-rate -1", "--bidirectional 3"]
)
def test_the_regression_refuses_bad_options(words, capsys):
    with pytest.raises(SystemExit) as stop:
        train_regression.main(words.split())
    assert stop.value.code == 2
    assert words.split()[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (train_forecast, "--task weather"),
        (train_forecast, "--steps 0"),
        (train_classify, "--task vowels mnist"),
        (train_classify, "--cell Transformer"),
        (train_classify, "--epochs 0"),
        (train_chars, "--cell Transformer"),
        (train_chars, "--cell ConvLSTM1D"),
        (train_chars, "--steps 0"),
        (train_memory, "--task sorting"),
        (train_memory, "--steps 0"),
        (train_memory, "--step 3"),
        (train_pixels, "--cell LRU ProjectedLSTM"),
        (train_pixels, "--score-on train"),
        (train_pixels, "--epochs 0"),
        (train_pixels, "--weight-decay -1"),
        (train_policy, "--task cartpole pong"),
        (train_policy, "--cell ConvLSTM1D"),
        (train_policy, "--steps 0"),
    ],
)
def test_an_unknown_task_cell_or_flag_or_no_step_at_all_is_refused(script, words, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        tiny(script, out, words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert words.split()[0] in err
    assert words.split()[-1] in err
    assert not out.exists()


@pytest.mark.parametrize("script", TINY, ids=lambda script: script.__name__)
def test_a_file_in_place_of_the_folder_is_named_and_left_alone(script, tmp_path, vowels):
    file = tmp_path / "README.md"
    file.write_text("important")
    with pytest.raises(training.Failure, match=r"README.md is a file: name a folder with --out") as failure:
        tiny(script, file)
    assert failure.value.code == 2
    assert file.read_text() == "important"


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_regression_quietly(tmp_path):
    """As in `train_regression.py | head -1`, in another working directory; without a terminal no bar is drawn."""
    command = [sys.executable, ROOT / "scripts/train_regression.py", "--cell", "RNN", "--epochs", "3000", "--out", "here"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, **pipes) as process:
        assert process.stdout.readline().startswith("RNN Epoch [10/3000], Loss: ")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
    assert (tmp_path / "here").is_dir()


@pytest.mark.parametrize("script", TINY, ids=lambda script: script.__name__)
def test_every_flag_of_a_script_is_read(script):
    """By the script, or by what all scripts share."""
    files = [Path(script.__file__), *Path(training.__file__).parent.glob("*.py")]
    text = "".join(file.read_text() for file in files)
    assert [f.name for f in fields(script.Config) if not re.search(rf"\bconfig\.{f.name}\b", text)] == []


# The other scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def vowels(tmp_path, monkeypatch):
    """A package that holds nothing but 12 + 8 short vowels of 2 speakers, 3 to 9 frames of 3 channels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "packages/aeon/datasets/data/JapaneseVowels"
    folder.mkdir(parents=True)
    (tmp_path / "packages/aeon/__init__.py").write_text("raise ImportError('should be read, not imported')")
    for part, rows in {"TRAIN": 12, "TEST": 8}.items():
        lines = ["#A comment", "@problemName JapaneseVowels", "@classLabel true a b", "@DATA"]
        for row in range(rows):
            frames = rng.standard_normal((3 + row % 7, 3)) + 2 * (row % 2)
            lines.append(":".join([*(",".join(f"{x:.6f}" for x in channel) for channel in frames.T), "ab"[row % 2]]))
        (folder / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "aeon", raising=False)
    monkeypatch.setitem(sys.modules, "sktime", None)
    return folder


def tiny(script, out, words=""):
    """Run a script with tiny sizes in this process."""
    script.main([*TINY[script].split(), *words.split(), "--out", str(out)])


def metrics(out):
    """The bytes of every metrics file, times aside, also of a run that is at work: its checkpoints, which come and go, are not
    walked."""
    places = ("*/metrics.jsonl", "*/*/metrics.jsonl")
    files = [p for place in places for p in Path(out).glob(place) if p.parent.name != "checkpoints-set-aside"]
    return {str(p.relative_to(out)): re.sub(rb', "seconds": [^,}]+', b"", p.read_bytes()) for p in sorted(files)}


def timeless(text):
    """The lines that a script printed to stdout without the times in them, and without the one that says where it goes on."""
    text = re.sub(r", [0-9.,]+ (s|steps/s|ms of CPU time a step)$|(?<=\| )[0-9.,]+ \|$", "", text, flags=re.MULTILINE)
    return [line for line in text.splitlines() if "going on" not in line]


def size(out):
    """How long the metrics are, in bytes."""
    return sum(map(len, metrics(out).values()))


def arrays(out):
    """The arrays of every last checkpoint."""
    import orbax.checkpoint as ocp

    last = {}
    for path in sorted(Path(out).rglob("checkpoints")):
        step = max(int(p.name) for p in path.iterdir() if p.name.isdecimal())
        tree = ocp.StandardCheckpointer().restore(path / str(step) / "arrays")
        for name, array in traverse_util.flatten_dict(tree, sep="/").items():
            last[f"{path.parent.name} {step} {name}"] = np.asarray(array)
    return last


def assert_same_end(one, other):
    assert metrics(one) == metrics(other)
    ends = arrays(one), arrays(other)
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        np.testing.assert_array_equal(ends[0][name], ends[1][name], err_msg=name)


RUNS = {
    train_forecast: "sunspots/LSTM-0",
    train_classify: "vowels/GRU-4",
    train_chars: "LSTM-0",
    train_memory: "adding-10/LSTM-0",
    train_pixels: "LRU-4",
    train_policy: "memory-2/GRU-4",
}


def params_of_checkpoint(out, held="params"):
    """The parameters in the last checkpoint of a folder with one run, by their paths in the model."""
    found = {}
    for name, array in arrays(out).items():
        _, _, path = name.split(" ")
        if path.startswith(f"{held}/"):
            found[path.removeprefix(f"{held}/")] = array
    return found


def assert_loads(script, out):
    """What was trained comes back without the script, if its model is one of jaxrnn; else it fills one of the script."""
    folder, held = out / RUNS[script], "best_params" if script is train_forecast else "params"
    wanted = params_of_checkpoint(out, held)
    assert wanted
    if script in (train_memory, train_policy):
        with pytest.raises(ValueError, match=r"is a (Model|Policy) of a script, .*\nMake one with the sizes .* pass it"):
            load_run(folder)
        if script is train_memory:
            cell = train_memory.describe("adding", "LSTM", 10)
            model = train_memory.Model(cell, (2, 3, 1), 1, rngs=nnx.Rngs(9))
        else:
            model = train_policy.Policy("GRU", 3, 3, 2, rngs=nnx.Rngs(9))
        model, scaler, config = load_run(folder, model=model)
    else:
        model, scaler, config = load_run(out if script is train_chars else folder)
    kind = {
        train_forecast: jaxrnn.models.LSTMModel,
        train_classify: jaxrnn.models.GRUModel,
        train_chars: jaxrnn.text.CharModel,
        train_pixels: jaxrnn.models.SequenceModel,
    }
    assert type(model) is kind.get(script, type(model))
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    came = {"/".join(map(str, path)): np.asarray(a) for path, a in traverse_util.flatten_dict(state).items()}
    assert came.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(came[name], wanted[name], err_msg=name)
    assert config["hidden_size"] == 3
    assert (scaler is not None) == (script is train_forecast)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(
    ("script", "amount", "first", "steps", "files"),
    [
        (train_forecast, "--steps 10", 4, 10, {"forecast.png", "loss.png"}),
        (train_classify, "--epochs 5", 12, 15, {"accuracy.png", "loss.png"}),
        (train_chars, "--steps 10", 4, 10, {"loss.png"}),
        (train_memory, "--steps 10", 4, 10, {"memory.png"}),
        (train_pixels, "--epochs 10", 4, 10, {"accuracy.png", "pixels.json"}),
        (train_policy, "--steps 10", 4, 10, {"policy.png", "policy.json"}),
    ],
)
def test_a_script_without_its_last_checkpoints_ends_the_same(script, amount, first, steps, files, tmp_path, vowels, capsys):
    """Its first run is whole; the second is a copy of it that has lost all but the oldest of its checkpoints."""
    amount += " --save-every 4"
    whole, again = tmp_path / "whole", tmp_path / "again"
    tiny(script, whole, amount)
    shutil.copytree(whole, again)
    (checkpoints,) = again.rglob("checkpoints")
    assert checkpoints.parent == again / RUNS[script]
    for path in sorted(checkpoints.iterdir(), key=lambda p: int(p.name))[1:]:
        shutil.rmtree(path)
    before = capsys.readouterr().out
    tiny(script, again, amount)
    second = capsys.readouterr().out
    assert f"going on after step {first}" in second
    lines, lines_again = timeless(before.replace(str(whole), str(again))), timeless(second)
    assert len(lines) - len(lines_again) == (4 if script in (train_pixels, train_policy) else 0)  # which print a line for each step
    assert lines_again == lines[-len(lines_again) :]
    assert {p.name for p in whole.iterdir() if p.is_file() and not p.name.startswith(".")} == files | {"config.json"}
    assert_same_end(whole, again)
    if script is train_classify:
        assert "padded to (6, 9): 2 shapes" in before
    kept = metrics(whole)
    with pytest.raises(training.Failure, match=r"another configuration:\n    hidden_size: 3 before, 4 now\nName another"):
        tiny(script, whole, amount + " --hidden-size 4")
    assert metrics(whole) == kept
    (lines,) = kept.values()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == list(range(1, steps + 1))
    assert_loads(script, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "amount"),
    [
        (train_forecast, "--steps"),
        (train_classify, "--epochs"),
        (train_chars, "--steps"),
        (train_memory, "--steps"),
        (train_policy, "--steps"),
    ],
)
def test_a_longer_run_goes_on_and_is_the_long_one(script, amount, tmp_path, vowels, capsys):
    """Of 4 steps or epochs, then of 8, it is one of 8 from the start. It cannot become shorter; other runs may come beside it."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    tiny(script, parts, f"{amount} 4")
    tiny(script, parts, f"{amount} 8")
    steps = 4 * (3 if script is train_classify else 1)
    assert f"going on after step {steps}" in capsys.readouterr().out
    tiny(script, whole, f"{amount} 8")
    assert_same_end(parts, whole)
    assert json.loads((parts / "config.json").read_text())[amount.strip("-")] == 8
    said = rf"is at step {2 * steps} already, and {steps} are asked for: ask for at least as many, or name another folder"
    with pytest.raises(training.Failure, match=said) as failure:
        tiny(script, parts, f"{amount} 4")
    assert failure.value.code == 2
    assert_same_end(parts, whole)
    tiny(script, parts, f"{amount} 4 --seed 5")  # a run of its own
    assert len(metrics(parts)) == 2


@pytest.mark.slow
def test_more_epochs_of_pixels_go_on_and_say_what_the_learning_rate_does(tmp_path, capsys):
    for epochs in (2, 4):
        tiny(train_pixels, tmp_path / "run", f"--epochs {epochs}")
    out = capsys.readouterr().out
    assert "LRU-4: the learning rate follows the cosine of 4 epochs from here on, not of 2\nLRU-4: going on after step 2\n" in out
    (lines,) = metrics(tmp_path / "run").values()
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_models_of_the_regression_can_be_loaded(tmp_path):
    """The last loss is theirs, a step of Adam later; a second run takes their place."""
    words = "--cell GRU --epochs 30 --learning-rate 1e-9 --bidirectional --seed 1 2"
    for hidden in (3, 4):
        train_regression.main([*words.split(), "--hidden-size", str(hidden), "--out", str(tmp_path)])
        model, scaler, config = load_run(tmp_path / "GRU-2")
        assert (scaler, config["hidden_size"], model.rnn.stack.hidden_size) == (None, hidden, hidden)
        fresh = jaxrnn.models.GRUModel(10, hidden, 2, bidirectional=True, rngs=nnx.Rngs(2))
        x = np.random.default_rng(0).standard_normal((5, 3, 10)).astype(np.float32)
        np.testing.assert_allclose(model(x), fresh(x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"holds 2\.\nName one: .*GRU-1, .*GRU-2\."):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(training.Failure, match="holds a run of another script: name another folder with --out"):
        train_regression.main([*words.split(), "--out", str(tmp_path)])


@pytest.mark.parametrize("task", ["adding", "copy"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_the_cells_of_the_memory_tasks_can_be_made(task, name):
    params = train_memory.describe(task, name, 100).init(jax.random.key(0), 9, 7)
    kept = {"RNN": None, "LSTM": params.b_ih[1], "GRU": params.b_ih[-2]}[name]
    if kept is not None:
        assert ((kept >= 0) & (kept <= np.log(99))).all()
        assert kept.max() > 2


def test_the_memory_tasks_ask_for_what_was_shown():
    rng = np.random.default_rng(0)
    x, y = train_memory.adding(rng, 5, 12, None)
    np.testing.assert_allclose(y[:, 0], [row[row[:, 1] == 1, 0].sum() for row in x], rtol=1e-6)
    np.testing.assert_array_equal(x[:, :6, 1].sum(1), np.ones(5))
    np.testing.assert_array_equal(x[:, 6:, 1].sum(1), np.ones(5))
    x, y = train_memory.copy(rng, 5, 12, 3)
    assert x.shape == (5, 18, 9)
    np.testing.assert_array_equal(x[:, :3].argmax(-1), y)
    np.testing.assert_array_equal(x.sum(-1), [[1, 1, 1] + [0] * 12 + [1, 0, 0]] * 5)
    np.testing.assert_array_equal(x[:, 15, 8], np.ones(5))


def test_vowels_are_read_from_the_package_without_importing_it(vowels):
    (x, y), (x_test, y_test) = train_classify.load("vowels")
    assert [s.shape for s in x] == [(3 + row % 7, 3) for row in range(12)]
    assert len(x_test) == 8
    np.testing.assert_array_equal(y, [0, 1] * 6)
    np.testing.assert_array_equal(y_test, [0, 1] * 4)
    series, _ = train_classify.read_ts(vowels / "JapaneseVowels_TRAIN.ts")
    frames = np.concatenate(series)
    np.testing.assert_allclose(x[5], (series[5] - frames.mean(0)) / frames.std(0), rtol=1e-4)
    line = (vowels / "JapaneseVowels_TRAIN.ts").read_text().splitlines()[4 + 5]
    np.testing.assert_allclose(series[5][:, 1], [float(n) for n in line.split(":")[1].split(",")], rtol=1e-6)


def pixels(images):
    """Back from standardised images to the whole numbers 0 … 16 of the data set, (rows, 64)."""
    low, high = images.min(), images.max()
    return np.rint((images[..., 0] - low) / (high - low) * 16).astype(int)


def test_digits_that_choices_are_made_on_are_none_of_the_test_set():
    from sklearn.datasets import load_digits

    (x, y), (x_test, y_test) = train_pixels.load()
    assert (len(x), len(x_test)) == (1437, 360)
    whole = np.concatenate([pixels(np.concatenate([x, x_test])), np.concatenate([y, y_test])[:, None]], axis=1)
    images, classes = load_digits(return_X_y=True)
    theirs = np.concatenate([images, classes[:, None]], axis=1).astype(int)
    np.testing.assert_array_equal(np.unique(whole, axis=0, return_counts=True)[1], 1)  # no image twice, so none in both
    np.testing.assert_array_equal(np.unique(whole, axis=0), np.unique(theirs, axis=0))
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)  # by the training images alone

    (x_kept, y_kept), (x_validation, y_validation) = train_pixels.load("validation")
    assert len(x_validation) == 288
    np.testing.assert_array_equal(pixels(np.concatenate([x_kept, x_validation])), pixels(x))
    np.testing.assert_array_equal(np.concatenate([y_kept, y_validation]), y)
    np.testing.assert_allclose([x_kept.mean(), x_kept.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("score_on", ["test", "validation"])
def test_the_pixels_of_every_digit_are_permuted_alike(score_on):
    """By what knows neither the cell nor its seed."""
    plain, moved = train_pixels.load(score_on), train_pixels.load(score_on, permuted=True)
    before, after = (np.concatenate([pixels(images) for images, _ in parts]).T for parts in (plain, moved))
    places = [np.flatnonzero((before == column).all(1)) for column in after]
    assert all(len(place) for place in places)  # each pixel is one of the plain image, in all images at once
    lit = [place[0] for place in places if len(place) == 1]
    assert len(set(lit)) == len(lit) > 55  # those in the corners are dark in all
    assert np.abs(np.diff(lit)).mean() > 10  # neighbours are far apart
    for (_, y), (_, y_moved) in zip(plain, moved, strict=True):
        np.testing.assert_array_equal(y, y_moved)


def test_cells_are_known_in_any_case_and_a_script_has_those_that_fit():
    read = training.parse(train_pixels.Config, ["--cell", "lru", "PARAGRU", "minLSTM"], description="Test.")
    assert read.cell == ("LRU", "ParaGRU", "MinLSTM")
    assert training.parse(train_chars.Config, ["--cell", "mingru"], description="Test.").cell == ("MinGRU",)
    assert set(train_pixels.COMPARED) <= set(train_pixels.NAMES)
    kept = set(jaxrnn.cells.CELLS) - set(train_pixels.NAMES)
    assert kept == {"ProjectedLSTM", "ConvLSTM1D", "ConvLSTM2D", "ConvGRU1D", "ConvGRU2D"}


@pytest.mark.slow
def test_digits_are_learned_and_reported(tmp_path, capsys):
    """Better than by guessing, 0.1; the numbers of the file are those of the metrics and of the table, the seconds of both kept."""
    words = "--cell lru RNN --seed 0 1 --hidden-size 8 --batch-size 48 --epochs 2 --learning-rate 2e-2"
    tiny(train_pixels, tmp_path / "run", words)
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "run/pixels.json").read_text())
    assert list(results["cells"]) == ["RNN", "LRU"]
    assert {"cores", "processor", "versions", "configuration"} <= set(results["header"])
    for name, result in results["cells"].items():
        scores = " ".join(f"{seed['accuracy'][-1]:.3f}" for seed in result["seeds"])
        assert f"| {name} | {result['parameters']:,} | {scores} | " in out
        for number, seed in enumerate(result["seeds"]):
            lines = (tmp_path / f"run/{name}-{number}/metrics.jsonl").read_text().splitlines()
            assert seed["accuracy"] == [json.loads(line)["accuracy"] for line in lines]
            assert 0 < seed["seconds"][0] < seed["seconds"][1]
    accuracies = [seed["accuracy"][-1] for seed in results["cells"]["LRU"]["seeds"]]
    assert len(set(accuracies)) == 2
    assert min(accuracies) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("LRU", ""), ("ParaLSTM", ""), ("LSTM", "--blocks"), ("GRU", "")])
def test_a_character_model_in_stretches_and_in_steps_is_the_whole(name, more):
    words = f"--cell {name} {more} --embed-size 3 --hidden-size 5 --num-layers 2"
    config = training.parse(train_chars.Config, words.split(), description="Test.")
    model = train_chars.make("abcdefghijk", *config.cell, config, seed=0)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
    whole, end = model(tokens)
    first, state = model(tokens[:, :5])
    second, state = model(tokens[:, 5:], state=state)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-5)
    assert np.abs(np.asarray(second) - np.asarray(model(tokens[:, 5:])[0])).max() > 1e-3  # the state is read
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), state, end)
    state = None
    for place in range(9):
        logits, state = model.step(tokens[:, place], state)
        np.testing.assert_allclose(logits, whole[:, place], atol=1e-5)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (train_forecast, "--validate-every 4 --steps 10", "--steps should be a multiple of --validate-every 4, got 10"),
        (train_policy, "--report-every 4 --steps 10", "--steps should be a multiple of --report-every 4, got 10"),
    ],
)
def test_the_last_step_is_one_that_is_validated_or_reported(script, words, message, tmp_path):
    with pytest.raises(training.Failure, match=message) as failure:
        tiny(script, tmp_path / "run", words)
    assert failure.value.code == 2
    assert not (tmp_path / "run").exists()


def test_pytorchs_layers_are_not_compared_with_blocks(tmp_path):
    for words in ("--cell LRU", "--blocks"):
        message = r"--compare should come with --cell RNN, LSTM, GRU in plain layers, got L"
        with pytest.raises(training.Failure, match=message) as failure:
            tiny(train_chars, tmp_path / "run", words + " --compare")
        assert failure.value.code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_a_script(tmp_path):
    """So large a step that the second loss overflows."""
    said = r"sunspots/RNN-0: loss is (inf|nan) at step [23]\. The last good checkpoint is of step 1, in .*checkpoints/1\."
    with pytest.raises(training.Failure, match=said) as failure:
        tiny(train_forecast, tmp_path / "run", "--learning-rate 1e38 --steps 10 --save-every 1 --cell RNN")
    assert failure.value.code == 1
    (lines,) = metrics(tmp_path / "run").values()
    assert 1 <= len(lines.splitlines()) <= 2
    assert not list((tmp_path / "run").glob("*.png"))


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path):
    """Their share of the states that are carried from stretch to stretch included."""
    for devices in (1, 2):
        tiny(train_chars, tmp_path / str(devices), f"--steps 9 --devices {devices}")
    one, two = arrays(tmp_path / "1"), arrays(tmp_path / "2")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("package", "script", "install"),
    [
        ("statsmodels", train_forecast, r"pip install 'jaxrnn\[data\]'"),
        ("aeon", train_classify, r"pip install --no-deps aeon==1.6.0"),
        ("sklearn", train_classify, r"pip install 'jaxrnn\[data\]'"),
        ("sklearn", train_pixels, r"pip install 'jaxrnn\[data\]'"),
        ("torch", train_chars, "pip install 'torch'"),
        ("matplotlib", train_memory, r"pip install 'jaxrnn\[train\]'"),
        ("gymnax", train_policy, r"pip install 'jaxrnn\[rl\]'"),
        ("six", train_policy, r"pip install 'jaxrnn\[rl\]'"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(package, script, install, tmp_path, monkeypatch):
    for name in (package, "sktime"):
        monkeypatch.setitem(sys.modules, name, None)
    words = {("sklearn", train_classify): "--task digits", ("torch", train_chars): "--compare"}.get((package, script), "")
    with pytest.raises(training.Failure, match=install) as failure:
        tiny(script, tmp_path / "run", words)
    assert failure.value.code == 2
    assert not (tmp_path / "run").exists()


# Stopped, killed, several processes ------------------------------------------------------------------------------------


def environment(cache=None):
    """Of a script in a process of its own. One that may be killed in the middle of a write keeps what it compiles in `cache`."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | ({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})


def test_processes_compile_as_users_do():
    """What makes the tests themselves compile sooner (conftest.py) is not in the environment that they hand on."""
    assert "JAX_DISABLE_MOST_OPTIMIZATIONS" not in environment()
    assert "fusion_emitters" not in environment().get("XLA_FLAGS", "")


class Started:
    """A tiny run of a script in a process of its own, in the working directory `tmp_path`."""

    def __init__(self, tmp_path, script, words, more=None):
        self.out = tmp_path / words.split("--out ")[1].split()[0]
        command = [sys.executable, script.__file__, *TINY[script].split(), *words.split()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = environment(tmp_path / "cache") | (more or {})
        self.process = subprocess.Popen(command, cwd=tmp_path, env=env, text=True, **pipes)

    def wait_for_checkpoint(self):
        """Wait until a checkpoint is whole. `os.walk` goes on where a folder has been renamed meanwhile."""
        while not any("manifest.json" in files for _, _, files in os.walk(self.out)):
            assert self.process.poll() is None, self.end()
            time.sleep(0.005)

    def wait_for_progress(self, since, seconds=300):
        """Wait until the metrics are longer than they were: a checkpoint is being written."""
        deadline = time.monotonic() + seconds
        while size(self.out) <= since and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)

    def end(self, number=None):
        """(exit code, stdout, stderr), after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path):
    """Starts a script, see `Started`; no process outlives its test, however that ends."""
    runs = []

    def start(*args):
        runs.append(Started(tmp_path, *args))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.communicate()


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_ends_the_same(tmp_path, start):
    """A checkpoint every other step of a fast model: most of the time a save is on its way."""
    words = "--steps 50 --save-every 2 --out "
    assert start(train_chars, words + "whole").end()[0] == 0
    moments = random.Random(time.time_ns())
    (tmp_path / "killed").mkdir()
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        run = start(train_chars, words + "killed")
        run.wait_for_progress(since=size(tmp_path / "killed"))
        time.sleep(moments.uniform(0, 0.3))
        code, _, err = run.end(number)
        if number == signal.SIGINT and "stopped" in err:  # else it was at its end already
            assert code == 130
            assert "the same command goes on from" in err
            assert "stopping: saving after this step" in err or "stopped at once" in err  # after the last step
        else:
            assert code in (-number, 0)
    code, _, err = start(train_chars, words + "killed").end()
    assert code == 0, err
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert (tmp_path / "whole/LSTM-0/sample.txt").read_text() == (tmp_path / "killed/LSTM-0/sample.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (train_forecast, "--steps 60 --save-every 1"),
        (train_classify, "--epochs 30 --save-every 1"),
        (train_memory, "--steps 60 --save-every 1"),
        (train_pixels, "--epochs 40 --save-every 1"),
        (train_policy, "--steps 40 --save-every 1"),
    ],
)
def test_killed_inside_its_loop_and_started_again_a_script_ends_the_same(script, words, tmp_path, start, vowels):
    """By SIGKILL, after a checkpoint and before the end; what was compiled is kept, so that three processes compile once."""
    (vowels.parents[3] / "sktime").symlink_to("aeon")
    paths = {"PYTHONPATH": f"{vowels.parents[3]}{os.pathsep}{ROOT}"}
    killed = start(script, words + " --out killed", paths)
    killed.wait_for_checkpoint()
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.2))
    assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
    code, out, err = start(script, words + " --out killed", paths).end()
    assert code == 0, err
    assert "going on after step" in out or "trained already" in out
    assert start(script, words + " --out whole", paths).end()[0] == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_train_as_one_and_survive_the_loss_of_one(tmp_path, start):
    """One is killed: the other says so and ends. Both started again: the result is that of one process on one device."""
    words = "--steps 150 --save-every 10 --out "
    tiny(train_memory, tmp_path / "one", "--steps 150 --save-every 10")

    def pair():
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        several = f"--num-processes 2 --coordinator {address} --process-id "
        return [start(train_memory, f"{words}two {several}{k}") for k in range(2)]

    main, other = pair()
    main.wait_for_checkpoint()
    other.end(signal.SIGKILL)
    code, _, err = main.end()
    assert code == 1, err
    assert "another process of the run has died" in err
    assert "they go on from the last checkpoint" in err

    main, other = pair()
    code, out, err = main.end()
    assert (code, other.end()[0]) == (0, 0), err
    assert "going on after step" in out
    one, two = (arrays(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-6, err_msg=name)
