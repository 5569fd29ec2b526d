"""What the training scripts share: flags, order of the data, folders, checkpoints, metrics, devices."""

import ast
import importlib.util
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import training
from flax import nnx, traverse_util
from training import BatchSampler, Failure, Run, RunConfig, open_folder, option
from training.checkpoints import Checkpoints
from training.config import differences, to_json

import jaxrnn
from jaxrnn import _checkpoints
from jaxrnn.models import LSTMModel
from jaxrnn.runs import load_run


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    cell: Literal["LSTM", "GRU"] = option("LSTM", "Which cell.")
    tasks: tuple[Literal["adding", "copy"], ...] = option(("adding", "copy"), "Which tasks.")
    rate: float = option(0.5, "How fast.", above=0)
    widths: tuple[int, ...] = option((3, 4), "How wide.", least=1)
    limit: int | None = option(None, "How many: 100 %, if not given.", least=1)
    steps: int = option(9, "How long.", least=1, amount=True)
    seed: tuple[int, ...] = option((0,), "Which runs.", least=0, each=True)
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
    assert " --process-id N Number of this process, from 0. Default: $JAX_PROCESS_ID, or 0. --" in said
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


def test_a_value_that_is_a_run_of_its_own_is_run_once():
    assert training.parse(Config, ["--seed", "3", "1", "3", "--widths", "4", "4"], description="Test.") == Config(
        seed=(3, 1), widths=(4, 4)
    )


def test_saved_configurations_leave_out_what_does_not_change_the_result():
    config = Config(rate=0.25, out="elsewhere", process_id=3, tensorboard=True, save_every=7)
    assert differences(to_json(config), to_json(Config(rate=0.25))) == []
    assert differences(to_json(config), to_json(replace(config, rate=2.0, devices=2))) == [
        "devices: 1 before, 2 now",
        "rate: 0.25 before, 2.0 now",
    ]
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 before, (no such field) now", "b: (no such field) before, 1 now"]


# Batches --------------------------------------------------------------------------------------------------------------

LENGTHS = [3, 9, 4, 8, 3, 12, 12, 1, 5, 6, 7, 7, 2]


@pytest.mark.parametrize("buckets", [1, 3, 50])
def test_an_epoch_holds_every_row_in_few_shapes(buckets):
    sampler = BatchSampler(LENGTHS, 4, seed=1, buckets=buckets)
    assert len(sampler.limits) <= buckets
    assert sampler.limits[-1] == max(LENGTHS)
    seen, padded = [], 0
    for _ in range(sampler.batches):
        rows, limit = sampler.next()
        assert rows.shape == (4,)
        assert limit in sampler.limits
        assert max(LENGTHS[r] for r in rows) <= limit
        seen += list(rows)
        padded += sum(limit - LENGTHS[r] for r in rows)
        real = sum(LENGTHS[r] for r in seen)
    assert sampler.epoch == 0
    assert set(seen) == set(range(len(LENGTHS)))
    assert len(seen) - len(LENGTHS) < 4
    assert sampler.padding_fraction == pytest.approx(padded / (padded + real))
    if buckets == 3:
        assert sampler.padding_fraction < BatchSampler(LENGTHS, 4, seed=1).padding_fraction


def test_a_sampler_goes_on_where_it_was_left():
    def take(sampler, count):
        return [(rows.tolist(), limit) for rows, limit in (sampler.next() for _ in range(count))]

    whole = take(BatchSampler(LENGTHS, 4, seed=5, buckets=3), 11)
    for done in range(11):
        sampler = BatchSampler(LENGTHS, 4, seed=5, buckets=3)
        take(sampler, done)
        state = sampler.state
        again = BatchSampler(LENGTHS, 4, seed=5, buckets=3)
        again.state = state
        assert take(again, 11 - done) == whole[done:]
    assert take(BatchSampler(LENGTHS, 4, seed=6, buckets=3), 11) != whole
    assert whole[:4] != whole[4:8]  # the next epoch is shuffled anew


def epoch(sampler):
    return [sampler.next() for _ in range(sampler.batches)]


def test_batches_come_in_no_order_of_length():
    """Short and long buckets at the beginning of an epoch as at its end."""
    lengths = np.random.default_rng(0).integers(1, 40, 240)
    limits = np.array([[limit for _, limit in epoch(BatchSampler(lengths, 8, seed=seed, buckets=5))] for seed in range(30)])
    place = np.arange(limits.shape[1])
    assert abs(np.mean([np.corrcoef(place, row)[0, 1] for row in limits])) < 5 / (30 * len(place)) ** 0.5
    assert limits[:, 0].min() < limits[:, 0].max()
    assert limits[:, -1].min() < limits[:, -1].max()


