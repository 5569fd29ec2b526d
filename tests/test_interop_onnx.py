"""Recurrent nodes of ONNX as functions and modules, against onnxruntime, and modules as ONNX models."""

import re
import warnings
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from jaxrnn.interop import from_onnx, onnx_node, to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

TIME, BATCH, INPUT, HIDDEN = 6, 4, 3, 5
LENGTHS = np.array([6, 2, 5, 1], np.int32)
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
ALL = ("W", "R", "B", "sequence_lens", "initial_h", "initial_c")
SLOTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def random_arrays(op, slots, directions=1, dtype=np.float32, seed=0):
    """For each input of a node its array; every gate and direction has weights of its own, no bias is zero."""
    rng = np.random.default_rng(seed)
    rows = GATES[op] * HIDDEN
    shapes = {
        "X": (TIME, BATCH, INPUT),
        "W": (directions, rows, INPUT),
        "R": (directions, rows, HIDDEN),
        "B": (directions, 2 * rows),
        "P": (directions, 3 * HIDDEN),
        "initial_h": (directions, BATCH, HIDDEN),
        "initial_c": (directions, BATCH, HIDDEN),
    }
    arrays = {slot: (0.7 * rng.standard_normal(shape)).astype(dtype) for slot, shape in shapes.items()}
    arrays["sequence_lens"] = LENGTHS
    return {slot: a for slot, a in arrays.items() if slot in ("X", *slots) and (slot != "initial_c" or op == "LSTM")}


def make_node(op, arrays, **attributes):
    """A node that reads values named after its inputs."""
    inputs = [slot if slot in arrays else "" for slot in SLOTS]
    while not inputs[-1]:
        inputs.pop()
    outputs = ["Y", "Y_h", "Y_c"] if op == "LSTM" else ["Y", "Y_h"]
    return helper.make_node(op, inputs, outputs, name="/a/node", **{"hidden_size": HIDDEN} | attributes)


def make_model(nodes, constants, fed, opset=14, ir_version=8, outputs=("Y",)):
    """A model with `constants` as initialisers, fed with arrays like `fed`."""

    def value(name, a):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)

    tensors = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    inputs = [value(name, a) for name, a in fed.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def recurrent_model(op, arrays, **attributes):
    """A model of one node with constant weights, and what to feed it."""
    constants = {slot: a for slot, a in arrays.items() if slot in ("W", "R", "B", "P")}
    fed = {slot: a for slot, a in arrays.items() if slot not in constants}
    node = make_node(op, arrays, **attributes)
    return make_model([node], constants, fed, outputs=node.output), fed


def run_onnxruntime(model, fed):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more of them wait for work, at full load
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, fed)


@jax.jit
def run_node(node, fed):
    return node(fed["X"], *(fed.get(slot) for slot in ("sequence_lens", "initial_h", "initial_c")))


@jax.jit
def run_module(module, x, h_0=None, lengths=None):
    return module(x, h_0=h_0, lengths=lengths)


def assert_close(got, want, tolerance=1e-6):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert [a.shape for a in got] == [a.shape for a in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def arrays_of(module):
    return [np.asarray(a) for a in jax.tree.leaves(nnx.state(module, nnx.Param))]


def make_module(cell, *sizes, seed=0, **options):
    return randomised(lambda: jaxrnn.Recurrent(cell, *sizes, **options, rngs=nnx.Rngs(0)), seed)


def randomised(make, seed=0):
    """A module whose parameters are all random, none zero."""
    module = nnx.eval_shape(make)
    rng = np.random.default_rng(seed)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda a: jnp.asarray(0.6 * rng.standard_normal(a.shape), a.dtype), state))
    return module


# Reading a node -----------------------------------------------------------------------------------

HARD = {"activations": ["HardSigmoid", "Softsign", "Elu"], "activation_alpha": [0.3, 0.7], "activation_beta": [0.45]}
HARD_TWICE = {name: 2 * values for name, values in HARD.items()}
TWO = {
    "direction": "bidirectional",
    "activations": ["Sigmoid", "ScaledTanh", "hardsigmoid", "LeakyRelu"],
    "activation_alpha": [0.8, 0.3, 0.05],
    "activation_beta": [0.9, 0.45],
}

NODES = {
    "RNN": ("RNN", ALL, {}, jaxrnn.RNNCell),
    "RNN reverse": ("RNN", ("W", "R"), {"direction": "reverse", "activations": ["Relu"]}, jaxrnn.RNNCell),
    "RNN clip": ("RNN", ALL, {"clip": 0.3, "direction": "bidirectional"}, None),
    "LSTM": ("LSTM", ALL, {}, jaxrnn.LSTMCell),
    "LSTM two-way": ("LSTM", ALL, {"direction": "bidirectional"}, jaxrnn.LSTMCell),
    "LSTM h only": ("LSTM", ("W", "R", "initial_h"), {"direction": "reverse"}, jaxrnn.LSTMCell),
    "LSTM peepholes": ("LSTM", (*ALL, "P"), {"direction": "bidirectional"}, jaxrnn.PeepholeLSTMCell),
    "LSTM coupled": ("LSTM", ALL, {"input_forget": 1}, jaxrnn.CoupledLSTMCell),
    "LSTM everything": ("LSTM", (*ALL, "P"), {"input_forget": 1, "clip": 0.4, **HARD}, None),
    "LSTM everything two-way": ("LSTM", (*ALL, "P"), {"direction": "bidirectional", "clip": 0.4, **HARD_TWICE}, None),
    "GRU": ("GRU", ALL, {"direction": "bidirectional"}, jaxrnn.ChungGRUCell),
    "GRU reset after": ("GRU", ALL, {"linear_before_reset": 1, "direction": "reverse"}, jaxrnn.GRUCell),
    "GRU clip": ("GRU", ALL, {"clip": 0.3}, None),
    "GRU clip, reset after": ("GRU", ("W", "R"), {"clip": 0.3, "linear_before_reset": 1}, None),
    "GRU activations": ("GRU", ALL, TWO, None),
}


