"""ONNX graphs that look like a stack, a constant or a state and are none, and those that are, against onnxruntime."""

import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interop import from_onnx, onnx_node, onnx_nodes, to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_interop_onnx import assert_close, run_node, run_onnxruntime  # noqa: E402
from test_interop_onnx import run_module as run_with_jax  # noqa: E402
from test_onnx_random import run_module as run_in_numpy  # noqa: E402

TIME, BATCH, INPUT, HIDDEN = 5, 2, 3, 4
RNG = np.random.default_rng(3)
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def run_module(module, x, h_0=None, lengths=None):
    """In NumPy, by the parameters, which compiles nothing; what JAX computes from them, other tests say."""
    return run_in_numpy(module, x, None if h_0 is None else [h_0], lengths)


def random(*shape):
    return (0.7 * RNG.standard_normal(shape)).astype(np.float32)


def weights(op, name, width=INPUT, directions=1, hidden=HIDDEN):
    rows = GATES[op] * hidden
    return {
        f"{name}.W": random(directions, rows, width),
        f"{name}.R": random(directions, rows, hidden),
        f"{name}.B": random(directions, 2 * rows),
    }


def layer(op, name, x, *rest, **attributes):
    """A recurrent node whose outputs are `name`, `name`_h and `name`_c."""
    outputs = [name, f"{name}_h"] + [f"{name}_c"] * (op == "LSTM")
    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    return helper.make_node(
        op, [x, f"{name}.W", f"{name}.R", f"{name}.B", *rest], outputs, name=name, hidden_size=HIDDEN, **extra, **attributes
    )


