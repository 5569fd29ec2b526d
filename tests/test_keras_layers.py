"""Layers of Keras beyond the three plain ones: cells, stacks of them, directions, activations; subclassed models; Keras 2."""

import io
import json
import os
import zipfile

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.cells.activations import ACTIVATIONS
from jaxrnn.interop import from_keras, load_keras, to_keras

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables

TIME, BATCH, INPUT = 6, 4, 3
MASK = np.arange(TIME) < np.array([6, 2, 5, 1])[:, None]
ALL = {"return_sequences": True, "return_state": True}
X = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
JOIN = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "ave": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}


def randomised(layer, seed=0):
    """The layer or model, built, with weights that are all random, none zero."""
    if not layer.built:
        layer.build((None, TIME, INPUT))
    rng = np.random.default_rng(seed)
    layer.set_weights([(0.6 * rng.standard_normal(a.shape)).astype(a.dtype) for a in layer.get_weights()])
    return layer


def in_model(*found):
    return randomised(keras.Sequential([keras.Input((None, INPUT)), *found]))


@jax.jit
def run(module, x, mask):
    return module(x, mask=mask)


def assert_computes(module, theirs, x=X, mask=MASK, join=None, flipped=False):
    """Outputs where they are valid, and final states, with ragged lengths, of Keras itself."""
    want = jax.tree.leaves(theirs(x, mask=mask))
    output, h_n = run(module, x[:, ::-1], mask[:, ::-1]) if flipped else run(module, x, mask)
    outputs = [output] if not isinstance(output, tuple) else list(output) if join is None else [join(*output)]
    valid = mask[:, ::-1] if flipped else mask
    for ours, one in zip(outputs, [a for a in want if a.ndim == 3], strict=True):
        np.testing.assert_allclose(np.asarray(ours)[valid], np.asarray(one)[valid], rtol=2e-6, atol=2e-6)
    fields, directions = (h_n if isinstance(h_n, tuple) else (h_n,)), module.stack.num_directions
    order = [(k, d) for d in range(directions) for k in range(module.stack.num_layers)]
    got = (
        [field[k * directions + d] for k, d in order for field in fields] if not isinstance(module.stack.hidden_size, tuple) else []
    )
    states = [a for a in want if a.ndim == 2]
    for ours, one in zip(got, states, strict=bool(got)):
        np.testing.assert_allclose(ours, one, rtol=2e-6, atol=2e-6)
    assert np.abs(np.asarray(outputs[0])[valid]).max() > 0.05


def saved(folder, *found, version=None):
    """A model with the layers, as a file of each kind that holds whole models; `version` is written as the Keras's."""
    model = keras.Sequential([keras.Input((None, INPUT)), *found])
    paths = [folder / "m.keras", folder / "m.h5"]
    for path in paths:
        model.save(path)
    if version is not None:
        rezip(paths[0], lambda name, data: json.dumps({"keras_version": version}).encode() if name == "metadata.json" else data)
        with h5py.File(paths[1], "r+") as store:
            store.attrs["keras_version"] = version
    return paths


def rezip(path, change):
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            if (data := change(info.filename, old.read(info))) is not None:
                new.writestr(info.filename, data)
    path.write_bytes(made.getvalue())


def reconfigure(path, change):
    """Let a function change the configuration of a `.keras` file."""
    tree = json.loads(zipfile.ZipFile(path).read("config.json"))
    change(tree)
    rezip(path, lambda name, data: json.dumps(tree).encode() if name == "config.json" else data)


def equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


# Cells and stacks of them ----------------------------------------------------------------------------------------------

STACKS = {
    "RNN of a cell": lambda: layers.RNN(layers.LSTMCell(5), **ALL),
    "RNN of a simple cell": lambda: layers.RNN(layers.SimpleRNNCell(5, activation="relu", use_bias=False), **ALL),
    "cells": lambda: layers.RNN([layers.GRUCell(4), layers.GRUCell(4), layers.GRUCell(4)], **ALL),
    "cells of two sizes": lambda: layers.RNN([layers.LSTMCell(4), layers.LSTMCell(2)], **ALL),
    "StackedRNNCells": lambda: layers.RNN(layers.StackedRNNCells([layers.GRUCell(4, reset_after=False) for _ in "ab"]), **ALL),
    "two-way RNN of a cell": lambda: layers.Bidirectional(layers.RNN(layers.GRUCell(4), **ALL), merge_mode="ave"),
    "two-way cells": lambda: layers.Bidirectional(layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)], **ALL), merge_mode=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STACKS)