@pytest.mark.parametrize("case", NODES)
def test_a_node_computes_what_onnxruntime_computes(case):
    op, slots, attributes, public = NODES[case]
    arrays = random_arrays(op, slots, directions=2 if attributes.get("direction") == "bidirectional" else 1)
    model, fed = recurrent_model(op, arrays, **attributes)
    node = onnx_node(model)
    assert public is None or {type(cell) for cell in node.cells} == {public}
    assert_close(run_node(node, fed), run_onnxruntime(model, fed))


@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [
        ("Relu", [], []),
        ("Sigmoid", [], []),
        ("Softplus", [], []),
        ("Affine", [0.3], [0.2]),
        ("LeakyRelu", [], []),
        ("ThresholdedRelu", [0.4], []),
        ("ScaledTanh", [0.7], [1.3]),
        ("HardSigmoid", [], []),
        ("Elu", [], []),
    ],
)
def test_every_activation_is_onnxruntimes(name, alpha, beta):
    """As the candidate of an LSTM; with defaults where there are any."""
    given = {k: v for k, v in (("activation_alpha", alpha), ("activation_beta", beta)) if v}
    model, fed = recurrent_model("LSTM", random_arrays("LSTM", ALL), activations=["Sigmoid", name, "Tanh"], **given)
    node = onnx_node(model)
    want = run_onnxruntime(model, fed)
    got = node(jnp.asarray(fed["X"][:1]), None, fed["initial_h"], fed["initial_c"])
    assert_close(got[0], want[0][:1])
    assert all(np.isfinite(a).all() for a in got)


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 22, 24])
@pytest.mark.parametrize("op", GATES)
def test_a_node_of_any_opset_is_read(op, opset):
    """The definitions are of opset 7, 14 and 22; up to opset 8, initialisers are listed among the inputs too."""
    arrays = random_arrays(op, ("W", "R", "B"))
    constants = {slot: arrays[slot] for slot in ("W", "R", "B")}
    listed = {"X": arrays["X"]} | (constants if opset < 9 else {})
    model = make_model([make_node(op, arrays)], constants, listed, opset, ir_version=3 if opset < 9 else 8)
    want = run_onnxruntime(model, {"X": arrays["X"]})
    assert_close(run_node(onnx_node(model), {"X": arrays["X"]})[:1], want)


@pytest.mark.parametrize("op", GATES)
def test_a_node_in_float64_computes_what_the_reference_computes(op, x64):
    attributes = {"linear_before_reset": 1} if op == "GRU" else {}
    slots = ("W", "R", "B", "initial_h", "initial_c") + (("P",) if op == "LSTM" else ())
    model, fed = recurrent_model(op, random_arrays(op, slots, dtype=np.float64), **attributes)
    with warnings.catch_warnings(action="ignore"):
        want = onnx.reference.ReferenceEvaluator(model).run(None, fed)
    got = run_node(onnx_node(model), fed)
    assert got[0].dtype == np.float64
    assert_close(got[: len(want)], want, 1e-12)


def backend_cases():
    """The definition's own cases for the three operators."""
    import onnx.backend.test.case.node as cases

    with warnings.catch_warnings(action="ignore"):
        from onnx.backend.test.case.node import gru, lstm, rnn

        assert gru and lstm and rnn
    found = [case for case in cases._NodeTestCases if case.model.graph.node[0].op_type in GATES]
    return [pytest.param(case, id=case.name) for case in found if len(case.model.graph.node) == 1]


def test_all_backend_cases_are_there():
    assert len(backend_cases()) == 18


@pytest.mark.parametrize("case", backend_cases())
def test_the_definitions_own_cases_pass(case):
    """Layouts, directions, peepholes; their weights are fed, not constant."""
    node = case.model.graph.node[0]
    for inputs, outputs in case.data_sets:
        fed = {value.name: np.asarray(a) for value, a in zip(case.model.graph.input, inputs, strict=True)}
        slots = {slot: fed.get(name) for slot, name in zip(SLOTS, node.input, strict=False)}
        got = run_node(onnx_node(case.model, weights=fed), {k: a for k, a in slots.items() if a is not None})
        named = dict(zip(("Y", "Y_h", "Y_c"), got, strict=False))
        wanted = [("Y", "Y_h", "Y_c")[k] for k, name in enumerate(node.output) if name]
        for name, want in zip(wanted, outputs, strict=True):
            np.testing.assert_allclose(named[name], want, rtol=1e-5, atol=1e-6)


def test_batch_first_is_the_same_node_with_its_axes_swapped():
    """`layout=1`, which onnxruntime lacks, for states and outputs too; with ragged lengths and both directions."""
    arrays = random_arrays("LSTM", ALL, directions=2)
    model, fed = recurrent_model("LSTM", arrays, direction="bidirectional")
    want = run_node(onnx_node(model), fed)
    turned = {k: np.swapaxes(a, 0, 1) if k in fed and k != "sequence_lens" else a for k, a in arrays.items()}
    swapped, turned = recurrent_model("LSTM", turned, direction="bidirectional", layout=1)
    y, y_h, y_c = run_node(onnx_node(swapped), turned)
    assert_close((jnp.transpose(y, (1, 2, 0, 3)), jnp.swapaxes(y_h, 0, 1), jnp.swapaxes(y_c, 0, 1)), want)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "layout"), [("LSTM", 0), ("LSTM", 1), ("GRU", 1)])
