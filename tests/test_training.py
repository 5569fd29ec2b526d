"""What the training scripts share: flags, order of the data, folders, checkpoints, metrics, devices."""

import json
import os
import re
import resource
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import training
from jaxrnn.training import Failure, Order, Run, RunConfig, open_folder, option
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.config import differences, to_json


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    cell: Literal["LSTM", "GRU"] = option("LSTM", "Which cell.")
    tasks: tuple[Literal["adding", "copy"], ...] = option(("adding", "copy"), "Which tasks.")
    rate: float = option(0.5, "How fast.", above=0)
    widths: tuple[int, ...] = option((3, 4), "How wide.", least=1)
    limit: int | None = option(None, "How many: 100 %, if not given.", least=1)
    wide: bool = option(False, "Whether wide.")
    out: str = option("runs/test", "Where.", saved=False)


@pytest.fixture
def config(tmp_path):
    return Config(out=str(tmp_path / "run"))


@pytest.fixture
def folder(config):
    with open_folder(config) as folder:
        yield folder


# Flags -----------------------------------------------------------------------------------------------------------------


def test_flags_make_a_configuration_of_the_right_types():
    words = ["--cell", "GRU", "--rate", "2", "--widths", "5", "6", "7", "--limit", "8", "--wide", "--save-every", "9"]
    read = training.parse(Config, words, description="Test.")
    assert read == Config(cell="GRU", rate=2.0, widths=(5, 6, 7), limit=8, wide=True, save_every=9)
    assert type(read.rate) is float
    assert training.parse(Config, [], description="Test.") == Config()
    assert training.parse(Config, ["--cell", "gru", "--tasks", "Copy"], description="Test.") == Config(cell="GRU", tasks=("copy",))


def test_flags_that_were_not_given_may_come_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "there:99")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    read = training.parse(Config, [], description="Test.")
    assert (read.coordinator, read.num_processes, read.process_id) == ("there:99", 3, 1)
    read = training.parse(Config, ["--coordinator", "here:88", "--process-id", "2"], description="Test.")
    assert (read.coordinator, read.num_processes, read.process_id) == ("here:88", 3, 2)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    with pytest.raises(SystemExit):
        training.parse(Config, [], description="Test.")
    assert "argument --num-processes: should be a whole number of at least 1, got 'many'" in capsys.readouterr().err


def test_help_is_in_sentences_with_choices_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        training.parse(Config, ["--help"], description="Test.")
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert " --cell {LSTM,GRU} Which cell. Default: LSTM. --" in said
    assert " --tasks NAME [NAME ...] Which tasks. Any of adding, copy. Default: all. --" in said
    assert " --widths N [N ...] How wide. Default: 3 4. --" in said
    assert " --limit N How many: 100 %, if not given. --" in said
    assert " --wide Whether wide. --" in said
    assert " --process-id N Which of them this is, from 0. Default: $JAX_PROCESS_ID, or 0. --" in said
    assert " Address of process 0, if there are several. Default: $JAX_COORDINATOR_ADDRESS. --" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cell RNN", r"argument --cell: invalid choice: 'RNN' \(choose from '?LSTM'?, '?GRU'?\)"),
        ("--rate 0", r"argument --rate: should be a number above 0, got '0'"),
        ("--rate nan", r"argument --rate: should be a number above 0, got 'nan'"),
        ("--widths 3 -1", r"argument --widths: should be a whole number of at least 1, got '-1'"),
        ("--limit 2.5", r"argument --limit: should be a whole number of at least 1, got '2.5'"),
        ("--save-every 0", r"argument --save-every: should be a whole number of at least 1, got '0'"),
        ("--widt 3", r"unrecognized arguments: --widt 3"),
        ("--widths", r"argument --widths: expected at least one argument"),
    ],
)
def test_a_wrong_flag_is_named_with_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        training.parse(Config, words.split(), description="Test.")
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_saved_configurations_leave_out_what_does_not_change_the_result():
    config = Config(rate=0.25, out="elsewhere", process_id=3, tensorboard=True)
    assert differences(to_json(config), to_json(Config(rate=0.25))) == []
    assert differences(to_json(config), to_json(replace(config, rate=2.0, devices=2))) == [
        "devices: 1 before, 2 now",
        "rate: 0.25 before, 2.0 now",
    ]
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 before, (no such field) now", "b: (no such field) before, 1 now"]