@pytest.mark.parametrize("buckets", [1, 3])
def test_epochs_and_seeds_are_all_shuffled_apart(buckets):
    """No epoch of a seed is an epoch of another one, nor the same rows put into batches alike."""
    seen = []
    for seed in range(4):
        sampler = BatchSampler(np.arange(1, 25), 4, seed=seed, buckets=buckets)
        seen += [epoch(sampler) for _ in range(4)]
    as_dealt = {str([(rows.tolist(), limit) for rows, limit in one]) for one in seen}
    as_sets = {str(sorted(sorted(rows.tolist()) for rows, _ in one)) for one in seen}
    assert len(as_dealt) == len(as_sets) == len(seen) == 16


def test_every_row_may_stand_anywhere_in_an_epoch():
    """Over many seeds the first place of an epoch is taken by each row about as often."""
    first = [int(BatchSampler([5] * 6, 2, seed=seed).next()[0][0]) for seed in range(600)]
    counts = np.bincount(first, minlength=6)
    assert np.abs(counts - 100).max() < 5 * 100**0.5


def test_more_rows_in_a_batch_than_there_are():
    rows, _ = BatchSampler([2, 3], 5, seed=0).next()
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


def test_a_longer_run_and_other_runs_are_no_other_configuration(config):
    with open_folder(config):
        pass
    longer = replace(config, steps=11, seed=(0, 3), save_every=3)
    with open_folder(longer) as folder:
        assert folder.config["steps"] == 11
    assert json.loads((Path(config.out) / "config.json").read_text()) == to_json(longer)


def outside(tmp_path):
    """A file of somebody else's, and a folder."""
    (tmp_path / "theirs").mkdir(exist_ok=True)
    (tmp_path / "theirs/thesis.tex").write_text("important")
    return tmp_path / "theirs"


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "named pipe"])
@pytest.mark.parametrize("name", ["config.json", ".lock", ".process"])
def test_what_lies_in_the_place_of_a_file_is_named_and_not_followed(name, kind, config, tmp_path):
    with open_folder(config):
        pass
    place, theirs = Path(config.out) / name, outside(tmp_path)
    place.unlink()
    put(kind, place, theirs / "thesis.tex")
    with (
        pytest.raises(
            Failure, match=rf"{re.escape(name)} (is|should be) .*take it away, or name another folder with --out"
        ) as failure,
        open_folder(config),
    ):
        pass
    assert failure.value.code == 2
    assert "\n" not in str(failure.value)
    assert (theirs / "thesis.tex").read_text() == "important"
    assert sorted(p.name for p in theirs.iterdir()) == ["thesis.tex"]


def put(kind, place, target):
    """Something else in the place of a file or a folder."""
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("x")
    elif kind == "named pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(target if kind == "link" else target.with_name("nowhere"))


@pytest.mark.parametrize("text", ['{"rate": 0.5', "[]", "", "[" * 10**5, b"\xff\xfe\x00"], ids=range(5))
def test_a_damaged_configuration_is_named(text, config):
    with open_folder(config):
        pass
    (Path(config.out) / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = r"config.json is damaged: put a copy of it back, or name another folder with --out"
    with pytest.raises(Failure, match=message), open_folder(config):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link"])
def test_a_file_that_is_written_whole_replaces_a_link(kind, tmp_path):
    theirs = outside(tmp_path) / "thesis.tex"
    for name in ("a.txt", "a.txt.draft", ".a.png"):
        put(kind, tmp_path / name, theirs)
    training.write_whole(tmp_path / "a.txt", "äöü\n")
    with training.figure(tmp_path / "a.png"):
        pass
    assert (tmp_path / "a.txt").read_bytes() == "äöü\n".encode()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a.txt").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.txt", "theirs"]
    assert theirs.read_text() == "important"


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
    with pytest.raises(Failure, match=r"cannot write to the folder .*a\\x00b': .*embedded null"):
        training.make_folder(tmp_path / "a\0b")
    with pytest.raises(Failure, match=r"cannot write to the folder .*aaa: File name too long"):
        training.make_folder(tmp_path / ("a" * 300))


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