def test_states_that_a_graph_holds_are_as_if_they_were_fed(op, layout):
    """Each state left out (zeros), held or fed, whatever the other is; for more examples than directions, which all differ."""
    arrays = random_arrays(op, ALL, directions=2)
    arrays |= {"X": arrays["X"][:2], "sequence_lens": np.minimum(LENGTHS, 2)}
    if layout:
        arrays |= {slot: np.swapaxes(a, 0, 1) for slot, a in arrays.items() if slot in ("X", "initial_h", "initial_c")}
    slots = [slot for slot in ("initial_h", "initial_c") if slot in arrays]
    constants = {slot: arrays[slot] for slot in ("W", "R", "B")}
    fed = {slot: arrays[slot] for slot in ("X", "sequence_lens")}
    for kinds in product(("left out", "held", "fed"), repeat=len(slots)):
        kind_of = dict(zip(slots, kinds, strict=True))
        there = {slot: a for slot, a in arrays.items() if kind_of.get(slot) != "left out"}
        held = {slot: arrays[slot] for slot, kind in kind_of.items() if kind == "held"}
        given = {slot: arrays[slot] for slot, kind in kind_of.items() if kind == "fed"}
        node = make_node(op, there, direction="bidirectional", layout=layout)
        got = onnx_node(make_model([node], constants | held, fed | given, outputs=node.output))
        all_fed = make_node(op, arrays, direction="bidirectional", layout=layout)
        want = onnx_node(make_model([all_fed], constants, fed | {s: arrays[s] for s in slots}, outputs=node.output))
        with jax.disable_jit():  # each is called once
            states = [np.zeros_like(arrays[s]) if kind_of[s] == "left out" else arrays[s] for s in slots]
            assert_close(got(*fed.values(), *(given.get(slot) for slot in slots)), want(*fed.values(), *states), 1e-6)


@pytest.mark.parametrize("layout", [0, 1])
def test_a_state_that_a_graph_holds_is_the_modules_start_in_either_layout(layout):
    arrays = random_arrays("LSTM", ALL, directions=2)
    held = {slot: np.repeat(arrays[slot][:, :1], BATCH, axis=1) for slot in ("initial_h", "initial_c")}
    constants = {slot: arrays[slot] for slot in ("W", "R", "B")}
    constants |= {slot: np.swapaxes(a, 0, 1) if layout else a for slot, a in held.items()}
    node = make_node("LSTM", arrays, direction="bidirectional", layout=layout)
    x = np.swapaxes(arrays["X"], 0, 1) if layout else arrays["X"]
    made = make_model([node], constants, {"X": x, "sequence_lens": LENGTHS})
    module = from_onnx(made)
    assert module.batch_first == bool(layout)
    for d, start in enumerate(module.learned[0]):
        np.testing.assert_array_equal(start.h[...], held["initial_h"][d, 0])
        np.testing.assert_array_equal(start.c[...], held["initial_c"][d, 0])
    assert from_onnx(made, learn_initial_state=False).learned is None  # the option given is the option there


def test_length_zero_returns_the_initial_state():
    model, fed = recurrent_model("GRU", random_arrays("GRU", ALL))
    fed["sequence_lens"] = np.array([0, 6, 0, 3], np.int32)
    y, y_h = run_node(onnx_node(model), fed)
    np.testing.assert_array_equal(y_h[0, ::2], fed["initial_h"][0, ::2])
    np.testing.assert_array_equal(y[:, 0, ::2], 0)


# Files that others wrote --------------------------------------------------------------------------