def test_cells_and_stacks_of_them_are_read(case, tmp_path):
    """Live, as a file of Keras 3 and in the layout of Keras 2; the weights go back, and into a module."""
    theirs = randomised(STACKS[case]())
    module = from_keras(theirs)
    assert_computes(module, theirs)
    equal(to_keras(module), theirs.get_weights())
    layer = type(theirs).from_config(plain(theirs.get_config()))
    shape = keras.Input((None, INPUT))
    model = keras.Model(shape, layer(shape)) if "two-way" in case else keras.Sequential([shape, layer])
    layer.set_weights(theirs.get_weights())
    whole = ("m.keras",) if "two-way" in case else ("m.keras", "m.h5")  # which Keras 3 cannot write for those
    for name in whole:
        model.save(tmp_path / name)
        equal(to_keras(from_keras(tmp_path / name)), theirs.get_weights())
    model.save_weights(tmp_path / "m.weights.h5")
    other = nnx.eval_shape(lambda: from_keras(theirs))
    for name in (*whole, "m.weights.h5"):
        load_keras(other, tmp_path / name)
        equal(to_keras(other), theirs.get_weights())


def test_a_cell_alone_and_a_list_are_read():
    cells = [layers.LSTMCell(4), layers.LSTMCell(2)]
    theirs = randomised(layers.RNN(cells, **ALL))
    assert_computes(from_keras(cells), theirs)
    assert_computes(from_keras(theirs.cell), theirs)
    alone = randomised(layers.RNN(cells[0], **ALL))
    assert_computes(from_keras(cells[0]), alone)


@pytest.mark.parametrize("merge_mode", JOIN)
def test_directions_of_several_cells_are_read_as_a_pair_on_request(merge_mode, tmp_path):
    """They merge at the end only, which `merge` cannot say."""
    cells = [layers.GRUCell(4), layers.GRUCell(4)]
    theirs = randomised(layers.Bidirectional(layers.RNN(cells, **ALL), merge_mode=merge_mode, name="it"))
    with pytest.raises(ValueError, match=r'(?s)of layer \'it\' should |layer \'it\' should have one cell.*Pass merge="none"'):
        from_keras(theirs)
    module = from_keras(theirs, merge="none")
    assert_computes(module, theirs, join=JOIN[merge_mode])
    equal(to_keras(module), theirs.get_weights())
    with pytest.raises(ValueError, match=r"`merge` for|should have one cell|`merge_mode` of layer 'it'"):
        from_keras(theirs, merge="sum")


@pytest.mark.slow
def test_what_the_product_of_directions_is_read_as(tmp_path):
    theirs = randomised(layers.Bidirectional(layers.LSTM(4, **ALL), merge_mode="mul", name="it"))
    message = r"(?s)`merge_mode` of layer 'it' should be one of .*, got 'mul'.\nPass merge=\"none\" .* output = forward \* backward"
    with pytest.raises(ValueError, match=message):
        from_keras(theirs)
    module = from_keras(theirs, merge="none")
    assert_computes(module, theirs, join=JOIN["mul"])
    second = randomised(layers.Bidirectional(layers.LSTM(4)), 1)
    with pytest.raises(ValueError, match=message):
        from_keras([theirs, second], merge="none")  # which would not let the second read the product
    with pytest.raises(ValueError, match=r"`merge` for layer 'bidirectional\w*' should be 'concat', as the layer's .*, got 'sum'"):
        from_keras(second, merge="sum")
    for path in saved(tmp_path, layers.Bidirectional(layers.LSTM(4, return_sequences=True), merge_mode="mul")):
        load_keras(module, path)
        concat = jaxrnn.LSTM(INPUT, 4, bidirectional=True, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=r"`merge_mode` of .*, got 'mul'"):
            load_keras(concat, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(4, go_backwards=True, **ALL),
        lambda: layers.RNN([layers.GRUCell(4), layers.GRUCell(4)], go_backwards=True, **ALL),
        lambda: layers.Bidirectional(layers.GRU(4, go_backwards=True, **ALL), backward_layer=layers.GRU(4, **ALL)),
    ],
    ids=["layer", "cells", "two-way"],
)
def test_a_layer_that_goes_backwards_is_read_on_request(make, tmp_path):
    theirs = randomised(make())
    with pytest.raises(ValueError, match=r"(?s)`go_backwards` of .* should be False, got True.\nPass go_backwards=True, .*flip"):
        from_keras(theirs)
    module = from_keras(theirs, go_backwards=True)
    assert_computes(module, theirs, flipped=True)
    with pytest.raises(ValueError, match=r"`go_backwards` of .* should be True, got False"):
        from_keras(randomised(layers.LSTM(4)), go_backwards=True)
    for path in saved(tmp_path, type(theirs).from_config(plain(theirs.get_config()))):
        with pytest.raises(ValueError, match=r"`go_backwards` of .*m\.(keras|h5) should be False"):
            load_keras(module, path)
        load_keras(module, path, go_backwards=True)
        equal(to_keras(module), to_keras(from_keras(path, go_backwards=True)))