@pytest.mark.parametrize(("package", "extra"), [("orbax", "train"), ("filelock", "train"), ("tensorboardX", "tensorboard")])
def test_a_package_for_the_folder_is_missed_before_it_is_made(package, extra, config, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"the package {package} is missing: pip install 'jaxrnn\[{extra}\]'"
    with pytest.raises(Failure, match=message), open_folder(replace(config, tensorboard=True)):
        pass
    assert not Path(config.out).exists()


# Checkpoints and metrics -----------------------------------------------------------------------------------------------


@cache
def model(hidden_size=3):
    return LSTMModel(2, hidden_size, 1, rngs=nnx.Rngs(0))


def make(folder, name="toy", save_every=4, **options):
    return Run(folder, name, save_every=save_every, **({"model": model()} | options))


def start():
    """A toy that learns: parameters, a key, a sampler, and its step."""
    key = jax.random.key_data(jax.random.key(3))
    return {"w": jnp.arange(6.0).reshape(2, 3), "key": key, "sampler": BatchSampler(LENGTHS, 4, seed=2).state}


def go(run, last, *, bad=None, value=jnp.inf, name="loss", at=lambda step: None):
    """Train the toy; `at` is called after each step is logged. What is logged as `name` in step `bad` is `value`."""
    sampler = BatchSampler(LENGTHS, 4, seed=2)
    w, key, sampler.state = run.restore(**start())
    for step in run.steps(last):
        rows, _ = sampler.next()
        noise = jax.random.normal(jax.random.wrap_key_data(key), (2, 3))
        w = w * 0.9 + noise * rows.sum().astype(np.float32)
        key = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(key))[0])
        metrics = {"loss": w.mean(), "rows": rows.sum()}
        run.log(step, **(metrics | ({name: value} if step == bad else {})))
        at(step)
        run.checkpoint(step, w=w, key=key, sampler=sampler.state)
    return w, key, sampler.state


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(folder):
    def interrupt(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    whole = go(make(folder, "whole"), 17)
    with pytest.raises(Failure, match="stopped after step 7: the same command goes on from there") as stop:
        go(make(folder, "parts"), 17, at=interrupt)
    assert stop.value.code == 130
    folder.stop_code = None

    def die(step):
        if step == 15:
            raise ZeroDivisionError

    parts = make(folder, "parts")
    with pytest.raises(ZeroDivisionError):
        go(parts, 17, at=die)
    parts._flush()  # lines that were written after the last checkpoint
    with (parts.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')  # and one that was torn
    last = make(folder, "parts")
    assert same(go(last, 17), whole)
    assert last.step == 12
    metrics = [(folder.path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert [json.loads(line)["step"] for line in metrics[0].splitlines()] == list(range(1, 18))
    assert same(go(make(folder, "whole"), 17), whole)  # a run that has ended does nothing


def test_a_second_signal_stops_at_once(folder, capfd):
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(step):
        os.kill(os.getpid(), signal.SIGTERM)
        assert folder.stop_code == 143
        assert "saving after this step" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        go(make(folder), 9, at=interrupt)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("when", ["before", "between", "while the last step is saved", "after"])
def test_a_signal_where_no_step_follows_stops_at_once(when, number, code, config, capfd, monkeypatch):
    """Nothing would save after a step there: what a script makes of its runs may take minutes."""
    stop, save = lambda: os.kill(os.getpid(), number), Checkpoints.save

    def save_and_stop(*arguments):
        save(*arguments)
        stop()

    def script():
        with open_folder(config) as folder:
            if when == "before":
                stop()
            if when == "while the last step is saved":
                monkeypatch.setattr(Checkpoints, "save", save_and_stop)
            go(make(folder, save_every=9), 4)
            if when == "between":
                stop()
            go(make(folder, "another"), 4)
            stop()

    with pytest.raises(Failure, match="stopped at once: the same command goes on from the last checkpoint") as failure:
        script()
    assert failure.value.code == code
    assert ("saving after this step" in capfd.readouterr().err) == (when == "while the last step is saved")
    assert (Path(config.out) / "toy").exists() == (when != "before")
    assert (Path(config.out) / "another").exists() == (when == "after")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.float32(np.nan), jnp.array(np.nan)], ids=repr)
@pytest.mark.parametrize("name", ["loss", "rows"])
def test_a_number_that_is_not_finite_stops_the_run(folder, value, name):
    """Whichever kind, and whichever of the metrics it is."""
    with pytest.raises(
        Failure, match=rf"toy: {name} is {float(value)} at step 6. The last good checkpoint is of step 4, in .*toy/checkpoints/4\."
    ):
        go(make(folder), 9, bad=6, value=value, name=name)
    steps = [json.loads(line)["step"] for line in (folder.path / "toy/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 6))


def test_what_was_logged_is_what_is_read_again(folder):
    """Each number under its name at its step, in the file and in `metrics`, some of them at some of the steps only."""
    run = make(folder, save_every=100)
    run.restore(**start())
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


def largest(checkpoint):
    return max((p for p in (checkpoint / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "a link", "not sealed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(folder, damage, capsys):
    whole = go(make(folder), 14)
    newest = folder.path / "toy/checkpoints/14"
    file = largest(newest)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "changed":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif damage == "gone":
        file.unlink()
    elif damage == "a link":
        file.rename(folder.path / "moved")
        file.symlink_to(folder.path / "moved")
    else:
        (newest / "manifest.json").unlink()
    run = make(folder)
    said = "was not finished" if damage == "not sealed" else f"is damaged ({file.relative_to(newest)})"
    message = capsys.readouterr().err
    assert "the checkpoint of step 14 in" in message
    assert f"{said}: it is set aside, and the one of step 12 used\n" in message
    assert same(go(run, 14), whole)
    assert run.step == 12
    assert (folder.path / "toy/checkpoints-set-aside/14/_CHECKPOINT_METADATA").exists()


@pytest.mark.parametrize("damage", ["gone", "damaged", "not sealed"])
def test_a_run_that_has_lost_its_checkpoints_begins_anew_aloud_and_keeps_what_was_there(folder, damage, capsys):
    whole = go(make(folder), 14)
    checkpoints, aside = folder.path / "toy/checkpoints", folder.path / "toy/checkpoints-set-aside"
    metrics = (folder.path / "toy/metrics.jsonl").read_bytes()
    if damage == "gone":
        shutil.rmtree(checkpoints)
    for step in (8, 12, 14) if damage != "gone" else ():
        file = checkpoints / f"{step}/manifest.json"
        file.unlink() if damage == "not sealed" else file.write_text("{")
    run = make(folder)
    assert same(go(run, 14), whole)
    said = capsys.readouterr().err
    anew = f"toy: there is no checkpoint to go on from: beginning anew; the metrics from before are in {aside / 'metrics.jsonl'}\n"
    assert anew in said
    assert len(re.findall(r"the checkpoint of step \d+ in .*: it is set aside\n", said)) == (0 if damage == "gone" else 3)
    assert " used\n" not in said
    assert (aside / "metrics.jsonl").read_bytes() == (folder.path / "toy/metrics.jsonl").read_bytes() == metrics
    assert len(list(aside.glob("*/_CHECKPOINT_METADATA"))) == (0 if damage == "gone" else 3)


@pytest.mark.parametrize("logged", [4, 6])
def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_deletes_nothing(logged, folder, capsys):
    """Nor one that had ended by then, or saved more often, and has lost its checkpoints since: they cannot be told apart."""
    whole = go(make(folder, save_every=6), 14)
    file, aside = folder.path / "toy/metrics.jsonl", folder.path / "toy/checkpoints-set-aside/metrics.jsonl"
    metrics = file.read_bytes()
    shutil.rmtree(folder.path / "toy/checkpoints")
    before = b"".join(metrics.splitlines(keepends=True)[:logged])
    file.write_bytes(before)
    assert same(go(make(folder, save_every=6), 14), whole)
    assert f"beginning anew; the metrics from before are in {aside}\n" in capsys.readouterr().err
    assert file.read_bytes() == metrics
    assert aside.read_bytes() == before


def test_of_several_damaged_checkpoints_each_is_named_and_the_newest_whole_one(folder, capsys):
    go(make(folder), 14)
    for step in (8, 14):
        (folder.path / f"toy/checkpoints/{step}/manifest.json").write_text("{")
    run = make(folder)
    first, second = capsys.readouterr().err.splitlines()
    assert re.match(
        r"the checkpoint of step 14 in .* is damaged \(manifest.json\): it is set aside, and the one of step 12 used$", first
    )
    assert re.match(r"the checkpoint of step 8 in .* is damaged \(manifest.json\): it is set aside$", second)
    run.restore(**start())


@pytest.mark.parametrize("entry", ["model", "params", "scaler", "config", "metrics_bytes", "metrics_digest"])
def test_a_checkpoint_of_another_version_is_refused(folder, entry):
    """Its manifest is whole, and says less: one of the last, or of those before."""
    go(make(folder), 8)
    checkpoint = folder.path / "toy/checkpoints/8"
    content = json.loads((checkpoint / "manifest.json").read_text())
    del content["digest"], content["files"], content["metadata"][entry]
    (checkpoint / "manifest.json").write_text(json.dumps(_checkpoints.manifest(checkpoint, **content)))
    message = rf"the checkpoints in .*toy are of another version of jaxrnn \(they have no '{entry}'\): go on with .* --out$"
    with pytest.raises(Failure, match=message) as failure:
        make(folder).restore(**start())
    assert failure.value.code == 2
    assert (checkpoint / "manifest.json").exists()


def manifest_without(entry):
    def change(content):
        del content[entry]
        return content

    return change


DAMAGED_MANIFESTS = {
    **{f"no {entry}": manifest_without(entry) for entry in ("run", "step", "shapes", "metadata", "files", "digest")},
    "no file": lambda content: content | {"files": {}},
    "nothing of the metrics": lambda content: content | {"metadata": {}},
    "another length of the metrics": lambda content: content | {"metadata": content["metadata"] | {"metrics_bytes": "70"}},
    "another shape": lambda content: content | {"shapes": dict.fromkeys(content["shapes"], "float32[1]")},
    "another step": lambda content: content | {"step": 10**6},
    "a list": lambda content: [content],
    "nothing": lambda content: None,
}


@pytest.mark.parametrize("damage", [*DAMAGED_MANIFESTS, "text", "empty", "deep", "a folder", "a link"])
def test_a_damaged_manifest_is_named_and_the_one_before_used(folder, damage, capsys, tmp_path):
    whole = go(make(folder), 14)
    file = folder.path / "toy/checkpoints/14/manifest.json"
    if damage in DAMAGED_MANIFESTS:
        file.write_text(json.dumps(DAMAGED_MANIFESTS[damage](json.loads(file.read_text()))))
    elif damage in ("a folder", "a link"):
        file.unlink()
        put(damage.split()[1], file, outside(tmp_path) / "thesis.tex")
    else:
        file.write_text({"text": "{", "empty": "", "deep": "[" * 10**5}[damage])
    run = make(folder)
    assert "step 14 in" in (said := capsys.readouterr().err)
    assert "is damaged (manifest.json): it is set aside, and the one of step 12 used" in said
    assert same(go(run, 14), whole)
    assert run.step == 12


@pytest.mark.parametrize("entry", ["500", "007", "٧", "999", "notes.txt", "40", "4.orbax-checkpoint-tmp-0"])
def test_what_is_no_checkpoint_of_the_run_is_set_aside(folder, entry, capsys, tmp_path):
    """A copy under another step, a name that is no number, a file, a link: the newest whole one is used, and nothing deleted."""
    whole = go(make(folder), 10)
    before = metrics = (folder.path / "toy/metrics.jsonl").read_bytes()
    checkpoints, theirs = folder.path / "toy/checkpoints", outside(tmp_path)
    if entry == "500":
        shutil.copytree(checkpoints / "10", checkpoints / entry)
    elif entry in ("007", "٧"):
        (checkpoints / entry).mkdir()
        (checkpoints / entry / "mine").write_text("x")
    elif entry == "40" or "tmp" in entry:
        (checkpoints / entry).symlink_to(theirs)
    else:
        (checkpoints / entry).write_text("x")
    run = make(folder)
    said = capsys.readouterr().err
    assert same(go(run, 10), whole)
    assert run.step == 10
    metrics = (folder.path / "toy/metrics.jsonl").read_bytes()
    assert metrics == before
    assert entry in said
    assert {"500": "is a copy of the one of step 10", "40": "is a symbolic link", "999": "is not a folder"}.get(
        entry, "set aside"
    ) in said
    assert os.path.lexists(folder.path / "toy/checkpoints-set-aside" / entry)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["10", "4", "8"]
    assert (theirs / "thesis.tex").read_text() == "important"


def test_a_checkpoint_of_another_run_is_none_of_this_one(folder, config, capsys):
    """Of another seed in the same folder, or of a folder with another configuration: the same shapes, other numbers."""
    go(make(folder, "toy-1"), 6)
    go(make(folder, "toy-2"), 4)
    shutil.copytree(folder.path / "toy-1/checkpoints/6", folder.path / "toy-2/checkpoints/6")
    run = make(folder, "toy-2")
    assert "step 6 in" in (said := capsys.readouterr().err)
    assert "is of the run toy-1: it is set aside, and the one of step 4 used" in said
    go(run, 6)
    assert run.step == 4
    with open_folder(replace(config, rate=0.75, steps=3, out=config.out + "-other")) as other:
        shutil.copytree(folder.path / "toy-1", other.path / "toy-1")
        message = (
            r"(?s)checkpoint of step 6 in .* is of another run:\n    rate: 0.5 before, 0.75 now\nName another folder with --out"
        )
        with pytest.raises(Failure, match=message):
            make(other, "toy-1").restore(**start())


def test_a_run_of_another_model_is_refused(folder):
    go(make(folder), 4)
    with pytest.raises(Failure, match=r"is of another run:\n    model: .*'hidden_size': 3.* before, .*'hidden_size': 4.* now"):
        make(folder, model=model(4)).restore(**start())
    with pytest.raises(Failure, match=r"is of another run:\n    params: params before, ema now"):
        make(folder, holds="ema").restore(**start())


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("toy", "file"),
        ("toy", "link"),
        ("toy/checkpoints", "file"),
        ("toy/checkpoints", "link"),
        ("toy/checkpoints", "dangling link"),
        ("toy/metrics.jsonl", "folder"),
        ("toy/metrics.jsonl", "link"),
        ("toy/metrics.jsonl", "dangling link"),
        ("toy/metrics.jsonl", "named pipe"),
    ],
)
def test_what_lies_in_the_place_of_a_part_of_a_run_is_named_and_not_followed(place, kind, folder, tmp_path):
    theirs = outside(tmp_path)
    (folder.path / place).parent.mkdir(exist_ok=True)
    put(kind, folder.path / place, theirs if place != "toy/metrics.jsonl" else theirs / "thesis.tex")
    with pytest.raises(Failure, match=rf"{place} (is|should be) .*: take it away, or name another folder with --out") as failure:
        go(make(folder), 4)
    assert failure.value.code == 2
    assert (theirs / "thesis.tex").read_text() == "important"
    assert sorted(p.name for p in theirs.iterdir()) == ["thesis.tex"]


def test_what_cannot_be_read_or_written_in_the_folder_is_said(config):
    """Also what nobody thought of."""
    message = r"cannot use .*run/toy/x: No such file or directory\nMend it and start the same command again, or name another"
    with pytest.raises(Failure, match=message), open_folder(config) as folder:
        (folder.path / "toy/x").read_text()
    with pytest.raises(FileNotFoundError), open_folder(config) as folder:
        Path("elsewhere/x").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "folder", "link"])
def test_whichever_file_is_damaged_a_run_ends_the_same_or_says_what_to_do(damage, tmp_path):
    """Every file of a folder that is half done, one after the other; and nothing outside is touched."""
    config = Config(out=str(tmp_path / "half"))
    with open_folder(config) as folder:
        go(make(folder), 14)
    with open_folder(replace(config, out=str(tmp_path / "whole"))) as folder:
        whole = go(make(folder), 17)
    files = sorted(p.relative_to(config.out) for p in Path(config.out).rglob("*") if p.is_file())
    theirs, went_on = outside(tmp_path) / "thesis.tex", 0
    for name in (name for name in files if "8" not in name.parts and "12" not in name.parts):
        out = tmp_path / "copy"
        shutil.copytree(config.out, out)
        file = out / name
        content = file.read_bytes()
        file.unlink()
        if damage == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "changed":
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"x")
        elif damage != "gone":
            put(damage, file, theirs)
        refused = None
        try:
            with open_folder(replace(config, out=str(out))) as folder:
                assert same(go(make(folder), 17), whole), name
            assert (out / "toy/metrics.jsonl").read_bytes() == (tmp_path / "whole/toy/metrics.jsonl").read_bytes(), name
            went_on += 1
        except Failure as failure:
            refused = failure
        if refused:
            assert refused.code == 2, name
            assert re.search(r"take it away|put a copy of it back|[Nn]ame another folder", str(refused)), name
        assert theirs.read_text() == "important", name
        shutil.rmtree(out)
    assert went_on >= sum("14" in name.parts for name in files) > 10


def test_old_checkpoints_are_taken_away(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", run="a", keep=2)
    for step in (1, 5, 9):
        checkpoints.save(step, {"a": np.arange(step)}, {"fact": step})
    assert checkpoints.steps == [5, 9]
    assert Checkpoints(tmp_path / "c", run="a").restore({"a": np.arange(9)})[2] == {"fact": 9}


def test_names_in_a_checkpoint_say_what_they_hold(folder):
    """Read by Orbax alone: nested dicts of what was given, places in tuples left out where names stay apart."""
    params = nnx.state(model())
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1))).init(params)
    run = make(folder)
    run.last = 1
    run.restore(params=params, optimizer=opt_state, state=(np.zeros(1), np.ones(2)), sampler=start()["sampler"])
    run.checkpoint(1, params=params, optimizer=opt_state, state=(np.zeros(1), np.ones(2)), sampler=start()["sampler"])
    tree = ocp.StandardCheckpointer().restore(folder.path / "toy/checkpoints/1/arrays")
    got = traverse_util.flatten_dict(tree, sep="/")
    paths = [f"rnn/layer_0/forward/{name}" for name in ("w_ih", "w_hh", "b_ih", "b_hh")] + ["fc/kernel", "fc/bias"]
    wanted = {f"{part}/{path}" for part in ("params", "optimizer/mu", "optimizer/nu") for path in paths}
    wanted |= {"optimizer/1/0/count", "optimizer/1/2/count", "sampler/epoch", "sampler/position", "state/0", "state/1"}
    assert set(got) == wanted
    np.testing.assert_array_equal(got["params/rnn/layer_0/forward/w_hh"], model().rnn.params[0][0].w_hh.get_value())
    np.testing.assert_array_equal(got["state/1"], np.ones(2))