def test_weights_may_come_from_constants_and_what_is_computed_from_them():
    arrays = random_arrays("LSTM", ("W", "R", "B"))
    computed = [
        helper.make_node("Constant", [], ["flat"], value=numpy_helper.from_array(arrays["W"][0])),
        helper.make_node("Unsqueeze", ["flat", "zero"], ["W"]),
        helper.make_node("Constant", [], ["R_t"], value=numpy_helper.from_array(np.swapaxes(arrays["R"], 1, 2))),
        helper.make_node("Transpose", ["R_t"], ["R_c"], perm=[0, 2, 1]),
        helper.make_node("Identity", ["R_c"], ["R"]),
        helper.make_node("Cast", ["B64"], ["B"], to=TensorProto.FLOAT),
    ]
    constants = {"zero": np.array([0]), "B64": arrays["B"].astype(np.float64)}
    model = make_model([*computed, make_node("LSTM", arrays)], constants, {"X": arrays["X"]})
    plain, _ = recurrent_model("LSTM", arrays)
    for a, b in zip(arrays_of(from_onnx(model)), arrays_of(from_onnx(plain)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(from_onnx(plain).params[0][0].w_ih[...][:, 3, :].T, arrays["W"][0, 5:10])  # the gate o


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_two_bytes_are_kept_and_cast_where_the_graph_does(dtype):
    dtype = np.dtype(jnp.dtype(dtype))
    arrays = random_arrays("LSTM", ("W", "R", "B"))
    narrow = {f"/m/{slot}_16": arrays[slot].astype(dtype) for slot in ("W", "R", "B")}
    node = helper.make_node("LSTM", ["X", *narrow], ["Y"], name="/m/lstm", hidden_size=HIDDEN)
    casts = [helper.make_node("Cast", [f"/m/{slot}_16"], [slot], to=TensorProto.FLOAT) for slot in ("W", "R", "B")]
    kept, cast = (
        from_onnx(make_model(nodes, narrow, {"X": arrays["X"]}, 22, 10)) for nodes in ([node], [*casts, make_node("LSTM", arrays)])
    )
    assert {a.dtype for a in arrays_of(kept)} == {dtype}
    want = from_onnx(recurrent_model("LSTM", {slot: a.astype(dtype).astype(np.float32) for slot, a in arrays.items()})[0])
    for a, b, c in zip(arrays_of(kept), arrays_of(cast), arrays_of(want), strict=True):
        np.testing.assert_array_equal(a.astype(np.float32), c)
        np.testing.assert_array_equal(b, c)
        assert b.dtype == np.float32


def test_constant_lengths_are_heeded():
    model = fixed_lengths(recurrent_model("GRU", random_arrays("GRU", ("W", "R", "B"), 2), direction="bidirectional")[0])
    x = random_arrays("GRU", ())["X"]
    assert_close(run_node(onnx_node(model), {"X": x}), run_onnxruntime(model, {"X": x}))


def test_weights_that_cannot_be_had_are_asked_for(tmp_path):
    """By an operator that no evaluator has, in a file that is not there, cut short, or not read; with what to pass instead."""
    arrays = random_arrays("RNN", ("W", "R"))
    made = helper.make_node("Mystery", ["R"], ["W"], domain="elsewhere")
    model = make_model([made, make_node("RNN", arrays)], {"R": arrays["R"]}, {"X": arrays["X"]})
    with pytest.raises(ValueError, match=r"(?s)W of node '/a/node' should be constant; .*Mystery.*Pass weights={'W': array}"):
        from_onnx(model)
    assert from_onnx(model, weights={"W": arrays["W"]}).stack.hidden_size == HIDDEN

    model, _ = recurrent_model("RNN", arrays)
    onnx.save(model, tmp_path / "m", save_as_external_data=True, location="data", size_threshold=0)
    apart = onnx.load(tmp_path / "m", load_external_data=False)
    with pytest.raises(
        ValueError, match=r"(?s)W of node '/a/node' should be constant; .*'W' has no readable data: .*Pass weights="
    ):
        from_onnx(apart)
    whole = (tmp_path / "data").read_bytes()
    (tmp_path / "data").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"(?s)in another file, which is not opened here.*The file is .*m\.$"):
        from_onnx(tmp_path / "m")
    (tmp_path / "data").unlink()
    with pytest.raises(ValueError, match="in another file, which is not opened here"):
        from_onnx(tmp_path / "m")


@pytest.mark.parametrize("source", ["file", "external data", "model", "graph", "node", "a function", "the body of an If"])
def test_a_node_is_found_wherever_it_stands(source, tmp_path):
    arrays = random_arrays("GRU", ("W", "R", "B"))
    model, fed = recurrent_model("GRU", arrays, linear_before_reset=1)
    want = arrays_of(from_onnx(model))
    weights, name = None, None
    match source:
        case "file":
            onnx.save(model, tmp_path / "m.onnx")
            model = tmp_path / "m.onnx"
        case "external data":
            onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="data", size_threshold=0)
            assert (tmp_path / "data").exists()
            with pytest.raises(
                ValueError, match=r"its data are in another file, which is not opened here; onnx\.load\(path\) would"
            ):
                from_onnx(str(tmp_path / "m.onnx"))
            model = onnx.load(tmp_path / "m.onnx")
        case "graph":
            model = model.graph
        case "node":
            model, weights = model.graph.node[0], arrays
        case "a function":
            ends = (["X", "W", "R", "B"], ["Y"])
            body = [helper.make_node("GRU", *ends, hidden_size=HIDDEN, linear_before_reset=1)]
            made = helper.make_function("own", "Layer", *ends, body, [helper.make_opsetid("", 14)])
            model = make_model([helper.make_node("Layer", *ends, domain="own")], {k: arrays[k] for k in "WRB"}, fed)
            model.opset_import.append(helper.make_opsetid("own", 1))
            model.functions.append(made)
        case "the body of an If":
            constants = {slot: arrays[slot] for slot in ("W", "R", "B")}
            body = helper.make_graph([make_node("GRU", arrays, linear_before_reset=1)], "body", [], [model.graph.output[0]])
            node = helper.make_node("If", ["flag"], ["Y"], then_branch=body, else_branch=body)
            model = make_model([node], constants, fed | {"flag": np.array(True)})
            with pytest.raises(ValueError, match=r"which are: '/a/node' \(GRU\), '/a/node' \(GRU\)"):
                from_onnx(model)
            del model.graph.node[0].attribute[1]
            with pytest.raises(ValueError, match=r"`node` should be given as '/a/node', in the body of a node If, .*, got None\."):
                from_onnx(model)
            name = "/a/node"
    for a, b in zip(arrays_of(from_onnx(model, name, weights=weights)), want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("op", "count"), [("Scan", 1), ("Scan", 2), ("Loop", 1), ("If", 1)])