def plain(config):
    """A configuration of a layer that returns a sequence and no states."""
    if isinstance(config, dict):
        return {key: False if key == "return_state" else plain(value) for key, value in config.items()}
    return config


# Activations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "hard_sigmoid_keras2"])
def test_activations_are_those_of_keras_by_name(name):
    theirs = randomised(layers.SimpleRNN(4, activation=name, **ALL))
    assert_computes(from_keras(theirs), theirs, x=2 * X)


@pytest.mark.parametrize("options", [{"activation": "softsign"}, {"recurrent_activation": "hard_sigmoid"}], ids=str)
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_the_two_activations_do_not_change_places(kind, options):
    theirs = randomised(kind(4, **options, **ALL))
    assert_computes(from_keras(theirs), theirs, x=2 * X)


@pytest.mark.parametrize(("version", "slope"), [("2.15.0", 0.2), ("3.5.0", 1 / 6)])
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_a_hard_sigmoid_is_that_of_the_keras_which_wrote_it(kind, version, slope, tmp_path):
    options = {"reset_after": False} if kind is layers.GRU else {}
    layer = kind(4, recurrent_activation="hard_sigmoid", activation="softsign", return_sequences=True, **options)
    in_model(layer)
    theirs = kind(4, recurrent_activation=lambda a: jnp.clip(slope * a + 0.5, 0, 1), activation="softsign", **options, **ALL)
    randomised(theirs).set_weights(layer.get_weights())
    for path in saved(tmp_path, layer, version=version):
        module = from_keras(path)
        if path.suffix == ".keras":
            assert_computes(module, theirs, x=2 * X)
        equal(to_keras(module), layer.get_weights())
        names = {"activation": "softsign", "recurrent_activation": "hard_sigmoid" if slope < 0.2 else "hard_sigmoid_keras2"}
        for value, refused in (
            (names, False),
            (names | {"activation": "tanh"}, True),
            (names | {"recurrent_activation": "sigmoid"}, True),
        ):
            other = jaxrnn.Recurrent(type(module.stack.cell)(**value), INPUT, 4, rngs=nnx.Rngs(0))
            if refused:
                with pytest.raises(ValueError, match=r"should be as `module`, .*Cell\(.*, got .*Cell\(.*softsign"):
                    load_keras(other, path)
            else:
                load_keras(other, path)
    with h5py.File(tmp_path / "m.h5", "r+") as store:
        store.attrs["keras_version"] = "1.2.2"
    assert from_keras(tmp_path / "m.h5").stack.cell.recurrent_activation == "hard_sigmoid_keras2"
    rezip(tmp_path / "m.keras", lambda name, data: b"{}" if name == "metadata.json" else data)
    with pytest.raises(ValueError, match=r"`recurrent_activation` of layer .* should come with the version of Keras that wrote it"):
        from_keras(tmp_path / "m.keras")


def tanh(a):
    return 2 * jnp.tanh(a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.LSTM(4, activation="gelu"), r"`activation` of layer .* should be one of 'tanh', .*, got 'gelu'"),
        (lambda: layers.GRU(4, recurrent_activation="mish"), r"`recurrent_activation` of layer .*, got 'mish'"),
        (lambda: layers.LSTM(4, activation=tanh), r"`activation` of layer .* should be a function of Keras, got <function tanh"),
        (
            lambda: layers.GRU(4, recurrent_activation="relu", reset_after=False),
            r"`recurrent_activation` of .* should be 'sigmoid' or 'hard_sigmoid' with reset_after=False, got 'relu'",
        ),
        (
            lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(4)]),
            r"all cells of layer .* should be the same .*\n.*RNN\(cell\)",
        ),
        (
            lambda: layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4, use_bias=False)]),
            r"all cells of layer .* should be the same but for their sizes, got .*, LSTMCell\(\) of 4 without bias",
        ),
        (
            lambda: layers.Bidirectional(layers.LSTM(4), backward_layer=layers.LSTM(5, go_backwards=True)),
            r"both directions of layer .* should have the same options, got \['LSTMCell\(\) of 4'\] and \['LSTMCell\(\) of 5'\]",
        ),
    ],
    ids=["gelu", "mish", "own tanh", "relu before", "kinds", "bias", "directions"],
)
def test_a_layer_without_a_counterpart_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        from_keras(randomised(make()))


