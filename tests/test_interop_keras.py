"""Layers and files of Keras as modules, and modules as Keras weights."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interop import from_keras, load_keras, to_keras

keras = pytest.importorskip("keras")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables

TIME, BATCH, INPUT, HIDDEN = 6, 4, 3, 5
LENGTHS = np.array([6, 2, 5, 1])
MASK = np.arange(TIME) < LENGTHS[:, None]
ALL = {"return_sequences": True, "return_state": True}


def randomised(layer, seed=0):
    """The layer, built, with weights that are all random, none zero."""
    if not layer.built:
        layer.build((None, TIME, INPUT))
    rng = np.random.default_rng(seed)
    layer.set_weights([(0.6 * rng.standard_normal(a.shape)).astype(a.dtype) for a in layer.get_weights()])
    return layer


def two_way(layer, **options):
    return layers.Bidirectional(layer, **options)


LAYERS = {
    "SimpleRNN": lambda: layers.SimpleRNN(HIDDEN, **ALL),
    "SimpleRNN relu": lambda: two_way(layers.SimpleRNN(HIDDEN, activation="relu", use_bias=False, **ALL)),
    "LSTM": lambda: layers.LSTM(HIDDEN, **ALL),
    "LSTM two-way": lambda: two_way(layers.LSTM(HIDDEN, **ALL), merge_mode="sum"),
    "GRU": lambda: two_way(layers.GRU(HIDDEN, **ALL)),
    "GRU reset before": lambda: two_way(layers.GRU(HIDDEN, reset_after=False, **ALL), merge_mode="ave"),
    "GRU apart": lambda: two_way(layers.GRU(HIDDEN, use_bias=False, **ALL), merge_mode=None),
}


@jax.jit
def run(module, x, lengths):
    return module(x, lengths=lengths)


@pytest.mark.parametrize("case", LAYERS)
def test_a_keras_layer_comes_and_goes(case):
    """Outputs where they are valid, final states, with ragged lengths; then every bit of the weights."""
    theirs = randomised(LAYERS[case]())
    module = from_keras(theirs)
    assert type(module.stack.cell).__name__ == (
        "ChungGRUCell" if "before" in case else f"{case.split()[0].removeprefix('Simple')}Cell"
    )
    x = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    want = jax.tree.leaves(theirs(x, mask=MASK))
    outputs, states = [a for a in want if a.ndim == 3], [a for a in want if a.ndim == 2]
    output, h_n = run(module, x, LENGTHS)
    for ours, one in zip(jax.tree.leaves(output), outputs, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[MASK], np.asarray(one)[MASK], rtol=1e-6, atol=1e-6)
    got = [field[d] for d in range(module.stack.num_directions) for field in jax.tree.leaves(h_n)]
    for ours, one in zip(got, states, strict=True):
        np.testing.assert_allclose(ours, one, rtol=1e-6, atol=1e-6)

    for a, b in zip(to_keras(module), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    randomised(theirs, seed=1).set_weights(to_keras(module))
    blank = nnx.eval_shape(lambda: from_keras(theirs))
    load_keras(blank, theirs.get_weights())
    np.testing.assert_array_equal(run(blank, x, LENGTHS)[1], h_n)


@pytest.mark.parametrize(
    ("cell", "kind", "options"),
    [
        (jaxrnn.LSTMCell(), layers.LSTM, {}),
        (jaxrnn.GRUCell(), layers.GRU, {}),
        (jaxrnn.ChungGRUCell(), layers.GRU, {"reset_after": False}),
    ],
)
def test_a_module_with_two_biases_goes_to_keras(cell, kind, options):
    """Which has one, or two; they are added where that is the same."""
    module = nnx.eval_shape(lambda: jaxrnn.Recurrent(cell, INPUT, HIDDEN, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    nnx.update(module, jax.tree.map(lambda a: jnp.asarray(0.6 * rng.standard_normal(a.shape), a.dtype), nnx.state(module)))
    layer = randomised(kind(HIDDEN, **options, return_sequences=True))
    layer.set_weights(to_keras(module))
    x = rng.standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    np.testing.assert_allclose(run(module, x, None)[0], layer(x), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU", "GRU reset before"])
def test_float64_is_kept(kind, x64):
    """Keras on JAX computes its own tanh of float64 in float32, so it is given JAX's."""
    options = {"reset_after": False} if "before" in kind else {}
    kind = getattr(layers, kind.split()[0])
    layer = randomised(kind(HIDDEN, dtype="float64", **options))
    module = from_keras(layer)
    assert module.params[0][0].w_ih.dtype == np.float64
    for a, b in zip(to_keras(module), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    exact = randomised(kind(HIDDEN, dtype="float64", activation=jnp.tanh, **options, **ALL))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)))
    want = jax.jit(lambda x: exact.stateless_call(exact.trainable_variables, exact.non_trainable_variables, x, mask=MASK)[0])(x)
    output, h_n = run(module, x, LENGTHS)
    np.testing.assert_allclose(np.asarray(output)[MASK], np.asarray(want[0])[MASK], rtol=1e-12, atol=1e-12)
    for ours, one in zip(jax.tree.leaves(h_n), want[1:], strict=True):
        np.testing.assert_allclose(ours[0], one, rtol=1e-12, atol=1e-12)