def test_a_node_in_a_body_is_not_taken_for_the_graph(op, count):
    """A layer that runs for each of many sequences, or perhaps not at all, is another model; what is inside has to be named."""
    rng = np.random.default_rng(0)
    shapes = [{"W": (1, 3 * HIDDEN, size), "R": (1, 3 * HIDDEN, HIDDEN), "B": (1, 6 * HIDDEN)} for size in (INPUT, HIDDEN)]
    arrays = [{slot: rng.standard_normal(shape).astype(np.float32) for slot, shape in one.items()} for one in shapes[:count]]
    constants = {f"{slot}{k}": a for k, held in enumerate(arrays) for slot, a in held.items()} | {"one": np.array([1])}
    nodes, x = [], "x"
    for k in range(count):
        ends = [x, f"W{k}", f"R{k}", f"B{k}"], [f"Y{k}"]
        nodes += [helper.make_node("GRU", *ends, name=f"g{k}", hidden_size=HIDDEN, linear_before_reset=1)]
        nodes += [helper.make_node("Squeeze", [f"Y{k}", "one"], [f"s{k}"])]
        x = f"s{k}"
    value = lambda name, dtype=TensorProto.FLOAT, shape=None: helper.make_tensor_value_info(name, dtype, shape)
    sequence = value("x", shape=(None, None, INPUT))
    if op == "Scan":
        body = helper.make_graph(nodes, "body", [sequence], [value(x)])
        outer, fed = (
            helper.make_node("Scan", ["xs"], ["Y"], body=body, num_scan_inputs=1),
            {"xs": np.ones((2, TIME, BATCH, INPUT), np.float32)},
        )
    elif op == "Loop":
        nodes += [helper.make_node("Identity", ["go"], ["on"])]
        inputs = [value("i", TensorProto.INT64, ()), value("go", TensorProto.BOOL, ())]
        body = helper.make_graph(nodes, "body", inputs, [value("on", TensorProto.BOOL), value(x)])
        outer, fed = helper.make_node("Loop", ["one", ""], ["Y"], body=body), {"x": np.ones((TIME, BATCH, INPUT), np.float32)}
    else:
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "other", [], [value("n")])
        body = helper.make_graph(nodes, "body", [], [value(x)])
        outer = helper.make_node("If", ["flag"], ["Y"], then_branch=body, else_branch=other)
        fed = {"x": np.ones((TIME, BATCH, INPUT), np.float32), "flag": np.array(True)}
    model = make_model([outer], constants, fed)
    names = ["g0", "g1"][:count]
    with pytest.raises(
        ValueError, match=rf"(?s)should be given as \[?'g0'.*, in the body of a node {op}, .*, got None\..*of the {op}"
    ):
        from_onnx(model)
    module = from_onnx(model, names)
    for k in range(count):
        want = np.split(arrays[k]["W"][0], 3)  # z r n
        np.testing.assert_array_equal(module.params[k][0].w_ih[...], np.stack([want[1].T, want[0].T, want[2].T], axis=1))


@pytest.mark.parametrize(
    ("kind", "options", "opset"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}, 17),
        ("GRU", {"num_layers": 3}, 9),
        ("RNN", {"num_layers": 2, "nonlinearity": "relu", "bidirectional": True}, 13),
    ],
)
def test_pytorchs_own_export_is_one_chain_of_layers(kind, options, opset, tmp_path):
    """Its initial states are zeros that it computes from the batch size; its weights, when not folded, are slices."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(INPUT, HIDDEN, **options)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            theirs, (torch.randn(BATCH, TIME, INPUT),), tmp_path / "m", dynamo=False, opset_version=opset,
            input_names=["x"], dynamic_axes={"x": {0: "a", 1: "b"}}, do_constant_folding=opset != 13,
        )  # fmt: skip
    ours = from_onnx(tmp_path / "m")
    want = jaxrnn.interop.from_torch(theirs)
    assert ours.stack == want.stack
    assert ours.batch_first == theirs.batch_first  # inferred from the graph
    for a, b in zip(arrays_of(ours), arrays_of(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("perm", "is_chain"), [([0, 2, 1, 3], True), ([2, 0, 1, 3], False)])
def test_nodes_are_layers_only_if_the_axes_between_them_are(perm, is_chain):
    """A batch in the place of time is another computation, though every size fits."""
    weights = random_arrays("GRU", ("W", "R"))
    deeper = np.random.default_rng(1).standard_normal((1, 15, HIDDEN)).astype(np.float32)
    nodes = [
        helper.make_node("GRU", ["X", "W", "R"], ["Y"], name="a", hidden_size=HIDDEN),
        helper.make_node("Transpose", ["Y"], ["moved"], perm=perm),
        helper.make_node("Reshape", ["moved", "sizes"], ["next"]),
        helper.make_node("GRU", ["next", "V", "R"], ["Z"], name="b", hidden_size=HIDDEN),
    ]
    constants = {"W": weights["W"], "R": weights["R"], "V": deeper, "sizes": np.array([0, 0, HIDDEN])}
    model = make_model(nodes, constants, {"X": weights["X"]}, outputs=("Z",))
    if is_chain:
        assert from_onnx(model).stack.num_layers == 2
    else:
        with pytest.raises(ValueError, match=r"`node` should be the name of one .* 'a' \(GRU\), 'b' \(GRU\)"):
            from_onnx(model)


@pytest.mark.slow
def test_a_constant_initial_state_becomes_the_modules():
    """Also one that the graph expands over the batch; one row for all is learned, more are not a module's."""
    arrays = random_arrays("LSTM", ALL, directions=2)
    start = {slot: arrays[slot][:, :1] for slot in ("initial_h", "initial_c")}
    shape = [
        helper.make_node("Shape", ["X"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["batch"]),
        helper.make_node("Concat", ["two", "batch", "five"], ["shape"], axis=0),
        *(helper.make_node("Expand", [f"{slot}_row", "shape"], [slot]) for slot in start),
    ]
    constants = {slot: arrays[slot] for slot in ("W", "R", "B")} | {f"{slot}_row": a for slot, a in start.items()}
    constants |= {"one": np.array([1]), "two": np.array([2]), "five": np.array([HIDDEN])}
    node = make_node("LSTM", arrays, direction="bidirectional")
    inputs = {"X": arrays["X"], "sequence_lens": LENGTHS}
    expanded = make_model([*shape, node], constants, inputs, outputs=node.output)
    module = from_onnx(expanded)
    assert module.stack.learn_initial_state
    y, h, c = run_onnxruntime(expanded, inputs)
    y = np.concatenate([y[:, 0], y[:, 1]], axis=-1)
    assert_close(run_module(module, inputs["X"], lengths=LENGTHS), (y, (h, c)))
    assert_close(run_node(onnx_node(expanded), inputs), run_onnxruntime(expanded, inputs))

    rows = {slot: arrays[slot] for slot in ("initial_h", "initial_c")}
    model = make_model([node], {k: a for k, a in constants.items() if k in "WRB"} | rows, inputs, outputs=node.output)
    assert_close(run_node(onnx_node(model), inputs), run_onnxruntime(model, inputs))
    with pytest.raises(ValueError, match=r"should have the same initial state for every example of a batch"):
        from_onnx(model)


# Refusals -----------------------------------------------------------------------------------------


def refuse(message, op="LSTM", *, change=None, slots=("W", "R", "B"), directions=1, call=from_onnx, **attributes):
    arrays = random_arrays(op, slots, directions)
    if change:
        arrays |= change(arrays)
    model, _ = recurrent_model(op, arrays, **attributes)
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)