def make(nodes, constants, outputs, inputs=None, opset=17):
    """A model fed with `x`, (time, batch, input) of any sizes, and what else is given."""
    inputs = {"x": (("t", "b", INPUT), np.float32)} | (inputs or {})
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(d)), s) for n, (s, d) in inputs.items()]
    graph = helper.make_graph(
        nodes, "graph", values, [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def sizes(*given):
    return np.array(given, np.int64)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


# What depends on sizes -----------------------------------------------------------------------------------------------------

ROW = random(1, 1, HIDDEN)
BATCHES = {
    "Shape, start and end": [node("Shape", "x", "n", start=1, end=2)],
    "Shape, start from the end": [node("Shape", "x", "n", start=-2, end=-1)],
    "Shape, Gather": [node("Shape", "x", "all"), node("Gather", "all one", "n")],
    "Shape, Gather, Unsqueeze": [node("Shape", "x", "all"), node("Gather", "all at", "k"), node("Unsqueeze", "k zero", "n")],
    "Shape, Slice": [node("Shape", "x", "all"), node("Slice", "all one two", "n")],
    "Shape, Split": [node("Shape", "x", "all"), node("Split", "all three", "t n f")],
    "Shape of a product": [node("MatMul", "x square", "y"), node("Shape", "y", "n", start=1, end=2)],
    "Size, Div": [
        node("Size", "x", "all"),
        node("Shape", "x", "t", start=0, end=1),
        node("Div", "all t", "q"),
        node("Div", "q width", "n"),
    ],
}
STATES = {
    "Expand": ([node("Concat", "one n four", "s", axis=0), node("Expand", "row s", "h")], ROW),
    "Expand, with ones for what stays": ([node("Concat", "one n one", "s", axis=0), node("Expand", "row s", "h")], ROW),
    "ConstantOfShape": (
        [
            node("Concat", "one n four", "s", axis=0),
            node("ConstantOfShape", "s", "h", value=numpy_helper.from_array(np.float32([0.5]))),
        ],
        np.full((1, 1, HIDDEN), 0.5),
    ),
    "Tile": ([node("Concat", "one n one", "s", axis=0), node("Tile", "row s", "h")], ROW),
    "Tile, Transpose": (
        [node("Concat", "n one one", "s", axis=0), node("Tile", "row s", "rows"), node("Transpose", "rows", "h", perm=[1, 0, 2])],
        ROW,
    ),
    "Where, as torch's expand": (
        [
            node("Concat", "one n four", "s", axis=0),
            node("ConstantOfShape", "three_long", "ones", value=numpy_helper.from_array(sizes(1))),
            node("Mul", "ones minus", "minuses"),
            node("Equal", "s minuses", "is"),
            node("Where", "is ones s", "w"),
            node("Expand", "row w", "h"),
        ],
        ROW,
    ),
    "arithmetic": (
        [
            node("Concat", "one n four", "s", axis=0),
            node("Expand", "row s", "p"),
            node("Add", "p half", "q"),
            node("Tanh", "q", "h"),
        ],
        np.tanh(ROW + np.float32(0.5)),
    ),
}
SMALL = {
    "one": sizes(1), "two": sizes(2), "zero": sizes(0), "four": sizes(HIDDEN), "at": np.int64(1), "three": sizes(1, 1, 1),
    "three_long": sizes(3), "minus": sizes(-1), "row": ROW, "half": np.float32(0.5),
    "width": sizes(INPUT), "square": random(INPUT, INPUT),
}  # fmt: skip


@pytest.mark.parametrize(("batch", "state"), [(b, "Expand") for b in BATCHES] + [("Shape, start and end", s) for s in STATES])
def test_an_initial_state_that_depends_on_sizes_is_the_modules(batch, state):
    nodes, row = STATES[state]
    model = make([*BATCHES[batch], *nodes, layer("GRU", "a", "x", "", "h")], weights("GRU", "a") | SMALL, ["a", "a_h"])
    module = from_onnx(model)
    np.testing.assert_allclose(module.learned[0][0].h[...], np.float32(row)[0, 0], rtol=1e-6)
    for rows in (1, 3):
        x = random(TIME, rows, INPUT)
        y, h = run_onnxruntime(model, {"x": x})
        assert_close(run_module(module, x), (y[:, 0], h), 1e-5)
        if (batch, state) == ("Size, Div", "Expand"):
            assert_close(run_with_jax(module, x), (y[:, 0], h), 1e-5)
            assert_close(run_node(onnx_node(model), {"X": x}), (y, h), 1e-5)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Mystery", "row", "h", domain="elsewhere")], r"elsewhere::Mystery is not evaluated here"),
        ([node("RandomNormal", "", "h", shape=[1, 1, HIDDEN])], r"RandomNormal: it draws at random"),
        ([node("RandomNormalLike", "x", "h")], r"RandomNormalLike: it draws at random"),
        ([node("Mystery", "x", "m", domain="elsewhere"), node("Shape", "m", "s"),
             node("Expand", "row s", "h")], r"axes of what it reads"),
        ([node("Shape", "x", "s"), node("Cast", "s", "f", to=1),
             node("Expand", "f one", "g"), node("Mul", "row g", "h")], r"depends on the sizes"),
        ([node("Expand", "row nowhere", "h")], r"'nowhere' is neither an input of the graph nor computed in it"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_told_is_an_error(nodes, reason):
    """It is never taken for fed, or for zeros."""
    model = make([*nodes, layer("GRU", "a", "x", "", "h")], weights("GRU", "a") | SMALL, ["a"])
    for call in (from_onnx, onnx_node, lambda model: from_onnx(model, "a")):
        with pytest.raises(ValueError, match=rf"`initial_h` of node 'a' should .*{reason}"):
            call(model)


def test_a_state_computed_from_what_is_fed_is_left_to_who_names_the_node():
    nodes = [node("ReduceMean", "x", "h", axes=[0], keepdims=1), layer("GRU", "a", "x", "", "h")]
    model = make(nodes, weights("GRU", "a", HIDDEN), ["a"], {"x": (("t", "b", HIDDEN), np.float32)})
    with pytest.raises(ValueError, match=r"(?s)`initial_h` of node 'a' should be an input of the graph.*by ReduceMean.*node='a'"):
        from_onnx(model)
    x = random(TIME, BATCH, HIDDEN)
    assert_close(run_module(from_onnx(model, "a"), x, x.mean(0, keepdims=True))[0], run_onnxruntime(model, {"x": x})[0][:, 0], 1e-5)


@pytest.mark.parametrize(("first", "second", "good"), [(0, 1, True), (1, 0, False), (0, 0, False)])
def test_fed_rows_of_states_are_those_of_the_layers_in_their_order(first, second, good):
    nodes = [node("Gather", f"h_0 k{first}", "g", axis=0), node("Gather", f"h_0 k{second}", "h", axis=0)]
    nodes += [layer("GRU", "a", "x", "", "g"), node("Squeeze", "a one", "y"), layer("GRU", "b", "y", "", "h")]
    constants = weights("GRU", "a") | weights("GRU", "b", HIDDEN) | SMALL | {"k0": sizes(0), "k1": sizes(1)}
    model = make(nodes, constants, ["b"], {"h_0": ((2, "b", HIDDEN), np.float32)})
    if not good:
        with pytest.raises(ValueError, match=r"`initial_h` should be the rows of one input of the graph, in the order of layers"):
            from_onnx(model)
        return
    x, h = random(TIME, BATCH, INPUT), random(2, BATCH, HIDDEN)
    assert_close(run_module(from_onnx(model), x, h)[0], run_onnxruntime(model, {"x": x, "h_0": h})[0][:, 0], 1e-5)


# What stands between two nodes -----------------------------------------------------------------------------------------------


def two_layers(between, *, directions=1, lengths=("", ""), outputs=("b",), **more):
    """Two nodes, with nodes from `a` to `y` between them."""
    attributes = {"direction": "bidirectional"} if directions == 2 else {}
    nodes = [layer("LSTM", "a", "x", lengths[0], **attributes), *between, layer("LSTM", "b", "y", lengths[1], **attributes)]
    constants = weights("LSTM", "a", INPUT, directions) | weights("LSTM", "b", directions * HIDDEN, directions) | SMALL
    constants |= {"flat": sizes(-1, 1, HIDDEN), "keep": sizes(0, 0, -1), "rows": sizes(-1, HIDDEN), "both": sizes(0, -1, HIDDEN)}
    return make(nodes, constants | more.pop("constants", {}), list(outputs), **more)


SIDES = [node("Split", "a", "f r", axis=1), node("Squeeze", "f one", "g"), node("Squeeze", "r one", "s")]
IDENTITIES = {
    "Squeeze": ([node("Squeeze", "a one", "y")], 1),
    "Transpose, Reshape": ([node("Transpose", "a", "t", perm=[0, 2, 1, 3]), node("Reshape", "t keep", "y")], 2),
    "Reshape alone, one direction": ([node("Reshape", "a keep3", "y")], 1),
    "Split, Concat": ([*SIDES, node("Concat", "g s", "y", axis=2)], 2),
    "Identity, Dropout, Cast": ([node("Squeeze", "a one", "p"), node("Identity", "p", "q"),
         node("Dropout", "q", "r"), node("Cast", "r", "y", to=1)], 1),
    "there and back": ([node("Squeeze", "a one", "p"), node("Shape", "p", "s"),
         node("Reshape", "p rows", "q"), node("Reshape", "q s", "y")], 1),
    "two swaps": ([node("Squeeze", "a one", "p"), node("Transpose", "p", "q", perm=[1, 0, 2]),
         node("Transpose", "q", "y", perm=[1, 0, 2])], 1),
}  # fmt: skip


@pytest.mark.parametrize("case", IDENTITIES)
def test_nodes_with_the_identity_between_them_are_a_stack(case):
    between, directions = IDENTITIES[case]
    model = two_layers(between, directions=directions, constants={"keep3": sizes(0, -1, HIDDEN)}, outputs=("b", "b_h"))
    module = from_onnx(model)
    assert module.stack.num_layers == 2
    for rows in (1, 3):
        x = random(TIME, rows, INPUT)
        y, h = run_onnxruntime(model, {"x": x})
        got, states = run_module(module, x)
        assert_close((got, states[directions:]), (np.concatenate(list(np.moveaxis(y, 1, 0)), -1), h), 1e-5)


OTHERS = {
    "all rows as one sequence": ([node("Squeeze", "a one", "p"),
         node("Reshape", "p flat", "y")], 1, r"Squeeze, Reshape to \(-1, 1, 4\)"),
    "directions exchanged": ([*SIDES, node("Concat", "s g", "y", axis=2)], 2, "Split, Squeeze, Concat"),
    "one direction of two, twice": ([*SIDES, node("Concat", "g g", "y", axis=2)], 2, "Split, Squeeze, Concat"),
    "time and batch exchanged": ([node("Squeeze", "a one", "p"),
         node("Transpose", "p", "y", perm=[1, 0, 2])], 1, r"Transpose \(1, 0, 2\)"),
    "directions not joined": ([node("Reshape", "a keep", "y")], 2, r"Reshape to \(0, 0, -1\)"),
    "a relu": ([node("Squeeze", "a one", "p"), node("Relu", "p", "y")], 1, "Squeeze, Relu"),
    "the last step first": ([node("Squeeze", "a one", "p"), node("Slice", "p minus lowest zero minus", "y")], 1, "Squeeze, Slice"),
    "a longer chain": (
        [
            node("Reshape", "a flat", "p"), node("Transpose", "p", "q", perm=[1, 0, 2]), node("Reshape", "q flat", "r"),
            node("Transpose", "r", "s", perm=[1, 0, 2]), node("Reshape", "s rows", "t"), node("Unsqueeze", "t one", "y"),
        ], 1, "Reshape to .*Transpose .*Reshape to .*Transpose .*Reshape to .*Unsqueeze",
    ),
    "another output": ([node("Identity", "a_h", "y")], 1, "_h of 'a' through Identity"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_nodes_with_anything_else_between_them_are_refused_with_what_it_is(case):
    between, directions, words = OTHERS[case]
    model = two_layers(between, directions=directions, constants={"lowest": sizes(-(2**63))})
    with pytest.raises(
        ValueError, match=rf"(?s)'a' \(LSTM\) reads 'x'\n  'b' \(LSTM\) reads Y.*{words}.*Load each apart: node='a' or node='b'"
    ):
        from_onnx(model)
    with pytest.raises(ValueError, match=r"together they are no stack, got \['a', 'b'\]"):
        from_onnx(model, ["a", "b"])
    assert [info.stack for info in onnx_nodes(model)] == [("a",), ("b",)]
    assert from_onnx(model, "b").stack.num_layers == 1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("n", "n", True),
        ("n", "n2", True),
        ("n", "m", False),
        ("n", "", False),
        ("", "n", False),
        ("n", "less", False),
        ("full", "", True),
    ],
)
def test_two_nodes_are_a_stack_only_with_the_same_lengths(first, second, same):
    """The same by another name, and the whole time, are the same."""
    extra = [
        node("Identity", "n", "n1"), node("Cast", "n1", "n2", to=TensorProto.INT32), node("Sub", "n ones", "less"),
        node("Shape", "x", "t", start=0, end=1), node("Shape", "x", "k", start=1, end=2), node("Expand", "t k", "f"),
        node("Cast", "f", "full", to=TensorProto.INT32),
    ]  # fmt: skip
    lens = dict.fromkeys("nm", (("b",), np.int32))
    made = two_layers(
        [node("Squeeze", "a one", "y")], lengths=(first, second), inputs=lens, constants={"ones": np.ones(1, np.int32)}
    )
    model, rest = onnx.ModelProto.FromString(made.SerializeToString()), list(made.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*extra, *rest])  # nodes stand behind what they read
    if not same:
        with pytest.raises(ValueError, match=r"'b' has other `sequence_lens` than 'a'"):
            from_onnx(model)
        return
    x, n = random(TIME, BATCH, INPUT), np.array([5, 2], np.int32)
    want = run_onnxruntime(model, {"x": x, "n": n, "m": n})[0]
    assert_close(run_module(from_onnx(model), x, None, n if first == "n" else None)[0], want[:, 0], 1e-5)


FLIPS = {
    "Slice": ([node("Slice", "x minus lowest zero minus", "flip")], False),
    "Slice, backward first": ([node("Slice", "x minus lowest zero minus", "flip")], True),
    "Gather": ([node("Gather", "x back", "flip", axis=0)], False),
    "ReverseSequence": ([node("ReverseSequence", "x whole", "flip", time_axis=0, batch_axis=1)], False),
}


@pytest.mark.parametrize("case", FLIPS)
def test_two_directions_made_by_hand_are_refused_with_the_two_to_load(case):
    flips, backward_first = FLIPS[case]
    pair = [layer("LSTM", "fw", "x"), layer("LSTM", "bw", "flip")]
    nodes = [*flips, *(pair[::-1] if backward_first else pair)]
    constants = weights("LSTM", "fw") | weights("LSTM", "bw") | SMALL | {"lowest": sizes(-(2**63))}
    constants |= {"back": sizes(*reversed(range(TIME))), "whole": sizes(*[TIME] * BATCH)}
    model = make(nodes, constants, ["fw", "bw"])
    first, second = ("bw", "fw") if backward_first else ("fw", "bw")
    with pytest.raises(
        ValueError,
        match=rf"(?s)'bw' \(LSTM\) reads 'x' through {case.split(',')[0]}"
        rf".*Are '{first}' and '{second}' the two directions of a layer made by hand\?",
    ):
        from_onnx(model)
    x = random(TIME, BATCH, INPUT)
    fw, bw = run_onnxruntime(model, {"x": x})
    assert_close(run_module(from_onnx(model, "fw"), x)[0], fw[:, 0], 1e-5)
    assert_close(run_module(from_onnx(model, "bw"), x[::-1].copy())[0], bw[:, 0], 1e-5)


# The layout ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(True, True), (False, False), (True, False), (False, True)])
def test_the_layout_is_that_of_the_graph_or_asked_for(before, after):
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2])] * before
    nodes += [layer("GRU", "a", "t" if before else "x"), node("Squeeze", "a one", "s"), node("Transpose", "s", "u", perm=[1, 0, 2])]
    model = make(nodes, weights("GRU", "a") | SMALL, ["u" if after else "s"])
    if before != after:
        with pytest.raises(ValueError, match=r"`batch_first` should be given, since what node 'a' reads is .*, got None"):
            from_onnx(model)
        assert from_onnx(model, batch_first=True).batch_first
        return
    module, x = from_onnx(model), random(TIME, BATCH, INPUT)
    assert module.batch_first == before
    assert_close(run_module(module, x)[0], run_onnxruntime(model, {"x": x})[0], 1e-5)
    assert from_onnx(model, batch_first=not before).batch_first != before