# Order of the data -----------------------------------------------------------------------------------------------------

LENGTHS = [3, 9, 4, 8, 3, 12, 12, 1, 5, 6, 7, 7, 2]


@pytest.mark.parametrize("buckets", [1, 3, 50])
def test_an_epoch_holds_every_row_in_few_shapes(buckets):
    order = Order(LENGTHS, 4, seed=1, buckets=buckets)
    assert len(order.limits) <= buckets
    assert order.limits[-1] == max(LENGTHS)
    seen, padded = [], 0
    for _ in range(order.batches):
        rows, limit = order.next()
        assert rows.shape == (4,)
        assert limit in order.limits
        assert max(LENGTHS[r] for r in rows) <= limit
        seen += list(rows)
        padded += sum(limit - LENGTHS[r] for r in rows)
        real = sum(LENGTHS[r] for r in seen)
    assert order.epoch == 0
    assert set(seen) == set(range(len(LENGTHS)))
    assert len(seen) - len(LENGTHS) < 4
    assert order.waste == pytest.approx(padded / (padded + real))
    if buckets == 3:
        assert order.waste < Order(LENGTHS, 4, seed=1).waste


def test_an_order_goes_on_where_it_was_left():
    def take(order, count):
        return [(rows.tolist(), limit) for rows, limit in (order.next() for _ in range(count))]

    whole = take(Order(LENGTHS, 4, seed=5, buckets=3), 11)
    for done in range(11):
        order = Order(LENGTHS, 4, seed=5, buckets=3)
        take(order, done)
        state = order.state
        again = Order(LENGTHS, 4, seed=5, buckets=3)
        again.state = state
        assert take(again, 11 - done) == whole[done:]
    assert take(Order(LENGTHS, 4, seed=6, buckets=3), 11) != whole
    assert whole[:4] != whole[4:8]  # the next epoch is shuffled anew


def epoch(order):
    return [order.next() for _ in range(order.batches)]


def test_batches_come_in_no_order_of_length():
    """Short and long buckets at the beginning of an epoch as at its end."""
    lengths = np.random.default_rng(0).integers(1, 40, 240)
    limits = np.array([[limit for _, limit in epoch(Order(lengths, 8, seed=seed, buckets=5))] for seed in range(30)])
    place = np.arange(limits.shape[1])
    assert abs(np.mean([np.corrcoef(place, row)[0, 1] for row in limits])) < 5 / (30 * len(place)) ** 0.5
    assert limits[:, 0].min() < limits[:, 0].max()
    assert limits[:, -1].min() < limits[:, -1].max()


@pytest.mark.parametrize("buckets", [1, 3])
def test_epochs_and_seeds_are_all_shuffled_apart(buckets):
    """No epoch of a seed is an epoch of another one, nor the same rows put into batches alike."""
    seen = []
    for seed in range(4):
        order = Order(np.arange(1, 25), 4, seed=seed, buckets=buckets)
        seen += [epoch(order) for _ in range(4)]
    as_dealt = {str([(rows.tolist(), limit) for rows, limit in one]) for one in seen}
    as_sets = {str(sorted(sorted(rows.tolist()) for rows, _ in one)) for one in seen}
    assert len(as_dealt) == len(as_sets) == len(seen) == 16