def test_what_has_no_counterpart_is_refused_by_name():
    refuse(r"(?s)activations of node '/a/node' should be among Relu, .* got 'Mish'", activations=["Sigmoid", "Mish", "Tanh"])
    refuse(r"should have 3 for each of 1 direction\(s\) activations, got \['Tanh'\]", activations=["Tanh"])
    refuse(r"`activation_alpha` for its Affine, which has no default", "RNN", activations=["Affine"])
    refuse(r"`activation_beta` of node .* at most 0 entries, .* got \[", "RNN", activations=["Elu"], activation_beta=[0.1])
    refuse(r"`clip` of node '/a/node' should be positive, got 0.0", clip=0.0)
    refuse(
        r"should run forward, or in both directions, to be a layer of a module, got reverse.\nCall onnx_node", direction="reverse"
    )
    two = {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}
    refuse(
        r"should have the same activations in both directions, .*, got RNNCell\(\) and RNNCell\(nonlinearity='relu'\)",
        "RNN",
        directions=2,
        **two,
    )
    refuse(r"got {'W': \(1, 20, 3\), 'R': \(1, 20, 4\)", change=lambda a: {"R": a["R"][:, :, 1:]})
    refuse(r"LSTM of 1 direction\(s\), hidden size 7\) should have shapes {'W': \(1, 28, 3\), 'R': \(1, 28, 7\)", hidden_size=7)
    refuse(r"the attribute `hidden_size` of node '/a/node' should be a whole number, got 5.0", hidden_size=5.0)
    refuse(r"LSTM of 2 direction\(s\), hidden size 5\) should have shapes {'W': \(2, 20, 3\)", direction="bidirectional")
    refuse(r"`clip` of node '/a/node' should be positive, got nan", clip=float("nan"))
    refuse(r"should be among Relu, .* got 1", activations=[1, 2, 3])
    refuse(r"`direction` of node '/a/node' should be 'forward' or .* got 'sideways'", direction="sideways")
    refuse(r"`layout` of node '/a/node' should be 0 or 1, got 2", layout=2)
    refuse(r"`linear_before_reset` of node '/a/node' should be 0 or 1, got -1", "GRU", linear_before_reset=-1)
    refuse(r"'/a/node' \(GRU\) should have attributes among hidden_size, .* got 'input_forget'", "GRU", input_forget=1)
    refuse(r"should have the inputs X, W, R, B, sequence_lens, initial_h, got \['P'\] beyond", "GRU", slots=("W", "R", "P"))
    refuse(r"should have one dtype, got {'W': 'float16', 'R': 'float32'", change=lambda a: {"W": a["W"].astype(np.float16)})
    refuse(r"W and R of node '/a/node' should have three axes, got {'W': \(20, 3\)", change=lambda a: {"W": a["W"][0]})
    lengths = re.escape(str(LENGTHS.tolist()))
    refuse(
        rf"should be fed its `sequence_lens`, to be a layer of a module, got those of one batch, {lengths}",
        call=lambda model: from_onnx(fixed_lengths(model)),
    )


def fixed_lengths(model):
    """The model with constant lengths."""
    del model.graph.node[0].input[4:]
    model.graph.node[0].input.append("lengths")
    model.graph.initializer.append(numpy_helper.from_array(LENGTHS, "lengths"))
    return model


def test_what_a_node_is_fed_is_checked():
    arrays = random_arrays("GRU", ("W", "R", "B"), directions=2)
    node = onnx_node(recurrent_model("GRU", arrays, direction="bidirectional")[0])
    x, h = arrays["X"], np.zeros((2, BATCH, HIDDEN), np.float32)
    with pytest.raises(ValueError, match=r"OnnxNode: `x` should have the axes \(time, batch, input\), got shape \(4, 3\)"):
        node(x[0])
    with pytest.raises(ValueError, match=r"`initial_h` of node '/a/node' should have shape \(2, 4, 5\), got \(1, 4, 5\)"):
        node(x, None, h[:1])
    with pytest.raises(ValueError, match=r"`initial_c` should be None, since node '/a/node' is no LSTM, got \(2, 4, 5\)"):
        node(x, None, h, h)
    with pytest.raises(ValueError, match=r"`lengths` should be from 0 to 6, the number of steps, got 7 in row 1"):
        node(x, np.array([1, 7, 1, 1]))
    refuse(r"should not be float64 while JAX's 64-bit", change=lambda a: {k: v.astype(np.float64) for k, v in a.items()})