# Listing ---------------------------------------------------------------------------------------------------------------------


def test_the_nodes_of_a_graph_are_listed_once_and_read_from_there(tmp_path):
    """What the list holds needs no file any more, so that nothing is parsed again."""
    module = jaxrnn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, rngs=nnx.Rngs(0))
    to_onnx(module, tmp_path / "m.onnx", lengths=True, states=True)
    nodes = onnx_nodes(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").unlink()
    assert [(n.name, n.op, n.input_size, n.hidden_size, n.direction, n.stack, n.layer) for n in nodes] == [
        ("layer_0", "LSTM", INPUT, HIDDEN, "bidirectional", ("layer_0", "layer_1"), 0),
        ("layer_1", "LSTM", 2 * HIDDEN, HIDDEN, "bidirectional", ("layer_0", "layer_1"), 1),
    ]
    assert nodes[1].inputs == {
        "X": "layer_0.output", "W": "layer_1.W", "R": "layer_1.R", "B": "layer_1.B", "sequence_lens": "lengths",
        "initial_h": "layer_1.initial_h", "initial_c": "layer_1.initial_c",
    }  # fmt: skip
    again, second = from_onnx(nodes), from_onnx(nodes[1])
    np.testing.assert_array_equal(again.params[1][1].w_hh[...], module.params[1][1].w_hh[...])
    np.testing.assert_array_equal(second.params[0][0].w_ih[...], module.params[1][0].w_ih[...])
    np.testing.assert_array_equal(onnx_node(nodes, "layer_1").params[1].w_ih, module.params[1][1].w_ih[...])
    np.testing.assert_array_equal(onnx_node(nodes, nodes[0]).params[0].w_ih, module.params[0][0].w_ih[...])
    other = onnx_nodes(to_onnx(jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match=r"`source` should hold nodes of one graph, got those of 2"):
        from_onnx([nodes[0], other[0]])
    with pytest.raises(TypeError, match=r"`source` should hold nodes that `onnx_nodes` returned, got str"):
        from_onnx(["a"])
    with pytest.raises(TypeError, match=r"`node` should be the name of one recurrent node, or a list of names, got int"):
        from_onnx(nodes, 3)


def test_weights_given_later_are_taken_without_parsing_again():
    arrays = weights("GRU", "a")
    nodes = onnx_nodes(make([layer("GRU", "a", "x")], {}, ["a"], {n: (a.shape, np.float32) for n, a in arrays.items()}))
    assert nodes[0].input_size == INPUT
    with pytest.raises(ValueError, match=r"W of node 'a' should be constant, got 'a.W', which comes from an input"):
        from_onnx(nodes)
    module = from_onnx(nodes, weights=arrays)
    np.testing.assert_array_equal(module.params[0][0].w_ih[...][:, 2].T, arrays["a.W"][0, 2 * HIDDEN :])


# Writing -------------------------------------------------------------------------------------------------------------------------


class Sum(nnx.Module):
    """Attributes of the names that a model has, and another computation."""

    def __init__(self, rngs):
        self.rnn = jaxrnn.GRU(1, 1, rngs=rngs)
        self.fc = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, x):
        return x[:, -1] + self.fc(self.rnn(x)[1][-1])


class Relu(jaxrnn.models.GRUModel):
    def __call__(self, x):
        return self.fc(nnx.relu(self.rnn(x)[1][-1]))


class EveryStep(Sum):
    def __call__(self, x):
        return self.fc(self.rnn(x)[0])


class Tagger(Sum):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.embed, self.norm = nnx.Embed(7, 1, rngs=rngs), nnx.LayerNorm(1, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.norm(self.rnn(self.embed(x))[0]))


@pytest.mark.parametrize("make", [Sum, EveryStep, Tagger, lambda rngs: Relu(1, 1, 1, rngs=rngs)])
def test_a_module_with_a_call_of_its_own_is_refused(make, tmp_path):
    module = make(rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=r"(?s)to_onnx: `module` should be a jaxrnn.RNN, LSTM, GRU or Recurrent, or a model .*Pass its `.rnn`"
    ):
        to_onnx(module, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert to_onnx(module.rnn).graph.node


NAMES = ["hard_sigmoid", "hard_sigmoid_keras2", "relu", "elu", "softplus", "softsign", "linear", "sigmoid", "tanh"]


@pytest.mark.parametrize(
    ("cell", "name"),
    [(jaxrnn.LSTMCell, name) for name in NAMES]
    + [(cell, name) for cell in (jaxrnn.GRUCell, jaxrnn.ChungGRUCell) for name in NAMES[:3]],
)
def test_cells_with_activations_of_their_own_are_written_with_them(cell, name):
    gate = name if name.startswith("hard") else "sigmoid"
    module = jaxrnn.Recurrent(cell(activation=name, recurrent_activation=gate), INPUT, HIDDEN, rngs=nnx.Rngs(0))
    x = random(BATCH, TIME, INPUT)
    assert_close(run_with_jax(module, x)[0], run_onnxruntime(to_onnx(module), {"x": x})[0], 1e-5)


def test_an_activation_that_onnx_lacks_is_refused():
    for cell in (
        jaxrnn.LSTMCell(activation="selu"),
        jaxrnn.RNNCell(nonlinearity="silu"),
        jaxrnn.GRUCell(recurrent_activation="silu"),
    ):
        with pytest.raises(
            ValueError, match=r"activation` of the cell should be .*, as in ONNX, got|`nonlinearity` of the cell should be"
        ):
            to_onnx(jaxrnn.Recurrent(cell, 2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"`recurrent_activation` of the cell should be 'sigmoid' or 'hard_sigmoid' or .*got 'relu'"
    ):
        to_onnx(jaxrnn.Recurrent(jaxrnn.ChungGRUCell(recurrent_activation="relu"), 2, 3, rngs=nnx.Rngs(0)))