def test_every_row_may_stand_anywhere_in_an_epoch():
    """Over many seeds the first place of an epoch is taken by each row about as often."""
    first = [int(Order([5] * 6, 2, seed=seed).next()[0][0]) for seed in range(600)]
    counts = np.bincount(first, minlength=6)
    assert np.abs(counts - 100).max() < 5 * 100**0.5


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_padding_keeps_values_dtype_and_other_axes(dtype, shape):
    rng = np.random.default_rng(1)
    sequences = [rng.integers(1, 2 if dtype == np.bool_ else 200, (n, *shape)).astype(dtype) for n in (3, 0, 5, 1)]
    padded = training.pad(sequences, 6)
    assert padded.dtype == dtype
    assert padded.shape == (4, 6, *shape)
    for row, sequence in zip(padded, sequences, strict=True):
        np.testing.assert_array_equal(row[: len(sequence)], sequence)
        assert not row[len(sequence) :].any()


def test_more_rows_in_a_batch_than_there_are():
    rows, _ = Order([2, 3], 5, seed=0).next()
    assert rows.shape == (5,)
    assert set(rows) == {0, 1}


# Folder ----------------------------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder_are_refused(config, folder):
    with pytest.raises(Failure, match=rf"another run is in .*run: process {os.getpid()}") as failure, open_folder(config):
        pass
    assert failure.value.code == 2


def test_a_folder_of_another_configuration_is_refused_with_the_differences(config):
    for _ in range(2):  # the same goes in and out
        with open_folder(config):
            pass
    before = sorted(os.listdir(config.out))
    other = replace(config, rate=0.75, widths=(3,))
    lines = r"another configuration:\n    rate: 0.5 before, 0.75 now\n    widths: \[3, 4\] before, \[3\] now\nName another"
    with pytest.raises(Failure, match=lines) as failure, open_folder(other):
        pass
    assert failure.value.code == 2
    assert sorted(os.listdir(config.out)) == before
    with open_folder(config):
        pass


def test_a_damaged_configuration_is_named(config):
    with open_folder(config):
        pass
    for text in ('{"rate": 0.5', "[]"):
        (Path(config.out) / "config.json").write_text(text)
        with pytest.raises(Failure, match=r"config.json is damaged: name another folder with --out"), open_folder(config):
            pass


def test_a_folder_with_something_else_is_refused_and_left_alone(config):
    path = Path(config.out)
    path.mkdir()
    (path / "thesis.tex").write_text("important")
    with pytest.raises(Failure, match=r"holds something else \(thesis.tex\): name another folder with --out"), open_folder(config):
        pass
    assert (path / "thesis.tex").read_text() == "important"
    assert not (path / "config.json").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"cannot write to the folder .*file/run: Not a directory"):
        training.make_folder(tmp_path / "file" / "run")
    with pytest.raises(Failure, match=r"/file is a file: name a folder with --out") as failure:
        training.make_folder(tmp_path / "file")
    assert failure.value.code == 2