def test_float8_weights_are_refused_by_name():
    import ml_dtypes

    arrays = random_arrays("RNN", ("W", "R"))
    tensors = [numpy_helper.from_array(arrays[k].astype(ml_dtypes.float8_e4m3fn), k) for k in ("W", "R")]
    graph = helper.make_graph([make_node("RNN", arrays)], "g", [], [], tensors)
    with pytest.raises(TypeError, match=r"`/a/node.W` should have one of the dtypes float64, .* got float8_e4m3fn"):
        from_onnx(graph)


def test_a_node_that_is_not_there_is_answered_with_those_that_are():
    arrays = random_arrays("RNN", ("W", "R"))
    nodes = [helper.make_node("RNN", ["X", "W", "R"], [name], name=name, hidden_size=HIDDEN) for name in ("a", "b/c")]
    model = make_model(nodes, {k: arrays[k] for k in ("W", "R")}, {"X": arrays["X"]})
    with pytest.raises(ValueError, match=r"'d' is none of those in `source`, which are: 'a' \(RNN\), 'b/c' \(RNN\)"):
        from_onnx(model, "d")
    with pytest.raises(ValueError, match=r"`node` should be the name of one recurrent node"):
        from_onnx(model)
    assert from_onnx(model, "b/c").stack.num_layers == 1
    with pytest.raises(ValueError, match=r"'R' of .*|R of node 'a' should be constant, got 'R'"):
        onnx_node(make_model(nodes[:1], {"W": arrays["W"]}, {"X": arrays["X"], "R": arrays["R"]}))
    with pytest.raises(
        ValueError, match=r"together they are no stack, got \['a', 'b/c'\]\.\n.*\n  'b/c' \(RNN\) reads 'X'\nLoad each apart"
    ):
        from_onnx(model, ["a", "b/c"])


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "m").write_bytes(b"not an onnx file")
    with pytest.raises(ValueError, match=r"`source` should be a whole ONNX file, got .*m: "):
        from_onnx(tmp_path / "m")
    whole = to_onnx(make_module(jaxrnn.GRUCell(), 2, 3)).SerializeToString()
    (tmp_path / "m").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"`source` should be a whole ONNX file, got .*m: "):
        from_onnx(tmp_path / "m")
    with pytest.raises(TypeError, match=r"`source` should be a path, an onnx ModelProto.* got int"):
        from_onnx(3)
    arrays = random_arrays("RNN", ("W", "R"))
    old = make_model([make_node("RNN", arrays)], {k: arrays[k] for k in ("W", "R")}, {"X": arrays["X"]}, opset=6)
    with pytest.raises(ValueError, match=r"`source` should have opset 7 or newer, got 6"):
        from_onnx(old)


@pytest.mark.slow
def test_a_damaged_model_is_refused_or_read(tmp_path):
    """Whatever bytes came: never another exception than those announced."""
    whole = to_onnx(make_module(jaxrnn.GRUCell(), 2, 3, 2, bidirectional=True)).SerializeToString()
    rng, refused = np.random.default_rng(0), []
    for case in range(80):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        (tmp_path / "m").write_bytes(damaged[: rng.integers(len(whole)) if case % 2 else None])
        try:
            from_onnx(tmp_path / "m")
        except (ValueError, TypeError) as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert not [message for message in refused if not message.startswith("from_onnx: ")]


def test_what_onnx_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match=r"the cell should be one that ONNX has .* got MGUCell"):
        to_onnx(make_module(jaxrnn.MGUCell(), 2, 3))
    with pytest.raises(ValueError, match=r"`merge` should be 'concat'.*got 'sum'"):
        to_onnx(make_module(jaxrnn.GRUCell(), 2, 3, bidirectional=True, merge="sum"))
    with pytest.raises(ValueError, match=r"`skip_connections` should be False.*got True"):
        to_onnx(make_module(jaxrnn.GRUCell(), 2, 3, 2, skip_connections=True))
    with pytest.raises(TypeError, match=r"`module` should be a jaxrnn.RNN, .* or a model of jaxrnn.models, got Linear"):
        to_onnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


# Writing ------------------------------------------------------------------------------------------

CELLS = {
    "tanh": jaxrnn.RNNCell(),
    "relu": jaxrnn.RNNCell(nonlinearity="relu"),
    "LSTM": jaxrnn.LSTMCell(),
    "GRU": jaxrnn.GRUCell(),
    "ChungGRU": jaxrnn.ChungGRUCell(),
    "PeepholeLSTM": jaxrnn.PeepholeLSTMCell(),
    "CoupledLSTM": jaxrnn.CoupledLSTMCell(),
}

EMPTY = ("Equal", "Unsqueeze", "Where")  # a sequence without steps ends where it starts