@pytest.mark.parametrize(
    ("tree", "wanted"),
    [
        ({"a": ({"w": 1}, 2)}, ["a/w", "a/1"]),
        ({"a": ({"1": 1}, 2)}, ["a/0/1", "a/1"]),
        ({"a": [{"x": 1}, {"x": 2}, {"1": 3}]}, ["a/0/x", "a/1/x", "a/2/1"]),
        ({"a": [{"1": 3}, {"x": 1}, {"x": 2}], "b": [4]}, ["a/0/1", "a/1/x", "a/2/x", "b/0"]),
    ],
)
def test_no_two_arrays_have_one_name_and_none_is_a_folder_of_another(tree, wanted):
    assert _checkpoints.names(tree) == wanted
    arrays = dict(zip(wanted, jax.tree.leaves(tree), strict=True))
    assert _checkpoints.flat(_checkpoints.nested(arrays)) == arrays


@pytest.mark.parametrize("tree", [{"a/b": 1, "a": {"b": 2}}, {"a": {"b": 1}, "a/b": {"c": 2}}])
def test_names_that_cannot_be_kept_apart_are_refused(tree):
    with pytest.raises(ValueError, match=r"names: `tree` should have paths that stay apart when .* by '/', got 'a/b' twice\."):
        _checkpoints.names(tree)