def test_directions_of_different_options_are_read_one_by_one():
    """As the message says; what the second puts out is turned round once more, as Keras does it."""
    backward = layers.GRU(5, return_sequences=True, go_backwards=True)
    both = randomised(layers.Bidirectional(layers.LSTM(4, return_sequences=True), backward_layer=backward))
    with pytest.raises(ValueError, match=r"load the forward_layer alone, and the backward_layer alone with go_backwards=True"):
        from_keras(both)
    forward, backward = from_keras(both.forward_layer), from_keras(both.backward_layer, go_backwards=True)
    outputs = run(forward, X, None)[0], run(backward, X[:, ::-1], None)[0][:, ::-1]
    np.testing.assert_allclose(jnp.concatenate(outputs, -1), both(X), atol=1e-6)


def test_a_backward_layer_that_runs_forward_is_refused(tmp_path):
    """Keras makes none, but a file may say so; its other layer is the one to run forward."""
    in_model(layers.Bidirectional(layers.LSTM(4), name="both")).save(tmp_path / "m.keras")

    def turn(name, data):
        config = json.loads(data) if name == "config.json" else None
        if config is None:
            return data
        (both,) = (layer for layer in config["config"]["layers"] if layer["class_name"] == "Bidirectional")
        assert both["config"]["backward_layer"]["config"]["go_backwards"] is True
        both["config"]["backward_layer"]["config"]["go_backwards"] = False
        return json.dumps(config).encode()

    rezip(tmp_path / "m.keras", turn)
    message = r"`go_backwards` of the backward layer of layer 'both' of .* should be True, got False.$"
    with pytest.raises(ValueError, match=message):
        from_keras(tmp_path / "m.keras")


def test_an_activation_that_is_a_layer_is_refused():
    with pytest.raises(ValueError, match=r"`activation` of layer .* should be one of 'tanh', .*, got {'class_name': 'LeakyReLU'"):
        from_keras(randomised(layers.LSTM(4, activation=layers.LeakyReLU(0.2))))


def test_another_layer_of_keras_is_no_class_of_somebody():
    with pytest.raises(TypeError, match=r"got ConvLSTM1D\.$"):
        from_keras(layers.ConvLSTM1D(2, 3))


@pytest.mark.slow
def test_classes_of_somebody_else_are_not_taken_for_keras():
    """Whatever they are called."""

    class LSTM(layers.LSTM):
        def call(self, sequence, **options):
            return 2 * super().call(sequence, **options)

    class GRUCell(layers.GRUCell):
        pass

    with pytest.raises(
        TypeError, match=r"(?s)should be a Keras SimpleRNN.* got LSTM.\nIf it computes what keras.layers.LSTM does, make one of"
    ):
        from_keras(randomised(LSTM(4)))
    with pytest.raises(ValueError, match=r"should be made of classes of Keras itself, got another 'GRUCell'"):
        from_keras(randomised(layers.RNN(GRUCell(4))))
    with pytest.raises(ValueError, match=r"the cells of layer .* should be among SimpleRNNCell, .*|classes of Keras itself"):
        from_keras(randomised(layers.RNN([layers.GRUCell(3), GRUCell(4)])))


def test_state_from_batch_to_batch_does_not_come_along_without_a_word():
    layer = layers.LSTM(4, stateful=True)
    layer.build((BATCH, TIME, INPUT))
    with pytest.warns(UserWarning, match=r"`stateful` of layer .* does not come along: pass the h_n of one call"):
        from_keras(randomised(layer))


class Doubled(jaxrnn.LSTM):
    def __call__(self, x, *args, **options):
        return super().__call__(2 * x, *args, **options)