@pytest.mark.parametrize("name", CELLS)
def test_an_exported_module_runs_in_onnxruntime(name, tmp_path):
    """Both directions, lengths, one of them 0, start states, for an LSTM two layers; for sizes that the model does not hold."""
    layers = 2 if name == "LSTM" else 1
    module = make_module(CELLS[name], INPUT, HIDDEN, layers, bidirectional=True)
    model = to_onnx(module, tmp_path / "m.onnx", lengths=True, states=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert {node.op_type for node in model.graph.node} <= {*GATES, "Transpose", "Reshape", "Concat", "Split", *EMPTY}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    fields = module.stack.cell.State._fields
    for batch, time, lengths in [(4, 6, np.array([6, 0, 5, 1], np.int32)), (1, 2, None)]:
        x = rng.standard_normal((batch, time, INPUT)).astype(np.float32)
        h_0 = [rng.standard_normal((2 * layers, batch, HIDDEN)).astype(np.float32) for _ in fields]
        fed = {"x": x, "lengths": np.full(batch, time, np.int32) if lengths is None else lengths}
        fed |= {f"{field}_0": h for field, h in zip(fields, h_0, strict=True)}
        want = session.run(None, fed)
        if lengths is not None:
            h_0 = h_0[0] if len(h_0) == 1 else tuple(h_0)
            assert_close(run_module(module, x, h_0, lengths), want)
        else:
            assert want[0].shape == (batch, time, 2 * HIDDEN)


@pytest.mark.parametrize(
    "options",
    [{"batch_first": False}, {"num_layers": 2, "bias": False, "learn_initial_state": True}],
    ids=["time first", "learned start"],
)
def test_options_of_a_module_are_exported(options):
    module = make_module(jaxrnn.LSTMCell(), INPUT, HIDDEN, **options)
    shape = (BATCH, TIME, INPUT) if module.batch_first else (TIME, BATCH, INPUT)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert_close(run_module(module, x), run_onnxruntime(to_onnx(module), {"x": x}))


@pytest.mark.slow
def test_layers_of_different_sizes_are_exported():
    module = make_module(jaxrnn.GRUCell(), INPUT, (5, 4), 2, bidirectional=True)
    x = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    model = to_onnx(module, states=True)
    assert [value.name for value in model.graph.input] == ["x", "h_0_l0", "h_0_l1"]
    zeros = {"h_0_l0": np.zeros((2, BATCH, 5), np.float32), "h_0_l1": np.zeros((2, BATCH, 4), np.float32)}
    output, h_0, h_1 = run_onnxruntime(model, {"x": x, **zeros})
    got, states = run_module(module, x)
    assert_close(got, output)
    assert_close([jnp.stack([state.h for state in layer]) for layer in states], [h_0, h_1])
    assert from_onnx(model).stack == module.stack


def test_the_documents_model_is_exported_with_its_head():
    model = randomised(lambda: jaxrnn.models.LSTMModel(INPUT, HIDDEN, 2, bidirectional=True, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    exported = to_onnx(model, lengths=True)
    (want,) = run_onnxruntime(exported, {"x": x, "lengths": LENGTHS})
    assert_close(jax.jit(lambda m, x, n: m(x, lengths=n))(model, x, LENGTHS), want)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    cell=st.sampled_from(list(CELLS.values())),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
    dtype=st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16]),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    learn_initial_state=st.booleans(),
    dropout=st.sampled_from([0.25, 0.0]),
    lengths=st.booleans(),
)
def test_any_module_survives_the_round_trip(cell, sizes, dtype, batch_first, dropout, lengths, **options):
    """Through an ONNX model and back: the same description, the same bits."""
    dropout = dropout if sizes[2] > 1 else 0.0  # between layers
    module = make_module(cell, *sizes, param_dtype=dtype, batch_first=batch_first, dropout=dropout, **options)
    again = from_onnx(to_onnx(module, lengths=lengths))
    assert again.stack == module.stack
    assert again.batch_first == batch_first
    for a, b in zip(arrays_of(again), arrays_of(module), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    cell=st.sampled_from(list(CELLS.values())),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
)
def test_any_module_is_exported_as_what_it_computes(cell, sizes, lengths, batch_first, **options):
    """With ragged lengths and random start states, in onnxruntime."""
    module = make_module(cell, *sizes, batch_first=batch_first, **options)
    rng = np.random.default_rng(1)
    rows = sizes[2] * module.stack.num_directions
    axes = (len(lengths), 5) if batch_first else (5, len(lengths))
    x = rng.standard_normal((*axes, sizes[0])).astype(np.float32)
    h_0 = [rng.standard_normal((rows, len(lengths), sizes[1])).astype(np.float32) for _ in module.stack.cell.State._fields]
    fed = {f"{field}_0": h for field, h in zip(module.stack.cell.State._fields, h_0, strict=True)}
    lengths = np.array(lengths, np.int32)
    want = run_onnxruntime(to_onnx(module, lengths=True, states=True), {"x": x, "lengths": lengths} | fed)
    assert_close(run_module(module, x, tuple(h_0) if len(h_0) > 1 else h_0[0], lengths), want)


def test_float64_survives_the_round_trip(x64):
    module = make_module(jaxrnn.PeepholeLSTMCell(), 2, 3, 2, param_dtype=jnp.float64)
    for a, b in zip(arrays_of(from_onnx(to_onnx(module))), arrays_of(module), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", ["RNN clip", "LSTM everything", "LSTM everything two-way", "GRU clip", "GRU clip, reset after"])
def test_a_cell_made_for_a_node_goes_back_to_that_node(case):
    op, slots, attributes, _ = NODES[case]
    slots = tuple(slot for slot in slots if not slot.startswith("initial"))
    arrays = random_arrays(op, slots, directions=2 if attributes.get("direction") == "bidirectional" else 1)
    model, fed = recurrent_model(op, arrays, **attributes)
    module = from_onnx(model)
    again = to_onnx(module, lengths=True, states=True)
    assert from_onnx(again).stack == module.stack
    zeros = [value.name for value in again.graph.input if value.name.endswith("_0")]
    rows = module.stack.num_directions
    fed = {"x": fed["X"], "lengths": LENGTHS} | {name: np.zeros((rows, BATCH, HIDDEN), np.float32) for name in zeros}
    y = run_onnxruntime(model, {"X": fed["x"]} | ({"sequence_lens": LENGTHS} if "sequence_lens" in arrays else {}))[0]
    if "sequence_lens" not in arrays:
        fed["lengths"] = np.full(BATCH, TIME, np.int32)
    np.testing.assert_array_equal(run_onnxruntime(again, fed)[0], np.concatenate(list(np.swapaxes(y, 0, 1)), axis=-1))