@pytest.fixture
def as_someone_else():
    """Not as root, who may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("inside", ["", "new/folder"])
def test_a_folder_that_may_not_be_written_is_named(inside, tmp_path, request):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    request.getfixturevalue("as_someone_else")
    with pytest.raises(Failure, match=r"cannot write to the folder .*locked.*: Permission denied") as failure:
        training.make_folder(locked / inside)
    assert failure.value.code == 2


@pytest.mark.parametrize(("package", "extra"), [("orbax", "train"), ("tensorboardX", "tensorboard")])
def test_a_package_for_the_folder_is_missed_before_it_is_made(package, extra, config, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"the package {package} is missing: pip install 'jaxrnn\[{extra}\]'"
    with pytest.raises(Failure, match=message), open_folder(replace(config, tensorboard=True)):
        pass
    assert not Path(config.out).exists()


# Checkpoints and metrics -----------------------------------------------------------------------------------------------


def start():
    """A toy that learns: parameters, a key, an order, and its step."""
    key = jax.random.key_data(jax.random.key(3))
    return {"w": jnp.arange(6.0).reshape(2, 3), "key": key, "order": Order(LENGTHS, 4, seed=2).state}


def go(run, last, *, bad=None, value=jnp.inf, name="loss", at=lambda step: None):
    """Train the toy; `at` is called after each step is logged. What is logged as `name` in step `bad` is `value`."""
    order = Order(LENGTHS, 4, seed=2)
    now = run.restore(start())
    order.state = now["order"]
    for step in run.steps(last):
        rows, _ = order.next()
        noise = jax.random.normal(jax.random.wrap_key_data(now["key"]), (2, 3))
        now["w"] = now["w"] * 0.9 + noise * rows.sum().astype(np.float32)
        now["key"] = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(now["key"]))[0])
        now["order"] = order.state
        metrics = {"loss": now["w"].mean(), "rows": rows.sum()}
        run.log(step, **(metrics | ({name: value} if step == bad else {})))
        at(step)
        run.checkpoint(step, now)
    return now


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(folder):
    def interrupt(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    whole = go(Run(folder, "whole", save_every=4), 17)
    with pytest.raises(Failure, match="stopped after step 7: the same command goes on from there") as stop:
        go(Run(folder, "parts", save_every=4), 17, at=interrupt)
    assert stop.value.code == 130
    folder.stop_code = None

    def die(step):
        if step == 15:
            raise ZeroDivisionError

    parts = Run(folder, "parts", save_every=4)
    with pytest.raises(ZeroDivisionError):
        go(parts, 17, at=die)
    parts._flush()  # lines that were written after the last checkpoint
    with (parts.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')  # and one that was torn
    last = Run(folder, "parts", save_every=4)
    assert same(go(last, 17), whole)
    assert last.step == 12
    metrics = [(folder.path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert [json.loads(line)["step"] for line in metrics[0].splitlines()] == list(range(1, 18))
    assert same(go(Run(folder, "whole", save_every=4), 17), whole)  # a run that has ended does nothing


def test_a_second_signal_stops_at_once(folder, capfd):
    before = signal.getsignal(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert folder.stop_code == 143
    assert "saving after this step" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.float32(np.nan), jnp.array(np.nan)], ids=repr)
@pytest.mark.parametrize("name", ["loss", "rows"])
def test_a_number_that_is_not_finite_stops_the_run(folder, value, name):
    """Whichever kind, and whichever of the metrics it is."""
    with pytest.raises(
        Failure, match=rf"toy: {name} is {float(value)} at step 6. The last good checkpoint is of step 4, in .*toy/checkpoints/4\."
    ):
        go(Run(folder, "toy", save_every=4), 9, bad=6, value=value, name=name)
    steps = [json.loads(line)["step"] for line in (folder.path / "toy/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 6))


def test_what_was_logged_is_what_is_read_again(folder):
    """Each number under its name at its step, in the file and in `metrics`, some of them at some of the steps only."""
    run = Run(folder, "toy", save_every=100)
    run.restore(start())
    want = {"loss": {}, "accuracy": {}}
    for step in run.steps(7):
        metrics = {"loss": jnp.float32(step) / 8} | ({"accuracy": np.float64(step + 0.5)} if step % 3 == 0 else {})
        for name, value in metrics.items():
            want[name][step] = float(value)
        run.log(step, **metrics)
    assert [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": step} | {name: at[step] for name, at in want.items() if step in at} for step in range(1, 8)
    ]
    read = run.metrics()
    assert {name: dict(zip(steps.tolist(), values.tolist(), strict=True)) for name, (steps, values) in read.items()} == want


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "not sealed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(folder, damage, capsys):
    whole = go(Run(folder, "toy", save_every=4), 14)
    newest = folder.path / "toy/checkpoints/14"
    largest = max((p for p in (newest / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "cut":
        largest.write_bytes(largest.read_bytes()[:-7])
    elif damage == "changed":
        largest.write_bytes(bytes([largest.read_bytes()[0] ^ 1]) + largest.read_bytes()[1:])
    elif damage == "gone":
        largest.unlink()
    else:
        (newest / "seal.json").unlink()
    run = Run(folder, "toy", save_every=4)
    said = "was not finished" if damage == "not sealed" else f"is damaged ({largest.relative_to(newest)})"
    message = capsys.readouterr().err
    assert "the checkpoint of step 14 in" in message
    assert "using the one before" in message
    assert said in message
    assert same(go(run, 14), whole)
    assert run.step == 12


def test_old_checkpoints_are_taken_away(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 5, 9):
        checkpoints.save(step, {"a": np.arange(step)}, {"fact": step})
    assert checkpoints.steps == [5, 9]
    assert Checkpoints(tmp_path / "c").restore({"a": np.arange(9)})[2] == {"fact": 9}


def test_a_checkpoint_of_another_model_or_a_shorter_metrics_file_is_refused(folder):
    go(Run(folder, "toy", save_every=4), 6)
    run = Run(folder, "toy", save_every=4)
    changed = r"step 6 in .* is of another model or other data:\n    b: float32\[3\] before, float32\[4\] now"
    checkpoints = Checkpoints(folder.path / "other")
    checkpoints.save(6, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, {})
    with pytest.raises(Failure, match=changed):
        checkpoints.restore({"a": np.zeros(2, np.float32), "b": np.zeros(4, np.float32)})
    metrics = folder.path / "toy/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-1])
    with pytest.raises(Failure, match=r"metrics.jsonl was \d+ bytes long at the checkpoint, and is \d+ now"):
        run.restore(start())


def test_a_full_disk_is_said_and_the_last_checkpoint_kept(folder, monkeypatch):
    """Too little is free to begin with; or it ends while writing: files may not grow beyond 2 kB."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    big = {"w": rng.standard_normal(3)}
    run = Run(folder, "toy", save_every=1)
    run.last = 2
    run.checkpoint(1, big)
    big["w"] = rng.standard_normal(4000)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_070_000))
        with pytest.raises(
            Failure, match=r"(?s)cannot save step 2 in .*: 1.1 MB are needed, 1.1 MB are free\nThe last .* step 1, in"
        ):
            run.checkpoint(2, big)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        with pytest.raises(
            Failure, match=r"(?s)cannot save step 2 in .*: File too large\nThe last good checkpoint is of step 1, in"
        ):
            run.checkpoint(2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [p.name for p in (folder.path / "toy/checkpoints").iterdir()] == ["1"]
    assert Checkpoints(folder.path / "toy/checkpoints").steps == [1]


def test_of_a_figure_that_cannot_be_saved_nothing_is_left(tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "whole.png").write_text("from before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        with pytest.raises(Failure, match=r"cannot write .*whole.png: File too large"), training.figure(tmp_path / "whole.png"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [p.name for p in tmp_path.iterdir()] == ["whole.png"]
    assert (tmp_path / "whole.png").read_text() == "from before"


def test_tensorboard_gets_the_same_numbers(folder):
    """Each value under its name at its step."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    run = Run(folder, "toy", save_every=4, tensorboard=True)
    go(run, 3)
    folder.at_exit.close()  # its writer works in a thread of its own
    (events,) = (folder.path / "toy/tensorboard").iterdir()
    data, got = events.read_bytes(), {}
    while data:  # records: a length of 8 bytes, its checksum of 4, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        for value in Event.FromString(data[12 : 12 + length]).summary.value:
            got.setdefault(value.tag, []).append((Event.FromString(data[12 : 12 + length]).step, value.simple_value))
        data = data[16 + length :]
    assert set(got) == {"loss", "rows"}
    for name, (steps, values) in run.metrics().items():
        assert [step for step, _ in got[name]] == steps.tolist() == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in got[name]], values, rtol=1e-6)
        assert np.abs(values).min() > 0


# Devices ---------------------------------------------------------------------------------------------------------------


def mesh(devices):
    return training.start(Config(devices=devices), batch_size=4)


@pytest.mark.parametrize("carried", [False, True])
def test_two_devices_give_the_gradient_of_one_with_one_exchange(carried):
    """So many steps that the engine cuts time into segments: the exchange is not one for each, as a sharded `jit` has it."""
    model = jaxrnn.models.GRUModel(3, 64, 2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in [(4, 700, 3), (4, 2)])
    h = rng.standard_normal((1, 4, 64)).astype(np.float32)

    def loss(params, *batch):
        model = nnx.merge(graph, params)
        if not carried:
            x, y = batch
            return jnp.mean((model(x) - y) ** 2)
        h, x, y = batch
        output, h = model.rnn(x, h_0=h)
        return jnp.mean((model.fc(output[:, -1]) - y) ** 2), h

    results, hlo = [], ""
    for devices in (1, 2):
        where = mesh(devices)
        step = jax.jit(training.value_and_grad(loss, where, carry=P(None, training.ROWS) if carried else None))
        batch = (*(training.place(where, (h,), P(None, training.ROWS)) if carried else ()), *training.deal(where, x, y))
        params = training.place(where, params)
        results.append(jax.device_get(step(params, *batch)))
        hlo = step.lower(params, *batch).compile().as_text()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *results)
    computations = re.split(r"\n(?=(?:ENTRY )?%?\S+ \()", hlo)
    exchanges = {c.split(" ")[0]: len(re.findall(r" all-reduce(?:-start)?\(", c)) for c in computations if " all-reduce" in c}
    assert exchanges == {"ENTRY": 1}


@pytest.mark.parametrize(
    ("flags", "batch_size", "message"),
    [
        ({"devices": 2}, 5, "the batch size should be a multiple of the 2 devices, got 5"),
        ({"devices": 64}, 64, r"--devices 64: there are 2 \(cpu\)"),
        ({"num_processes": 2, "process_id": 2}, 4, "--process-id should be below --num-processes 2, got 2"),
        ({"num_processes": 2}, 4, "several processes need --coordinator HOST:PORT, or JAX_COORDINATOR_ADDRESS: the address"),
    ],
)
def test_devices_and_processes_that_do_not_fit_are_named(flags, batch_size, message, monkeypatch):
    monkeypatch.setattr(training.console, "speaking", True)
    with pytest.raises(Failure, match=message) as failure:
        training.start(Config(**flags), batch_size=batch_size)
    assert failure.value.code == 2


# Console ---------------------------------------------------------------------------------------------------------------


def test_progress_is_for_terminals(monkeypatch, capsys):
    steps = range(3)
    assert training.progress(steps, "name") is steps
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(training.progress(steps, "name")) == [0, 1, 2]
    assert "name" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_install():
    with pytest.raises(Failure, match=r"the package nonesuch is missing: pip install 'jaxrnn\[train\]'") as failure:
        training.require("nonesuch", "jaxrnn[train]")
    assert failure.value.code == 2


def test_what_stops_a_script_becomes_its_exit_code(capsys):
    def stop(error):
        def main():
            raise error

        return training.exit_code(main)

    assert stop(Failure("the reason", code=7)) == 7
    assert "error: the reason\n" in capsys.readouterr().err
    assert stop(Failure("stopped after step 3", code=130)) == 130
    assert "error" not in capsys.readouterr().err
    assert stop(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        stop(ZeroDivisionError())
    assert training.exit_code(lambda: None) == 0


# Who may know whom -----------------------------------------------------------------------------------------------------

MAY_IMPORT = {
    "config": set(),
    "data": set(),
    "console": {"jax"},
    "plots": {"console"},
    "devices": {"jax", "config", "console"},
    "folder": {"config", "console", "devices"},
    "checkpoints": {"config", "console", "folder"},
    "run": {"jax", "devices", "checkpoints", "console", "folder"},
}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(name):
    folder = Path(training.__file__).parent
    assert {p.stem for p in folder.glob("*.py")} == {"__init__", *MAY_IMPORT}
    text = (folder / f"{name}.py").read_text()
    found = set(re.findall(r"^ *from jaxrnn\.training\.(\w+) import", text, re.MULTILINE))
    for names in re.findall(r"^ *from jaxrnn\.training import (.*)", text, re.MULTILINE):
        found |= set(names.split(", "))
    assert found | ({"jax"} if re.search(r"^(import|from) jax\b", text, re.MULTILINE) else set()) == MAY_IMPORT[name]