@pytest.mark.parametrize("step", [5, 9])
def test_a_model_is_replaced_by_another_only_when_that_is_saved(tmp_path, step):
    """Of the same step, or of an earlier one; files may not grow beyond 2 kB in between."""
    old, new = (nnx.clone(model()) for _ in range(2))
    nnx.update(new, jax.tree.map(lambda a: a + 1, nnx.state(new, nnx.Param)))
    training.save_model(tmp_path, "a", old, step=9, config=Config())
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, usual[1]))
    try:
        with pytest.raises(
            Failure, match=rf"cannot save step {step} in .*: File too large\nWhat was saved there before is kept\.$"
        ):
            training.save_model(tmp_path, "a", new, step=step, config=Config())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert same(nnx.state(load_run(tmp_path).model, nnx.Param), nnx.state(old, nnx.Param))
    training.save_model(tmp_path, "a", new, step=step, config=Config())
    assert same(nnx.state(load_run(tmp_path).model, nnx.Param), nnx.state(new, nnx.Param))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["checkpoints"]
    assert [p.name for p in (tmp_path / "a/checkpoints").iterdir()] == [str(step)]


def test_a_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    training.save_model(Path("here"), "a", model(), step=9, config=Config())
    assert same(nnx.state(load_run("here").model, nnx.Param), nnx.state(model(), nnx.Param))


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    changed = r"step 6 in .* is of another model or other data:\n    b: float32\[3\] before, float32\[4\] now\nName another folder"
    checkpoints = Checkpoints(tmp_path / "other", run="a")
    checkpoints.save(6, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, {})
    with pytest.raises(Failure, match=changed):
        checkpoints.restore({"a": np.zeros(2, np.float32), "b": np.zeros(4, np.float32)})


