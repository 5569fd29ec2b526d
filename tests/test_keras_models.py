"""What a model of Keras does around its recurrent layers: wrappers, masks, states, calls, and what stands between two layers. Each
is read as what it computes, refused, or told."""

import json
import os
import re
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interop import _keras_graph, from_keras, load_keras, to_keras

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables

TIME, BATCH, INPUT = 6, 4, 3
X = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
STEPS = {"return_sequences": True}


def randomised(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([(0.6 * rng.standard_normal(a.shape)).astype(a.dtype) for a in model.get_weights()])
    return model


def chain(*found, shape=(None, INPUT)):
    return randomised(keras.Sequential([keras.Input(shape), *found]))


def functional(call, *shapes):
    inputs = [keras.Input(shape) for shape in (shapes or ((None, INPUT),))]
    return randomised(keras.Model(inputs, call(*inputs)))


def sources(model, folder):
    """The model live, and as a file of each kind that says what it is."""
    paths = [folder / "m.keras", folder / "m.h5"]
    for path in paths:
        model.save(path)
    return [model, *paths]


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
    assert np.abs(np.asarray(theirs)).max() > 0.05


# Layers in layers ------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class Doubling(layers.Wrapper):
    """Somebody's own wrapper."""

    def call(self, x):
        return 2 * self.layer(2 * x)


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A layer that holds one, of which its configuration says nothing."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.LSTM(4, name="inner", **STEPS)

    def call(self, x):
        return 2 * self.inner(2 * x)


@keras.saving.register_keras_serializable(package="tests")
class Own(layers.LSTM):
    """A subclass with a call of its own."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return 2 * super().call(2 * sequences, initial_state, mask, training)


@keras.saving.register_keras_serializable(package="tests")
class Row(layers.Layer):
    """A layer whose configuration reads like that of a model."""

    def __init__(self, layers, **options):
        super().__init__(**options)
        self.layers = [keras.saving.deserialize_keras_object(one) if isinstance(one, dict) else one for one in layers]

    def call(self, x):
        for layer in self.layers:
            x = layer(2 * x)
        return x

    def get_config(self):
        return super().get_config() | {"layers": [keras.saving.serialize_keras_object(one) for one in self.layers]}


def inner_model():
    return keras.Sequential([keras.Input((None, INPUT)), layers.LSTM(4, name="inner")], name="model")


HOLDERS = {
    "TimeDistributed": (
        lambda: layers.TimeDistributed(layers.LSTM(4, name="inner"), name="outer"),
        (5, None, INPUT),
        "outer/inner",
    ),
    "of two directions": (
        lambda: layers.TimeDistributed(layers.Bidirectional(layers.LSTM(4), name="inner"), name="outer"),
        (5, None, INPUT),
        "outer/inner",
    ),
    "of a model": (lambda: layers.TimeDistributed(inner_model(), name="outer"), (5, None, INPUT), "outer/model/inner"),
    "a wrapper": (lambda: Doubling(layers.LSTM(4, name="inner"), name="outer"), (None, INPUT), "outer/inner"),
    "a block": (lambda: Block(name="outer"), (None, INPUT), "outer/inner"),
    "a row": (lambda: Row([layers.LSTM(4, name="inner", **STEPS)], name="outer"), (None, INPUT), "outer/inner"),
    "a subclass": (lambda: Own(4, name="outer"), (None, INPUT), "outer/lstm_cell"),
}


@pytest.mark.parametrize("case", HOLDERS)
def test_a_layer_within_another_is_not_taken_for_the_model(case, tmp_path):
    """`TimeDistributed(LSTM)` is no LSTM, and what somebody's own layer does nobody knows; what is inside has to be named."""
    make, shape, name = HOLDERS[case]
    model = chain(make(), shape=shape)
    own = "(outer|own|row|block|doubling|time_distributed)[\\w/]*"
    message = rf"`layer` should be given as '{own}', a part of a '[\w> ]+', which may do .* got None"
    for source in sources(model, tmp_path):
        with pytest.raises(ValueError, match=rf"from_keras: {message}"):
            from_keras(source)
    module = from_keras(model, name)
    for a, b in zip(to_keras(module), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    module = nnx.eval_shape(lambda: from_keras(model, name))
    for path in (tmp_path / "m.keras", tmp_path / "m.h5"):
        with pytest.raises(ValueError, match=rf"load_keras: {message}"):
            load_keras(module, path)


def test_a_model_in_a_model_is_the_model():
    inner = inner_model()
    model = chain(layers.Dense(INPUT), inner)
    module = from_keras(model)
    near(module(inner_input := model.layers[0](X))[1][0][0], inner(inner_input))


def test_a_wrapper_alone_is_refused():
    with pytest.raises(TypeError, match=r"`source` should be a Keras SimpleRNN, .*, got TimeDistributed\."):
        from_keras(layers.TimeDistributed(layers.LSTM(4)))
    with pytest.raises(TypeError, match=r"`source` should be a Keras SimpleRNN, .*, got Row\."):
        from_keras(Row([layers.LSTM(4)]))


# Masks, states, calls --------------------------------------------------------------------------------------------------


def embedded(*between):
    return lambda: chain(layers.Embedding(7, INPUT, mask_zero=True, name="ids"), *between, layers.LSTM(4, name="it"), shape=(None,))


TOLD = {
    "Masking": (lambda: chain(layers.Masking(name="pads"), layers.LSTM(4, name="it")), r"the mask of layer 'pads', if it reaches"),
    "Embedding": (
        embedded(),
        r"the mask of layer 'ids', if it reaches layer 'it'.*, does not come along: pass mask= or lengths=\.",
    ),
    "dropout between": (embedded(layers.Dropout(0.5)), r"the mask of layer 'ids', if it reaches"),
    "a recurrent layer between": (
        lambda: chain(layers.Masking(name="pads"), layers.GRU(4, name="first", **STEPS), layers.LSTM(4, name="it")),
        r"the mask of layer 'pads', if it reaches",
    ),
    "outside": (lambda: chain(layers.Masking(name="pads"), inner_model_named("it")), r"the mask of layer 'pads', if it reaches"),
    "inside": (
        lambda: chain(
            keras.Sequential([keras.Input((None, INPUT)), layers.Masking(name="pads")], name="m"), layers.LSTM(4, name="it")
        ),
        r"the mask of layer 'm/pads', if it reaches",
    ),
    "functional": (
        lambda: functional(lambda x: layers.LSTM(4, name="it")(layers.Masking(name="pads")(x))),
        r"the `mask` that the model feeds layer 'it'.* does not come along: pass it as mask=\.",
    ),
    "fed mask": (
        lambda: functional(lambda x, m: layers.LSTM(4, name="it")(x, mask=keras.ops.cast(m, "bool")), (None, INPUT), (None,)),
        r"the `mask` that the model feeds layer 'it'.* does not come along: pass it as mask=\.",
    ),
    "fed state": (
        lambda: functional(lambda x, h: layers.GRU(4, name="it")(x, initial_state=h), (None, INPUT), (4,)),
        r"the `initial_state` that the model feeds layer 'it'.* does not come along: pass it as h_0\.",
    ),
    "fed state of two directions": (
        lambda: functional(
            lambda x, h, c: layers.Bidirectional(layers.LSTM(4), name="it")(x, initial_state=[h, c, c, h]),
            (None, INPUT),
            (4,),
            (4,),
        ),
        r"the `initial_state` that the model feeds layer 'it'.* does not come along: pass it as h_0\.",
    ),
    "called twice": (
        lambda: functional(lambda x, layer=None: (layer := layers.LSTM(INPUT, name="it", **STEPS))(layer(x))),
        r"that the model calls layer 'it'.* 2 times does not come along: call the module as often\.",
    ),
    "called twice in a model": (
        lambda: functional(lambda x: keras.layers.Add()([(m := inner_model_named("it"))(x), m(2 * x)])),
        r"that the model calls layer 'it/it'.* 2 times does not come along",
    ),
}


def inner_model_named(name):
    return keras.Sequential([keras.Input((None, INPUT)), layers.LSTM(4, name=name)], name=name)


@pytest.mark.filterwarnings("ignore:Layer 'it' .of type Sequential. was passed an input with a mask")
@pytest.mark.parametrize("case", TOLD)
def test_what_a_model_does_with_a_layer_is_told(case, tmp_path):
    """Masks, states and a second call are the model's, and so they do not come along without a word; once each."""
    make, message = TOLD[case]
    model = make()
    for source in sources(model, tmp_path):
        name = "it/it" if "it/it" in paths_of(model) else "it"
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            module = from_keras(source, name)
        told = [str(one.message) for one in found if "from_keras" in str(one.message)]
        assert len(told) == 1
        assert re.search(message, told[0])
        assert module.stack.num_layers == 1


def paths_of(model, outer=""):
    for layer in model.layers:
        yield outer + layer.name
        yield from paths_of(layer, f"{outer}{layer.name}/") if hasattr(layer, "layers") else ()


def test_where_a_model_feeds_nothing_nothing_is_told(tmp_path):
    """A mask behind the layer, in another branch, or ended by a layer that puts out its last step alone."""

    def call(x, ids):
        masked = layers.LSTM(4)(layers.Embedding(7, INPUT, mask_zero=True)(ids))
        read = layers.LSTM(4, name="it", **STEPS)(x)
        last = layers.GRU(4, name="second")(layers.RepeatVector(3)(masked))
        return layers.LSTM(2, name="behind")(layers.Masking()(read)), last

    model = functional(call, (None, INPUT), (None,))
    for source in sources(model, tmp_path):
        for name in ("it", "second"):
            from_keras(source, name)
        with pytest.warns(UserWarning, match=r"the `mask` that the model feeds layer 'behind'"):
            from_keras(source, "behind")


@pytest.mark.slow
def test_a_masked_model_is_the_module_with_its_mask():
    """As the warning says."""
    ids = np.array([[3, 1, 2, 5], [4, 0, 0, 0], [2, 6, 0, 0]])
    model = chain(layers.Embedding(7, INPUT, mask_zero=True), layers.Bidirectional(layers.GRU(4), name="it"), shape=(None,))
    with pytest.warns(UserWarning, match="pass mask= or lengths="):
        module = from_keras(model)
    x = model.layers[0](ids)
    near(jnp.concatenate(list(module(x, mask=ids != 0)[1]), -1), model(ids))
    assert np.abs(jnp.concatenate(list(module(x)[1]), -1) - model(ids)).max() > 0.01


@pytest.mark.slow
def test_states_fed_by_a_model_are_the_modules_start():
    """An encoder and a decoder, each a module, and the states of the one for the other."""

    def call(x, y):
        _, h, c = layers.LSTM(4, return_state=True, name="encoder")(x)
        return layers.LSTM(4, name="decoder", **STEPS)(y, initial_state=[h, c])

    model = functional(call, (None, INPUT), (None, 2))
    encoder = from_keras(model, "encoder")
    with pytest.warns(UserWarning, match=r"pass it as h_0"):
        decoder = from_keras(model, "decoder")
    y = X[..., :2] + 1
    near(decoder(y, h_0=encoder(X)[1])[0], model([X, y]))
    with (
        pytest.warns(UserWarning, match="pass it as h_0"),
        pytest.raises(ValueError, match=r"'encoder' before 'decoder', got 'decoder', which reads an input of the model"),
    ):
        from_keras(model, ["encoder", "decoder"])


# Several layers as one module ------------------------------------------------------------------------------------------


def pair(first="a", second="b", **options):
    return layers.GRU(INPUT, name=first, **STEPS), layers.GRU(INPUT, name=second, **STEPS | options)


def model_within():
    first, second = pair()
    inner = keras.Sequential([keras.Input((None, INPUT)), layers.Dropout(0.5), first, layers.GaussianNoise(0.1)], name="m")
    return chain(inner, layers.SpatialDropout1D(0.2), second)


def functional_within():
    first, second = pair()
    x = keras.Input((None, INPUT))
    inner = keras.Model(x, second(layers.Dropout(0.1)(x)), name="m")
    return functional(lambda x: layers.Dense(2)(inner(layers.Identity()(first(x)))))


def masked(x):
    first, second = pair()
    return second(layers.Dropout(0.1)(first(layers.Masking(name="pads")(x))))


CHAINS = {
    "masked": (lambda: functional(masked), ["a", "b"]),
    "sequential": (lambda: chain(*pair(), layers.Dense(2)), ["a", "b"]),
    "functional": (lambda: functional(lambda x: (p := pair())[1](layers.Dropout(0.3)(p[0](layers.Dense(INPUT)(x))))), ["a", "b"]),
    "out of a model": (model_within, ["m/a", "b"]),
    "into a model": (functional_within, ["a", "m/b"]),
}


@pytest.mark.filterwarnings("ignore:.*does not come along")
@pytest.mark.parametrize("case", CHAINS)
def test_layers_that_follow_one_another_are_a_stack(case, tmp_path):
    """Through what acts in training only, and into models and out of them."""
    make, names = CHAINS[case]
    model = make()
    found = dict(zip(paths_of(model), every(model), strict=True))
    first, second = (found[name] for name in names)
    want = second(first(X))
    for source in sources(model, tmp_path):
        near(from_keras(source, names)(X)[0], want)
        with pytest.raises(ValueError, match=rf"{names[1]!r} before {names[0]!r}, got {names[0]!r}, which reads"):
            from_keras(source, names[::-1])
    module = nnx.eval_shape(lambda: from_keras(model, names))
    load_keras(module, tmp_path / "m.keras", names)
    near(module(X)[0], want)
    with pytest.raises(ValueError, match=r"load_keras: `layer` should name layers of which each reads"):
        load_keras(module, tmp_path / "m.h5", names[::-1])


def every(model):
    for layer in model.layers:
        yield layer
        yield from every(layer) if hasattr(layer, "layers") else ()


def branches(x):
    first, second = pair()
    return layers.Add()([first(x), second(x)])


def residual(x):
    first, second = pair()
    return second(layers.Add()([x, first(x)]))


def of_states(x):
    first = layers.GRU(INPUT, name="a", return_sequences=True, return_state=True)
    second = layers.GRU(INPUT, name="b", **STEPS)
    return second(layers.RepeatVector(3)(first(x)[1])), second


def twice(x):
    first, second = pair()
    return second(first(first(x)))


def own_mask(x, m):
    first, second = pair()
    return second(first(x), mask=keras.ops.cast(m, "bool"))


APART = {
    "Dense between": (lambda: chain((p := pair())[0], layers.Dense(INPUT, name="d"), p[1]), r"'b', which reads the output of 'd'"),
    "a norm between": (
        lambda: chain((p := pair())[0], layers.LayerNormalization(name="n"), p[1]),
        r"'b', which reads the output of 'n'",
    ),
    "a Masking between": (lambda: chain((p := pair())[0], layers.Masking(name="m"), p[1]), r"'b', which reads the output of 'm'"),
    "an autoencoder": (
        lambda: chain(layers.GRU(INPUT, name="a"), layers.RepeatVector(3, name="r"), layers.GRU(INPUT, name="b", **STEPS)),
        r"'b', which reads the output of 'r'",
    ),
    "another between": (
        lambda: chain((p := pair())[0], layers.GRU(INPUT, name="c", **STEPS), p[1]),
        r"'b', which reads the output of 'c'",
    ),
    "branches": (lambda: functional(branches), r"'b', which reads an input of the model"),
    "residual": (lambda: functional(residual), r"'b', which reads the output of 'add\w*'"),
    "states": (lambda: functional(lambda x: of_states(x)[0]), r"'b', which reads the output of 'repeat_vector\w*'"),
    "twice": (lambda: functional(twice), r"'a', which the model calls more than once"),
    "a mask": (lambda: functional(own_mask, (None, INPUT), (None,)), r"'b', which has another mask"),
}


@pytest.mark.filterwarnings("ignore:.*does not come along")
@pytest.mark.parametrize("case", APART)
def test_layers_with_something_between_them_are_no_stack(case, tmp_path):
    make, message = APART[case]
    model = make()
    for source in sources(model, tmp_path):
        with pytest.raises(
            ValueError, match=rf"(?s)layers of which each reads what .*, 'a' before 'b', got {message}\.\nLoad each"
        ):
            from_keras(source, ["a", "b"])


@pytest.mark.parametrize("output", [0, 1])
def test_two_directions_that_never_meet_are_no_sequence_for_another_layer(output, tmp_path):
    """Which can read the one or the other; a stack of ours whose directions never meet reads both."""
    both = [layers.Bidirectional(layers.GRU(INPUT, **STEPS), merge_mode=None, name=name) for name in "ab"]
    model = functional(lambda x: both[1](both[0](x)[output]))
    message = r"'b', which reads output 1 of 'a'" if output else r"`merge_mode` of layer 'a'.* should be one that gives one array"
    for source in sources(model, tmp_path):
        with pytest.raises(ValueError, match=message):
            from_keras(source, ["a", "b"])
    with pytest.raises(ValueError, match=r"`merge_mode` of layer 'a' should be one that gives one array"):
        from_keras(both)


def test_only_the_last_of_several_layers_puts_out_its_last_step_alone():
    first, second = layers.GRU(4, name="first"), layers.GRU(4, name="second")
    first.build((None, TIME, INPUT)), second.build((None, TIME, 4))
    with pytest.raises(
        ValueError, match=r"(?s)`return_sequences` of layer 'first' should be True, as another .*, got False.\nLoad each"
    ):
        from_keras([first, second])
    first.return_sequences = True
    assert from_keras([first, second]).stack.num_layers == 2


@pytest.mark.slow
def test_only_the_first_of_several_layers_goes_backwards(tmp_path):
    """The second would turn round once more what the first has turned round."""
    a, b = layers.LSTM(4, go_backwards=True, name="a", **STEPS), layers.LSTM(4, name="b", **STEPS)
    model = chain(a, b)
    for source, names in [([a, b], None), *((source, ["a", "b"]) for source in sources(model, tmp_path))]:
        near(from_keras(source, names, go_backwards=True)(X[:, ::-1])[0], model(X))
    model = chain(layers.LSTM(4, go_backwards=True, name="a", **STEPS), layers.LSTM(4, go_backwards=True, name="b", **STEPS))
    module = nnx.eval_shape(lambda: from_keras([a, b], go_backwards=True))
    for source, names in [(model.layers, None), *((source, ["a", "b"]) for source in sources(model, tmp_path))]:
        message = r"(?s)`go_backwards` of layer 'b'.* should be False, got True.\nIt turns the output of the layer before round"
        with pytest.raises(ValueError, match=message):
            from_keras(source, names, go_backwards=True)
        with pytest.raises(ValueError, match=message):
            load_keras(module, source, names, go_backwards=True) if names and source is not model else from_keras(
                model, ["a", "b"], go_backwards=True
            )
    first, second = (from_keras(model, name, go_backwards=True) for name in "ab")  # as it says
    near(second(first(X[:, ::-1])[0][:, ::-1])[0], model(X))


@pytest.mark.slow
def test_both_directions_backwards_before_another_layer():
    """All that a layer that goes backwards puts out, of both its directions, has time turned round."""
    a = layers.Bidirectional(
        layers.GRU(4, go_backwards=True, **STEPS), backward_layer=layers.GRU(4, **STEPS), name="a", merge_mode="sum"
    )
    b = layers.Bidirectional(layers.GRU(4, **STEPS), name="b", merge_mode="sum")
    model = chain(a, b)
    near(from_keras(model, ["a", "b"], go_backwards=True)(X[:, ::-1])[0], model(X))


# What a configuration says of time, and what it does not ---------------------------------------------------------------


def reconfigure(path, change):
    """Let a function change the entries of the layers in an `.h5` file, which becomes one of Keras 2."""
    with h5py.File(path, "r+") as store:
        tree = json.loads(store.attrs["model_config"])
        change(tree["config"]["layers"])
        store.attrs["model_config"] = json.dumps(tree)
        store.attrs["keras_version"] = "2.15.0"


def test_a_layer_with_time_first_is_read_so(tmp_path):
    """Keras 2 has `time_major`."""
    model = chain(layers.LSTM(4, name="it", **STEPS))
    model.save(tmp_path / "m.h5")

    def change(found):
        (layer,) = (layer for layer in found if layer["class_name"] == "LSTM")
        layer["config"]["time_major"] = True

    reconfigure(tmp_path / "m.h5", change)
    module = from_keras(tmp_path / "m.h5")
    near(module(X.swapaxes(0, 1))[0].swapaxes(0, 1), model(X))
    assert from_keras(tmp_path / "m.h5", batch_first=True).batch_first
    assert from_keras(model).batch_first


def keras_2(name, kind, *reads, **config):
    return {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": list(reads)}


def test_the_graphs_of_keras_2_are_understood():
    """Whose entries are lists: name, call, output, arguments; states stand behind the sequence."""
    call = lambda *names, **named: [[name, 0, index, named if k == 0 else {}] for k, (name, index) in enumerate(names)]
    graph = _keras_graph.Graph(
        {
            "class_name": "Functional",
            "config": {
                "layers": [
                    keras_2("x", "InputLayer"),
                    keras_2("e", "Embedding", call(("x", 0)), mask_zero=True),
                    keras_2("a", "LSTM", call(("e", 0)), return_sequences=True),
                    keras_2("drop", "Dropout", call(("a", 0)), call(("e", 0))),
                    keras_2("b", "LSTM", call(("a", 0), ("a", 1), ("a", 2)), return_sequences=True),
                    keras_2("c", "LSTM", call(("b", 0), mask=["e", 0, 0])),
                    keras_2("d", "GRU", call(("c", 1)), call(("a", 0))),
                    keras_2("f", "GRU", call(("a", 1))),
                ]
            },
        }
    )
    assert graph.origin(("a",)) == ("e",)
    assert graph.origin(("b",)) == ("a",)
    assert graph.origin(("c",)) == ("b",)
    assert graph.origin(("d",)) == "2 sequences in turn"
    assert graph.origin(("f",)) == "output 1 of 'a'"
    assert [graph.fed((name,)) for name in "abc"] == [{}, {"initial_state": [("a", 1), ("a", 2)]}, {"mask": [("e", 0)]}]
    assert [graph.calls((name,)) for name in "abcd"] == [1, 1, 1, 2]
    assert graph.masks(("b",)) == ["e"]


@pytest.mark.parametrize(
    "nodes",
    [None, 7, "x", {}, [[]], [[["x"]]], [[["x", 0, "0", {}]]], [{"args": 3, "kwargs": []}], [{"args": [], "kwargs": {"mask": 1}}]],
    ids=str,
)
def test_a_graph_without_sense_is_not_told(nodes, tmp_path):
    """And so nobody says that two of its layers are a stack; each alone is what it is."""
    model = functional(lambda x: (p := pair())[1](p[0](x)))
    model.save(tmp_path / "m.h5")

    def change(found):
        (layer,) = (layer for layer in found if layer["config"]["name"] == "b")
        layer["inbound_nodes"] = nodes

    reconfigure(tmp_path / "m.h5", change)
    with pytest.raises(ValueError, match=r"got 'b', which reads something that the model does not tell\."):
        from_keras(tmp_path / "m.h5", ["a", "b"])
    assert from_keras(tmp_path / "m.h5", "b").stack.cell == jaxrnn.GRUCell()


def test_a_graph_that_ends_in_itself_is_not_told():
    entries = [keras_2("a", "Dropout", [["b", 0, 0, {}]]), keras_2("b", "Dropout", [["a", 0, 0, {}]])]
    graph = _keras_graph.Graph({"class_name": "Functional", "config": {"layers": entries}})
    assert graph.origin(("a",)) == "something that the model does not tell"
    assert graph.masks(("a",)) == []
