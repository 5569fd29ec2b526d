"""What an ONNX file claims is checked before it is believed or computed; quantised weights; what is named where nothing fits."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from jaxrnn.interop import from_onnx, onnx_node, onnx_nodes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_interop_onnx import run_node, run_onnxruntime  # noqa: E402
from test_onnx_cases import (  # noqa: E402
    BATCH,
    HIDDEN,
    INPUT,
    SMALL,
    TIME,
    layer,
    make,
    node,
    random,
    run_module,
    sizes,
    weights,
)


@pytest.mark.parametrize(
    ("slot", "value", "got"),
    [
        ("initial_c", np.zeros((1, 2, 6), np.float32), r"\(1, 2, 6\)"),
        ("initial_h", np.zeros((2, 2, HIDDEN), np.float32), r"\(2, 2, 4\)"),
        ("initial_h", np.ones((1, HIDDEN), np.float32), r"\(1, 4\)"),
        ("initial_c", np.ones((1, 2, HIDDEN, 1), np.float32), r"\(1, 2, 4, 1\)"),
    ],
)
def test_a_state_of_other_sizes_is_refused_even_if_it_is_zero(slot, value, got):
    names = ("", "h") if slot == "initial_h" else ("", "", "h")
    model = make([layer("LSTM", "a", "x", *names)], weights("LSTM", "a") | {"h": value}, ["a"])
    for call in (from_onnx, onnx_node):
        with pytest.raises(ValueError, match=rf"`{slot}` of node 'a' should have shape \(1, batch, 4\), got {got}"):
            call(model)


def test_a_state_of_another_batch_is_refused():
    model = make([layer("GRU", "a", "x", "", "h")], weights("GRU", "a") | {"h": random(1, 3, HIDDEN)}, ["a"])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2
    with pytest.raises(ValueError, match=r"`initial_h` of node 'a' should have shape \(1, 2, 4\), got \(1, 3, 4\)"):
        from_onnx(model)


@pytest.mark.parametrize(
    ("lens", "reason"),
    [
        (np.array([5, 6], np.int32), r"should be from 0 to 5, the number of steps, got \[5, 6\]"),
        (np.array([5, -1], np.int32), r"should be from 0 to 5, the number of steps, got \[5, -1\]"),
        (np.array([5, 1, 1], np.int32), r"should have shape \(2,\), the batch of X, got \(3,\)"),
        (np.array([1.0, 2.0], np.float32), r"should be a vector of whole numbers, got float32"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lens, reason):
    model = make([layer("GRU", "a", "x", "n")], weights("GRU", "a") | {"n": lens}, ["a"], {"x": ((5, 2, INPUT), np.float32)})
    with pytest.raises(ValueError, match=rf"`sequence_lens` of node 'a' {reason}"):
        onnx_node(model)


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_weights_drawn_at_random_are_no_constants(op):
    arrays = weights("GRU", "a")
    shape = arrays.pop("a.W").shape
    model = make([node(op, "", "a.W", shape=shape), layer("GRU", "a", "x")], arrays, ["a"])
    with pytest.raises(ValueError, match=rf"W of node 'a' should be constant; 'a.W' cannot be told: {op}: it draws at random"):
        from_onnx(model)


def computed(nodes, **constants):
    """A model whose W comes out of the nodes."""
    arrays = weights("GRU", "a")
    w = arrays.pop("a.W")
    return make([*nodes, layer("GRU", "a", "x")], arrays | {"w": w} | SMALL | constants, ["a"]), w


@pytest.mark.parametrize("count", [30, 3000])
def test_a_long_row_of_nodes_ends(count):
    """Each value is computed once, and without recursion: of v + v, and of what changes nothing."""
    doubled = [node("Add", f"{'w' if k == 0 else f'v{k}'} {'w' if k == 0 else f'v{k}'}", f"v{k + 1}") for k in range(30)]
    names = [*(f"v{k}" for k in range(30, 30 + count)), "a.W"]
    model, w = computed([*doubled, *(node("Identity", a, b) for a, b in pairwise(names))])
    np.testing.assert_allclose(from_onnx(model).params[0][0].w_ih[...][:, 1].T, 2.0**30 * w[0, :HIDDEN])


def test_a_cycle_is_named():
    model, _ = computed([node("Add", "w q", "p"), node("Identity", "p", "q"), node("Identity", "q", "a.W")])
    with pytest.raises(ValueError, match=r"'a.W' cannot be told: it stands in a cycle of nodes: .*[pq] <- "):
        from_onnx(model)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("ConstantOfShape", "huge", "b"), node("ReduceSum", "b", "a.W")], "ConstantOfShape: it takes more memory"),
        ([node("Tile", "w huge", "b"), node("ReduceSum", "b", "a.W")], "Tile: it takes more memory"),
        ([node("Expand", "w huge", "b"), node("ReduceSum", "b", "a.W")], "Expand: "),
        ([node("Range", "at huge1 at", "b"), node("Cast", "b", "a.W", to=1)], "Range: it takes more memory"),
        ([node("Reshape", "w long", "b"), node("Reshape", "w wide", "c"), node("MatMul", "b c", "a.W")],
         "MatMul: it takes more memory|too much"),
        ([node("Add", "w nowhere", "a.W")], "'nowhere' is neither an input of the graph nor computed in it"),
        ([node("Mystery", "w", "a.W")], "Mystery is not evaluated here"),
    ],
)  # fmt: skip
def test_what_a_computation_claims_is_seen_before_it_runs(nodes, reason):
    constants = {"huge": sizes(2**16, 2**16, 1), "huge1": np.int64(2**40), "long": sizes(-1, 1), "wide": sizes(1, -1)}
    model, _ = computed(nodes, **constants)
    if nodes[0].op_type == "Reshape":
        next(t for t in model.graph.initializer if t.name == "w").CopyFrom(numpy_helper.from_array(random(20_000), "w"))
    with pytest.raises(ValueError, match=rf"W of node 'a' should be constant; 'a.W' cannot be told: .*({reason})"):
        from_onnx(model)


def damage(change):
    model = make([layer("GRU", "a", "x")], weights("GRU", "a"), ["a"])
    change(next(t for t in model.graph.initializer if t.name == "a.W"))
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: setattr(t, "data_type", 99), "its data type should be one of ONNX's numbers, got 99"),
        (lambda t: setattr(t, "data_type", 8), "its data type should be one of ONNX's numbers, got 8"),
        (lambda t: t.dims.__setitem__(0, -1), r"its sizes should be from 0 on and not too many, got \[-1, 12, 3\]"),
        (lambda t: t.dims.__setitem__(0, 2**40), r"its sizes should be from 0 on and not too many, got \[1099511627776, 12, 3\]"),
        (lambda t: t.dims.__setitem__(0, 1000), r"its \[1000, 12, 3\] of float32 should have 144000 bytes, got 144"),
        (lambda t: setattr(t, "data_type", 7), r"its \[1, 12, 3\] of int64 should have 288 bytes, got 144"),
        (lambda t: t.ClearField("raw_data"), r"its \[1, 12, 3\] of float32 should have 36 entries, got 0"),
        (lambda t: setattr(t, "data_location", 1), "its data are in another file, which is not opened here"),
    ],
)
def test_a_damaged_tensor_is_refused_by_what_is_wrong_with_it(change, reason):
    for call in (from_onnx, onnx_node):
        with pytest.raises(
            ValueError, match=rf"W of node 'a' should be constant; 'a.W' cannot be told: 'a.W' has no readable data: {reason}"
        ):
            call(damage(change))


# Quantised -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_a_quantised_lstm_is_read_with_its_weights_as_floats(kind, per_channel, tmp_path):
    """As onnxruntime writes it; with lengths and initial states, in both directions. It quantises what it is fed too."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    fed = {"n": (("b",), np.int32), "h": ((2, "b", HIDDEN), np.float32), "c": ((2, "b", HIDDEN), np.float32)}
    plain = make(
        [layer("LSTM", "a", "x", "n", "h", "c", direction="bidirectional")], weights("LSTM", "a", INPUT, 2), ["a", "a_h"], fed
    )
    onnx.save(plain, tmp_path / "plain.onnx")
    # Weights of seven bits: products of eight overflow onnxruntime's 16 bits on CPUs without VNNI.
    options = {"weight_type": getattr(QuantType, kind), "per_channel": per_channel, "reduce_range": True}
    quantize_dynamic(tmp_path / "plain.onnx", tmp_path / "m.onnx", **options)
    (info,) = onnx_nodes(tmp_path / "m.onnx")
    assert (info.op, info.input_size, info.hidden_size) == ("DynamicQuantizeLSTM", INPUT, HIDDEN)
    # Eight bits of what is fed are about this precise where it is of the size of a recurrent layer's outputs.
    x, n = random(TIME, BATCH, INPUT) / 4, np.array([5, 2], np.int32)
    h, c = random(2, BATCH, HIDDEN) / 4, random(2, BATCH, HIDDEN) / 4
    want = run_onnxruntime(onnx.load(tmp_path / "m.onnx"), {"x": x, "n": n, "h": h, "c": c})
    got = run_node(onnx_node(tmp_path / "m.onnx"), {"X": x, "sequence_lens": n, "initial_h": h, "initial_c": c})
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=1e-2)
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-2)

    module = from_onnx(tmp_path / "m.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    names, arrays = info.inputs, {}
    for slot in ("W", "R"):
        q, scale, zero = (held[names[key]] for key in (slot, f"{slot}_scale", f"{slot}_zero_point"))
        scale, zero = (a.reshape(2, 1, -1) for a in (scale, zero))
        arrays[f"a.{slot}"] = np.swapaxes((q.astype(np.float32) - zero.astype(np.float32)) * scale, 1, 2)
    arrays["a.B"] = held[names["B"]]
    same = make([layer("LSTM", "a", "x", "n", "h", "c", direction="bidirectional")], arrays, ["a"], fed)
    y = run_onnxruntime(same, {"x": x, "n": n, "h": h, "c": c})[0]
    fields = module.stack.cell.State._fields
    assert fields == ("h", "c")
    from test_onnx_random import run_module as run_in_numpy

    np.testing.assert_allclose(run_in_numpy(module, x, [h, c], n)[0], np.concatenate(list(np.moveaxis(y, 1, 0)), -1), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_quantised_lstm_has_zero_points_of_its_own(dtype):
    """onnxruntime writes 0 for all; from here to the far ends, a difference does not fit the dtype of the two."""
    rng, arrays, floats = np.random.default_rng(0), {}, {}
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for slot, size in (("W", INPUT), ("R", HIDDEN)):
        q = rng.integers(low, high, (1, size, 4 * HIDDEN), dtype, endpoint=True)
        q[0, 0, :2] = low, high
        scale = rng.uniform(0.002, 0.004, (1, 4 * HIDDEN) if slot == "W" else 1).astype(np.float32)
        zero = np.resize(np.array([high, low, low + 7, high - 9], dtype), scale.shape)
        arrays |= {slot: q, f"{slot}s": scale, f"{slot}z": zero}
        floats[f"a.{slot}"] = np.swapaxes((q.astype(np.float32) - zero.astype(np.float32)[:, None]) * scale[:, None], 1, 2)
    arrays["B"] = floats["B"] = random(1, 8 * HIDDEN)
    names = ["x", "W", "R", "B", "", "", "", "", "Ws", "Wz", "Rs", "Rz"]
    quantised = helper.make_node("DynamicQuantizeLSTM", names, ["a"], name="a", domain="com.microsoft", hidden_size=HIDDEN)
    assert np.abs(floats["a.W"]).max() > 0.5
    x = random(TIME, BATCH, INPUT)
    want = run_onnxruntime(
        make([helper.make_node("LSTM", ["x", "a.W", "a.R", "B"], ["a"], hidden_size=HIDDEN)], floats, ["a"]), {"x": x}
    )
    np.testing.assert_allclose(run_module(from_onnx(make([quantised], arrays, ["a"])), x)[0], want[0][:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["tensor", "axis", "block"])
def test_weights_behind_a_dequantizelinear_are_read(kind):
    """With one scale, one for each gate row, or one for each block of them."""
    arrays = weights("LSTM", "a")
    w = arrays.pop("a.W")
    rows = 4 * HIDDEN
    shape = {"tensor": (), "axis": (rows,), "block": (1, rows // 4, INPUT)}[kind]
    scale = (0.01 + 0.01 * np.abs(random(*shape))).astype(np.float32)
    zero = np.asarray(np.random.default_rng(0).integers(-9, 9, shape), np.int8)
    q = np.clip(np.round(w / 0.02), -90, 90).astype(np.int8)
    more = {"tensor": {}, "axis": {"axis": 1}, "block": {"axis": 1, "block_size": 4}}[kind]
    nodes = [node("DequantizeLinear", "q scale zp", "a.W", **more), layer("LSTM", "a", "x")]
    model = make(nodes, arrays | {"q": q, "scale": scale, "zp": zero}, ["a"], opset=21)
    model.ir_version = 10
    x = random(TIME, BATCH, INPUT)
    np.testing.assert_allclose(run_module(from_onnx(model), x)[0], run_onnxruntime(model, {"x": x})[0][:, 0], atol=1e-5)


def test_weights_in_eight_bit_floats_have_a_zero_point_too():
    """Seldom another than 0; the definition has one formula for all."""
    arrays = weights("LSTM", "a")
    w = arrays.pop("a.W")
    float8 = np.dtype(ml_dtypes.float8_e4m3fn)
    q, scale, zero = w.astype(float8), np.float32(0.25), np.asarray(0.5, float8)
    nodes = [node("DequantizeLinear", "q scale zp", "a.W"), layer("LSTM", "a", "x")]
    model = make(nodes, arrays | {"q": q, "scale": scale, "zp": zero}, ["a"], opset=21)
    model.ir_version = 10
    got = from_onnx(model).params[0][0].w_ih[...]
    order = np.split((q.astype(np.float32) - 0.5) * 0.25, 4, axis=1)  # i o f g
    np.testing.assert_allclose(got, np.stack([order[k][0].T for k in (0, 2, 3, 1)], axis=1), rtol=1e-6)


def test_a_damaged_quantised_node_is_refused():
    arrays = {"W": np.zeros((1, INPUT, 16), np.int8), "R": np.zeros((1, HIDDEN, 16), np.int8)}
    arrays |= {f"{a}{b}": np.zeros(1, t) for a in "WR" for b, t in (("s", np.float32), ("z", np.int8))}
    names = ["x", "W", "R", "", "", "", "", "", "Ws", "Wz", "Rs", "Rz"]

    def model(**changes):
        q = helper.make_node("DynamicQuantizeLSTM", names, ["a"], name="a", domain="com.microsoft", hidden_size=HIDDEN)
        return make([q], arrays | changes, ["a"])

    assert from_onnx(model()).stack.hidden_sizes == (HIDDEN,)
    with pytest.raises(ValueError, match=r"W of node 'a' should be int8 or uint8, with three axes, got float32 \(1, 3, 16\)"):
        from_onnx(model(W=random(1, INPUT, 16)))
    with pytest.raises(ValueError, match=r"R_scale of node 'a' should have shape \(1,\) or \(1, 16\), got float32 \(2,\)"):
        from_onnx(model(Rs=random(2)))
    with pytest.raises(ValueError, match=r"W_zero_point of node 'a' should be int8 of the shape of its scale, got uint8 \(1,\)"):
        from_onnx(model(Wz=np.zeros(1, np.uint8)))
    with pytest.raises(ValueError, match=r"the weights of node 'a' \(LSTM of 1 direction\(s\), hidden size 4\) should have shapes"):
        from_onnx(model(W=np.zeros((1, INPUT, 12), np.int8)))


# Nothing to read ---------------------------------------------------------------------------------------------------------------


def body(*ops):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("s", "t")]
    nodes = [node("MatMul", "s r", "p"), node("Tanh", "p", "t"), node("Identity", "t", "u")]
    return helper.make_graph(nodes, "body", values[:1], [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)])


UNROLLED = [n for k in range(3) for n in (node("MatMul", f"h{k} r", f"m{k}"), node("Tanh", f"m{k}", f"h{k + 1}"))]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "it holds no nodes at all"),
        ([node("Relu", "x", "a")], "it holds Relu"),
        ([node("Attention", "x w b", "a", domain="com.microsoft")], "com.microsoft::Attention, which other runtimes define"),
        ([node("LSTM", "x w r", "a", domain="custom")], "custom::LSTM, which other runtimes define"),
        ([node("Scan", "x", "a", body=body(), num_scan_inputs=1)], "its Scan computes the steps itself, from MatMul, Tanh"),
        ([node("Loop", "two c x", "a", body=body())], "its Loop computes the steps itself"),
        (UNROLLED, "no recurrent node, the exporter unrolled the loop into MatMul, Tanh for every step"),
    ],
)  # fmt: skip
def test_where_there_is_no_recurrent_node_what_there_is_is_named(nodes, words):
    model = make(nodes, {"r": random(INPUT, INPUT)} | SMALL, ["a"])
    for call in (from_onnx, onnx_node, onnx_nodes):
        with pytest.raises(ValueError, match=rf"`source` should hold a node RNN, LSTM or GRU, got none.*{words}"):
            call(model)