@pytest.mark.parametrize("damage", ["shortened", "changed", "a line too few", "gone"])
def test_metrics_that_have_lost_lines_go_on_from_a_checkpoint_that_fits_them(folder, damage, capsys):
    """And if none does, what to do is said; the checkpoints are all kept."""
    run = make(folder)
    whole = go(run, 14)
    file = folder.path / "toy/metrics.jsonl"
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    for kept, step in ((13, 12), (9, 8), (7, None)):
        for parts in ("checkpoints", "checkpoints-set-aside"):
            shutil.rmtree(folder.path / "toy" / parts, ignore_errors=True)
        file.unlink(missing_ok=True)
        assert same(go(make(folder), 14), whole)
        capsys.readouterr()
        if damage == "gone":
            file.unlink()
            step = None
        elif damage == "changed":
            file.write_bytes(b"".join(lines[:kept]) + lines[kept].replace(b"loss", b"lass") + b"".join(lines[kept + 1 :]))
        else:
            file.write_bytes(b"".join(lines[:kept]) + (lines[kept][:5] if damage == "shortened" else b""))
        run = make(folder)
        if step is None:
            message = r"metrics.jsonl .*, so that no checkpoint fits it: put a copy of it back, or name another folder with --out"
            with pytest.raises(Failure, match=message):
                run.restore(**start())
            assert run._checkpoints.steps == [8, 12, 14]
            break
        assert same(go(run, 14), whole)
        said = capsys.readouterr().err
        assert f"step 14 is set aside, and the one of step {step} used" in said
        assert {"changed": "has been changed"}.get(damage, "bytes long, and was") in said
        assert run.step == step
        assert file.read_bytes() == content
        assert (folder.path / "toy/checkpoints-set-aside/14/manifest.json").exists()