def model():
    """Layers of each kind, one of them in a model within the model, with names of their own."""
    inner = keras.Sequential([keras.Input((None, 4)), layers.GRU(4, return_sequences=True, name="deep")], name="inner")
    outer = keras.Sequential(
        [
            keras.Input((None, INPUT)),
            two_way(layers.LSTM(2, return_sequences=True), name="both ways"),
            layers.LSTM(4, return_sequences=True, name="one"),
            inner,
            layers.LSTM(4, return_sequences=True, name="two"),
            layers.LSTM(3, return_sequences=True, name="three"),
            layers.Dense(2),
        ]
    )
    return randomised(outer)


@pytest.mark.slow
def test_layers_are_found_in_models_and_files(tmp_path):
    theirs = model()
    theirs.save(tmp_path / "m.keras")
    theirs.save_weights(tmp_path / "m.weights.h5")
    find = {layer.name: layer for layer in [*theirs.layers, *theirs.get_layer("inner").layers]}
    names = {  # in the model; in a file of weights; the layers
        "both ways": ("bidirectional", [find["both ways"]]),
        "one": ("lstm", [find["one"]]),
        "inner/deep": ("sequential/gru", [find["deep"]]),
        ("two", "three"): (["lstm_1", "lstm_2"], [find["two"], find["three"]]),
    }
    for name, (stored, wanted) in names.items():
        name = list(name) if isinstance(name, tuple) else name
        want = [a for layer in wanted for a in layer.get_weights()]
        for source in (theirs, tmp_path / "m.keras", str(tmp_path / "m.keras")):
            module = from_keras(source, name)
            for a, b in zip(to_keras(module), want, strict=True):
                np.testing.assert_array_equal(a, b)
        for source, key in ((tmp_path / "m.keras", name), (tmp_path / "m.weights.h5", stored)):
            load_keras(module, source, key)
            for a, b in zip(to_keras(module), want, strict=True):
                np.testing.assert_array_equal(a, b)
        for a, b in zip(to_keras(from_keras(wanted)), want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert from_keras(theirs, ["two", "three"]).stack.hidden_size == (4, 3)
    with pytest.raises(ValueError, match=r"`layer` should be among .* 'both ways', 'one', 'inner/deep', .*, got \['four'\]"):
        from_keras(tmp_path / "m.keras", "four")
    with pytest.raises(ValueError, match=r"`layer` should be among .* 'bidirectional', 'lstm', .*, got None"):
        load_keras(module, tmp_path / "m.weights.h5")


def test_a_functional_model_is_a_file_too(tmp_path):
    x = keras.Input((None, INPUT))
    both = two_way(layers.GRU(4, return_sequences=True), name="enc_both")(x)
    theirs = randomised(keras.Model(x, [layers.LSTM(5, name="one")(both), layers.LSTM(2, name="other")(x)]))
    theirs.save(tmp_path / "m.keras")
    for name in ("enc_both", "one", "other"):
        for a, b in zip(to_keras(from_keras(tmp_path / "m.keras", name)), theirs.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes_are_kept(dtype, tmp_path):
    layer = layers.LSTM(4, dtype=dtype, recurrent_initializer="glorot_uniform")
    theirs = randomised(keras.Sequential([keras.Input((None, INPUT)), layer]))
    theirs.save(tmp_path / "m.keras")
    for source in (layer, tmp_path / "m.keras"):
        module = from_keras(source)
        assert module.params[0][0].w_hh.dtype == jnp.dtype(dtype)
        for a, b in zip(to_keras(module), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_refused(tmp_path):
    first, second = randomised(layers.LSTM(4)), layers.GRU(4)
    second.build((None, TIME, 4))
    with pytest.raises(ValueError, match=r"all layers should have the same cell, got"):
        from_keras([first, second])
    with pytest.raises(TypeError, match=r"`source` should be a Keras SimpleRNN, .* got Dense"):
        from_keras(layers.Dense(3))
    with pytest.raises(ValueError, match=r"(?s)layer .* should have weights, got none.\nBuild it first: call it"):
        from_keras(layers.LSTM(4))  # not built
    with pytest.warns(UserWarning, match=r"`recurrent_dropout`=0.5 of layer .* does not come along"):
        from_keras(randomised(layers.LSTM(4, recurrent_dropout=0.5)))
    with pytest.raises(ValueError, match=r"the cell should be one that Keras has .* got MGUCell"):
        to_keras(nnx.eval_shape(lambda: jaxrnn.Recurrent(jaxrnn.MGUCell(), 2, 3, rngs=nnx.Rngs(0))))

    with pytest.raises(TypeError, match=r"`source` should be a list of arrays, or the path .*, got int"):
        load_keras(from_keras(first), 3)

    module = from_keras(first)
    before = to_keras(module)
    for damage, message in [
        (before[:-1], r"weights\[2\] should be float32 \(16,\), got none"),
        ([*before, before[0]], r"weights\[3\] should not be there, got float32 \(3, 16\)"),
        ([before[0].T, *before[1:]], r"weights\[0\] should be float32 \(3, 16\), got float32 \(16, 3\)"),
        ([before[0].astype(np.float16), *before[1:]], r"weights\[0\] should be float32 \(3, 16\), got float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_keras(module, damage)
    keras.Sequential([keras.Input((None, INPUT)), first]).save(tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "m.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"`source` should be a whole .keras, .weights.h5 or .h5 file, got .*m.keras: File is not a zip file"
    ):
        from_keras(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"load_keras: `source` should be a whole .keras, .* file, got .*m.keras"):
        load_keras(module, tmp_path / "m.keras")
    with pytest.raises(FileNotFoundError):
        from_keras(tmp_path / "nowhere.keras")
    with pytest.raises(FileNotFoundError):
        load_keras(module, tmp_path / "nowhere.weights.h5")
    (tmp_path / "m.keras").write_bytes(whole)
    for wrong, message in [
        (nnx.eval_shape(lambda: jaxrnn.LSTM(INPUT, 5, rngs=nnx.Rngs(0))), r"weights\[0\] should be float32 \(3, 20\), got"),
        (
            nnx.eval_shape(lambda: jaxrnn.GRU(INPUT, 4, rngs=nnx.Rngs(0))),
            r"should be as `module`, GRUCell\(\) in one direction, got LSTMCell\(\)",
        ),
        (
            nnx.eval_shape(lambda: jaxrnn.LSTM(INPUT, 4, bidirectional=True, rngs=nnx.Rngs(0))),
            r"should be as `module`, LSTMCell\(\) in both directions with merge='concat', got LSTMCell\(\) in one",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            load_keras(wrong, tmp_path / "m.keras")
    for a, b in zip(to_keras(module), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_file_says_of_its_activation_is_heeded(tmp_path):
    """Weights of a relu layer would fit a tanh layer."""
    theirs = randomised(keras.Sequential([keras.Input((None, INPUT)), layers.SimpleRNN(4, activation="relu")]))
    theirs.save(tmp_path / "m.keras")
    tanh, relu = (jaxrnn.RNN(INPUT, 4, nonlinearity=φ, rngs=nnx.Rngs(0)) for φ in ("tanh", "relu"))
    before = to_keras(tanh)
    with pytest.raises(ValueError, match=r"as `module`, RNNCell\(\) in one direction, got RNNCell\(nonlinearity='relu'\)"):
        load_keras(tanh, tmp_path / "m.keras")
    for a, b in zip(to_keras(tanh), before, strict=True):
        np.testing.assert_array_equal(a, b)
    load_keras(relu, tmp_path / "m.keras")
    for a, b in zip(to_keras(relu), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_of_weights_alone_makes_no_module(tmp_path):
    """It does not say which layer it is of; with what to call instead."""
    keras.Sequential([keras.Input((None, INPUT)), layers.LSTM(4)]).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match=r"(?s)layer 'lstm' of .*m.weights.h5 should come .*load_keras\(module, path, 'lstm'\)"):
        from_keras(tmp_path / "m.weights.h5")