def test_a_module_that_computes_something_else_is_not_written():
    with pytest.raises(TypeError, match=r"to_keras: `module` should be a jaxrnn.RNN, .* got Doubled, which has"):
        to_keras(Doubled(3, 4, rngs=nnx.Rngs(0)))
    cell = jaxrnn.ChungGRUCell(recurrent_activation="relu")
    with pytest.raises(ValueError, match=r"to_keras: `recurrent_activation` should be one of 'sigmoid', .*, got 'relu'"):
        to_keras(jaxrnn.Recurrent(cell, 3, 4, rngs=nnx.Rngs(0)))


# Models and files ------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class Nameless(layers.Layer):
    """A layer whose configuration does not say its name, as many do not."""

    def call(self, x):
        return 2 * x

    def get_config(self):
        return {"factor": 2}


@keras.saving.register_keras_serializable(package="tests")
class Tagger(keras.Model):
    """A subclassed model: what it is made of is in its code only."""

    def __init__(self, **options):
        super().__init__(**options)
        self.encoder = layers.Bidirectional(layers.LSTM(4, return_sequences=True))
        self.rest = [layers.GRU(4, return_sequences=True, name="first"), layers.RNN([layers.GRUCell(2), layers.GRUCell(5)])]
        self.block = Block()

    def call(self, x):
        return self.block(self.rest[1](self.rest[0](self.encoder(x)))[:, None])


class Block(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.SimpleRNN(3)

    def call(self, x):
        return self.inner(x)


def test_a_layer_without_a_name_damages_nothing(tmp_path):
    found = [Nameless(), layers.GRU(4, return_sequences=True, name="gru"), Nameless(), layers.GRU(5, name="other")]
    model = in_model(*found)
    model.save(tmp_path / "m.keras")
    for k, name in ((1, "gru"), (3, "other")):
        equal(to_keras(from_keras(tmp_path / "m.keras", name)), found[k].get_weights())


@pytest.mark.slow
def test_a_subclassed_model_is_read_live_and_loaded_from_files(tmp_path):
    """The file has no configuration of its layers: which says what to do, and names them by attributes."""
    theirs = Tagger()
    theirs(X)
    randomised(theirs)
    theirs.save(tmp_path / "m.keras")
    theirs.save_weights(tmp_path / "m.weights.h5")
    first, cells, inner = theirs.rest[0], theirs.rest[1], theirs.block.inner
    live = {theirs.encoder.name: theirs.encoder, "first": first, cells.name: cells, f"{theirs.block.name}/{inner.name}": inner}
    stored = dict(zip(("encoder", "gru", "rnn", "block/inner"), live.values(), strict=True))
    for name, layer in live.items():
        equal(to_keras(from_keras(theirs, name)), layer.get_weights())
    for path in (tmp_path / "m.keras", tmp_path / "m.weights.h5"):
        for name, layer in stored.items():
            module = nnx.eval_shape(lambda layer=layer: from_keras(layer))
            load_keras(module, path, name)
            equal(to_keras(module), layer.get_weights())
            hint = rf"(?s)layer '{name}' of .* should come with its configuration, .*: load_keras\(module, path, '{name}'\)"
            with pytest.raises(ValueError, match=hint):
                from_keras(path, name)
        with pytest.raises(ValueError, match=r"recurrent layers of `source`, 'block/inner', 'encoder', 'gru', 'rnn', got None"):
            from_keras(path)
        with pytest.raises(ValueError, match=r"should have 1 layer\(s\) of 1 direction\(s\), as `module`, got layers of \[2\]"):
            load_keras(from_keras(inner), path, "encoder")


def test_two_layers_of_one_name_are_told_apart_or_refused(tmp_path):
    model = in_model(layers.GRU(4, return_sequences=True, name="a"), layers.LSTM(4, name="b"))
    model.save(tmp_path / "m.keras")

    def rename(tree):
        for layer in tree["config"]["layers"]:
            layer["config"]["name"] = "a"

    reconfigure(tmp_path / "m.keras", rename)
    with pytest.raises(ValueError, match=r"`layer` should be the name of one layer, got 'a', the name of several"):
        from_keras(tmp_path / "m.keras", "a")


def keras_2(path, model, *, whole=True, frozen=()):
    """A file in the layout of Keras 2, with its names: `:0` behind those of arrays, no `backward_layer`, groups without the model.

    Args:
        whole: the model and not the weights alone. frozen: names of directions, whose arrays then come last.
    """
    entries = json.loads(model.to_json())["config"]["layers"]
    for entry in entries:
        for key in ("module", "registered_name", "build_config"):
            entry.pop(key, None)
        entry["config"].pop("backward_layer", None)
    with h5py.File(path, "w") as store:
        group = store.create_group("model_weights") if whole else store
        group.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        group.attrs["backend"], group.attrs["keras_version"] = b"tensorflow", b"2.15.0"
        if whole:
            store.attrs["keras_version"] = b"2.15.0"
            store.attrs["model_config"] = json.dumps(
                {"class_name": "Sequential", "config": {"name": "m", "layers": entries}}
            ).encode()
        for layer in model.layers:
            inside = group.create_group(layer.name)
            paths = [w.path.split("/")[1:] for w in layer.weights]  # without the name of the model
            names = ["/".join(path) + ":0" for path in paths]
            arrays = dict(zip(names, layer.get_weights(), strict=True))
            names.sort(key=lambda name: any(part in name for part in frozen))
            inside.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                inside.create_dataset(name, data=arrays[name])


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [(), ("forward_",)], ids=["", "frozen"])
def test_files_of_keras_2_are_read(frozen, tmp_path):
    """Where the forward direction is not trained, its arrays stand last."""
    inner = keras.Sequential(
        [keras.Input((None, 4)), layers.GRU(4, return_sequences=True, name="deep"), layers.LSTM(4, return_sequences=True)],
        name="inner",
    )
    model = in_model(
        layers.Bidirectional(layers.GRU(2, return_sequences=True), name="both"),
        layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid", name="one"),
        inner,
        layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)], name="stack"),
    )
    find = {layer.name: layer for layer in [*model.layers, *inner.layers]}
    keras_2(tmp_path / "m.h5", model, frozen=frozen)
    keras_2(tmp_path / "w.h5", model, whole=False, frozen=frozen)
    for name, layer in {name: find[name.split("/")[-1]] for name in ("both", "one", "inner/deep", "stack")}.items():
        module = from_keras(tmp_path / "m.h5", name)
        equal(to_keras(module), layer.get_weights())
        for path in ("w.h5", "m.h5"):
            load_keras(other := nnx.eval_shape(lambda name=name: from_keras(tmp_path / "m.h5", name)), tmp_path / path, name)
            equal(to_keras(other), layer.get_weights())
    assert from_keras(tmp_path / "m.h5", "one").stack.cell.recurrent_activation == "hard_sigmoid_keras2"
    with pytest.raises(
        ValueError, match=r"(?s)layer 'one' of .*w.h5 should come with its configuration, .*load_keras\(module, path, 'one'"
    ):
        from_keras(tmp_path / "w.h5", "one")
    with h5py.File(tmp_path / "m.h5", "r+") as store:
        group = store["model_weights/both/both"]
        del group[next(name for name in group if name.startswith("backward"))]
    with pytest.raises(ValueError, match=r"should hold 1 cell\(s\) for layer 'both' of .*, backward_…, got \[\]"):
        from_keras(tmp_path / "m.h5", "both")