def test_a_run_that_is_further_is_not_taken_back(folder):
    go(make(folder), 6)
    with pytest.raises(Failure, match=r"toy in .* is at step 6 already, and 5 are asked for: ask for at least as many, or name"):
        go(make(folder), 5)
    assert same(go(make(folder), 6), go(make(folder, "again"), 6))


def test_several_steps_at_once_are_saved_at_the_first_that_is_due(folder):
    run = make(folder, save_every=5)
    run.restore(**start())
    saved = []
    for step in run.steps(12, every=3):
        run.log(step, loss=1.0)
        run.checkpoint(step, **start())
        saved.append((step, run._checkpoints.steps[-1:]))
    assert saved == [(3, []), (6, [6]), (9, [6]), (12, [12])]


def test_a_full_disk_is_said_and_the_last_checkpoint_kept(folder, monkeypatch):
    """Too little is free to begin with; or it ends while writing: files may not grow beyond 2 kB."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    big = {"w": rng.standard_normal(3)}
    run = make(folder, save_every=1)
    run.last = 2
    run.checkpoint(1, **big)
    big["w"] = rng.standard_normal(4000)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_070_000))
        with pytest.raises(
            Failure, match=r"(?s)cannot save step 2 in .*: 1.1 MB are needed, 1.1 MB are free\nThe last .* step 1, in"
        ):
            run.checkpoint(2, **big)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, usual[1]))
    try:
        with pytest.raises(
            Failure, match=r"(?s)cannot save step 2 in .*: File too large\nThe last good checkpoint is of step 1, in"
        ):
            run.checkpoint(2, **big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [p.name for p in (folder.path / "toy/checkpoints").iterdir()] == ["1"]
    assert Checkpoints(folder.path / "toy/checkpoints", run="toy").steps == [1]


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

    run = make(folder, tensorboard=True)
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


def test_a_terminal_sees_a_bar_with_the_loss(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(training.console, "BETWEEN_FRAMES", 0.0)
    go(make(folder), 7)
    bar = capsys.readouterr().err
    metrics = [json.loads(line) for line in (folder.path / "toy/metrics.jsonl").read_text().splitlines()]
    assert f"loss {metrics[-1]['loss']:.4g}, rows {metrics[-1]['rows']:.4g}" in bar
    assert "toy" in bar
    assert "/7 [" in bar


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch, capsys, folder):
    """On stderr, of a step and its numbers; not sooner than some seconds after the last line, nor if the script spoke itself."""
    clock = [0.0]
    monkeypatch.setattr(training.console.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training.console, "_last_line", 0.0)
    monkeypatch.setattr(training.console, "speaking", True)

    def wait(step):
        clock[0] += 4
        if step == 12:
            training.log("something")

    go(make(folder, save_every=100), 20, at=wait)
    metrics = [json.loads(line) for line in (folder.path / "toy/metrics.jsonl").read_text().splitlines()]
    out, err = capsys.readouterr()
    assert out == "something\n"
    said = [(step, f"toy: {step} of 20, loss {metrics[step - 1]['loss']:.4g}, rows") for step in (4, 7, 10, 16, 19)]
    assert [line.split(" (")[0].rsplit(" ", 1)[0] for line in err.splitlines()] == [line for _, line in said]
    left = re.findall(r" s(?:, about (\d+) s left)?\)$", err, flags=re.MULTILINE)
    assert left == ["", *(str(4 * (20 - step)) for step, _ in said[1:])]  # by what was done since the first line
    monkeypatch.setattr(training.console, "speaking", False)
    go(make(folder, "silent", save_every=100), 20, at=wait)
    assert capsys.readouterr().err == ""


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


def test_a_pipe_that_does_not_know_a_character_gets_another(monkeypatch):
    """As on Windows, where what is piped is in the code page of the system."""
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert training.exit_code(lambda: print("décroît: λ")) == 0
    assert pipe.buffer.getvalue().decode("cp1252").strip() == "décroît: ?"


# Who may know whom -----------------------------------------------------------------------------------------------------

MAY_IMPORT = {
    "config": set(),
    "sampler": set(),
    "console": {"jax"},
    "plots": {"console"},
    "devices": {"jax", "config", "console"},
    "folder": {"config", "console", "devices"},
    "checkpoints": {"config", "console", "folder"},
    "run": {"jax", "config", "devices", "checkpoints", "console", "folder"},
}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(name):
    folder = Path(training.__file__).parent
    assert {p.stem for p in folder.glob("*.py")} == {"__init__", *MAY_IMPORT}
    text = (folder / f"{name}.py").read_text()
    found = set(re.findall(r"^ *from training\.(\w+) import", text, re.MULTILINE))
    for names in re.findall(r"^ *from training import (.*)", text, re.MULTILINE):
        found |= set(names.split(", "))
    assert found | ({"jax"} if re.search(r"^(import|from) jax\b", text, re.MULTILINE) else set()) == MAY_IMPORT[name]


def test_scripts_import_nothing_that_windows_lacks():
    """Modules of POSIX's, anywhere in a file."""
    lacking = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline", "curses", "crypt"}
    for root in (Path(training.__file__).parents[1], Path(jaxrnn.__file__).parent):
        for file in root.rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            found = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            found |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
            assert not found & lacking, file


def test_the_wheel_has_no_training_in_it():
    assert not (Path(jaxrnn.__file__).parent / "training").exists()
    assert importlib.util.find_spec("training").origin == str(Path(training.__file__))


def test_every_cell_of_the_scripts_has_a_style_of_its_own():
    names = ["BiLSTM", *(name for name, cell in jaxrnn.CELLS.items() if cell.event_ndim == 1)]
    styles = [repr(training.cell_style(name)) for name in names]
    assert len(set(styles)) == len(names)
    seeds = [training.cell_style(f"LSTM-{seed}") for seed in range(4)]
    assert {style["color"] for style in seeds} == {"tab:blue"}
    assert len({repr(style) for style in seeds}) == 4