def test_a_gru_from_before_reset_after_has_its_reset_gate_before(tmp_path):
    """Old files of Keras 2 do not say it; in a file of Keras 3 it is missed."""
    model = in_model(layers.GRU(4, reset_after=False, name="one"))
    keras_2(tmp_path / "m.h5", model)
    with h5py.File(tmp_path / "m.h5", "r+") as store:
        assert '"reset_after": false, ' in store.attrs["model_config"]
        store.attrs["model_config"] = store.attrs["model_config"].replace('"reset_after": false, ', "")
    module = from_keras(tmp_path / "m.h5")
    assert module.stack.cell == jaxrnn.ChungGRUCell()
    equal(to_keras(module), model.layers[0].get_weights())
    with h5py.File(tmp_path / "m.h5", "r+") as store:
        store.attrs["keras_version"] = store["model_weights"].attrs["keras_version"] = b"3.0.0"
    with pytest.raises(ValueError, match=r"the configuration of layer 'one' of .* should have 'reset_after'"):
        from_keras(tmp_path / "m.h5")


def test_the_layer_of_a_graphics_card_is_named_with_the_way_to_convert_it(tmp_path):
    model = in_model(layers.LSTM(4, name="one"))
    keras_2(tmp_path / "m.h5", model)
    with h5py.File(tmp_path / "m.h5", "r+") as store:
        store.attrs["model_config"] = store.attrs["model_config"].replace('"LSTM"', '"CuDNNLSTM"')
    with pytest.raises(
        ValueError, match=r"(?s)layer 'one' .* got a CuDNNLSTM.\nWith Keras 2, load its weights into a keras.layers.LSTM"
    ):
        from_keras(tmp_path / "m.h5")
