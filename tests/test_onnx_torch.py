"""What both of PyTorch's exporters write, against the live modules: equal to 1e-5, or refused where it is no stack."""

import gc
import logging
import warnings

import numpy as np
import pytest

from jaxrnn.interop import from_onnx, onnx_nodes

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from test_onnx_random import run_module  # noqa: E402

TIME, BATCH, INPUT, HIDDEN = 5, 2, 3, 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_same(ours, x, want, lengths=None):
    """The outputs of a module, in NumPy, by its parameters, are PyTorch's; what JAX computes from those, other tests say."""
    y, _ = run_module(ours, x.numpy(), None, None if lengths is None else lengths.numpy())
    np.testing.assert_allclose(y, want.detach().numpy(), rtol=1e-5, atol=1e-5)


class Held(torch.nn.Module):
    """A GRU whose initial state is a parameter, one row for the whole batch."""

    def __init__(self, kind=torch.nn.GRU):
        super().__init__()
        self.g = kind(INPUT, HIDDEN, batch_first=True)
        self.h = torch.nn.Parameter(torch.randn(1, 1, HIDDEN))

    def forward(self, x):
        return self.g(x, self.h.expand(1, x.shape[0], HIDDEN).contiguous())[0]


class Mixed(torch.nn.Module):
    """Two time-first LSTMs; between them, all rows become one sequence."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.LSTM(INPUT, HIDDEN), torch.nn.LSTM(HIDDEN, HIDDEN)

    def forward(self, x):
        return self.b(self.a(x)[0].reshape(-1, 1, HIDDEN))[0]


class Harmless(Mixed):
    """The same, with a reshape that changes nothing."""

    def forward(self, x):
        y = self.a(x)[0]
        return self.b(y.reshape(-1, HIDDEN).reshape(x.shape[0], -1, HIDDEN))[0]


class All(torch.nn.Module):
    """One graph with all of them, for an exporter that takes its time, and a stack that holds where it starts."""

    def __init__(self):
        super().__init__()
        self.mixed, self.harmless = Mixed(), Harmless()
        self.stack = torch.nn.GRU(INPUT, HIDDEN, 2, bidirectional=True, batch_first=True)
        self.h = torch.nn.Parameter(torch.randn(4, 1, HIDDEN))

    def forward(self, x):
        t, h = x.transpose(0, 1), self.h.expand(4, x.shape[0], HIDDEN).contiguous()
        return self.stack(x, h)[0], self.mixed(t), self.harmless(t)


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory):
    """The module, and its file by the exporter with `dynamo=True`; batch and time are open."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module, path = All().eval(), tmp_path_factory.mktemp("dynamo") / "m.onnx"
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time")},)
    # The exporter makes millions of objects, which would be looked through again and again, and logs every step of its own.
    gc.disable()
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(action="ignore"):
            args = (torch.randn(BATCH, TIME, INPUT),)
            program = torch.onnx.export(module, args, dynamo=True, dynamic_shapes=sizes, verbose=False)
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
    program.save(path, external_data=False)
    return module, path


@pytest.mark.slow
def test_the_dynamo_exporters_graph_is_read_as_what_it_computes(dynamo):
    """Initial states that the graph expands over the batch are the module's; a stack is one; a mix of rows is none."""
    module, path = dynamo
    nodes = onnx_nodes(path)
    assert sorted(node.op for node in nodes) == ["GRU"] * 2 + ["LSTM"] * 4
    (stack,) = {node.stack for node in nodes if node.op == "GRU"}
    *mixed, harmless = sorted(dict.fromkeys(node.stack for node in nodes if node.op == "LSTM"), key=len)
    assert list(map(len, mixed)) == [1, 1] and len(harmless) == 2
    torch.manual_seed(1)
    for batch, time in ((BATCH, TIME), (3, 4)):
        x = torch.randn(batch, time, INPUT)
        want, _, want_harmless = module(x)
        ours = from_onnx(nodes, list(stack))
        assert ours.batch_first and ours.stack.num_layers == 2 and ours.stack.learn_initial_state
        assert_same(ours, x, want)
        ours = from_onnx(path, list(harmless), batch_first=False)
        assert not ours.stack.learn_initial_state
        assert_same(ours, x.transpose(0, 1), want_harmless)
    with pytest.raises(ValueError, match=r"(?s)they? are no stack.*Reshape to .*not known to be the identity"):
        from_onnx(nodes, [name for (name,) in mixed])


def export(module, args, path, **options):
    """By the exporter without dynamo, with batch and time open."""
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module.eval(), args, path, dynamo=False, opset_version=17, input_names=["x", "n"][: len(args)],
            dynamic_axes={"x": {0: "a", 1: "b"}, "n": {0: "a"}}, **options,
        )  # fmt: skip
    return path


def test_an_initial_state_in_the_graph_is_held(tmp_path):
    theirs = Held(torch.nn.RNN)
    ours = from_onnx(export(theirs, (torch.randn(BATCH, TIME, INPUT),), tmp_path / "m.onnx"))
    x = torch.randn(3, 4, INPUT)
    assert ours.stack.learn_initial_state and ours.batch_first
    assert_same(ours, x, theirs(x))


def test_a_reshape_between_layers_is_read(tmp_path):
    x = torch.randn(TIME, BATCH, INPUT)
    with pytest.raises(
        ValueError, match=r"(?s)'/a/LSTM' \(LSTM\) reads 'x'\n.*Y of '/a/LSTM' through Squeeze, Reshape to \(-1, 1, 4\)"
    ):
        from_onnx(export(Mixed(), (x,), tmp_path / "m.onnx"))
    theirs = Harmless()
    ours = from_onnx(export(theirs, (x,), tmp_path / "m.onnx"))
    x = torch.randn(3, 4, INPUT)
    assert_same(ours, x, theirs(x))


class Packed(torch.nn.Module):
    def __init__(self, *, sort=True, second=None, **options):
        super().__init__()
        self.sort, self.second = sort, second
        self.g = torch.nn.LSTM(INPUT, HIDDEN, batch_first=True, **options)

    def forward(self, x, n):
        pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
        y, _ = pad(self.g(pack(x, n, batch_first=True, enforce_sorted=not self.sort))[0], batch_first=True)
        return self.second(y)[0] if self.second else y


@pytest.mark.parametrize(("sort", "options"), [(True, {"num_layers": 2}), (False, {"bidirectional": True})])
def test_a_packed_sequence_is_read_with_its_lengths(sort, options, tmp_path):
    """Also where the exporter sorts the batch: rows go with their lengths."""
    theirs, lengths = Packed(sort=sort, **options), torch.tensor([5, 3])
    ours = from_onnx(export(theirs, (torch.randn(BATCH, TIME, INPUT), lengths), tmp_path / "m.onnx"))
    assert ours.batch_first
    x, lengths = torch.randn(3, 6, INPUT), torch.tensor([2, 6, 3] if sort else [6, 3, 2])
    assert_same(ours, x, theirs(x, lengths), lengths)


def test_two_layers_of_which_one_is_packed_are_no_stack(tmp_path):
    """Their outputs differ even at valid steps, if the second runs backward too."""
    second = torch.nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
    theirs, lengths = Packed(sort=False, second=second), torch.tensor([5, 3])
    path = export(theirs, (torch.randn(BATCH, TIME, INPUT), lengths), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"'/second/LSTM' has other `sequence_lens` than '/g/LSTM'"):
        from_onnx(path)
    x = torch.randn(BATCH, TIME, INPUT)
    y, _ = run_module(from_onnx(path, "/g/LSTM"), x.numpy(), None, lengths.numpy())
    assert_same(from_onnx(path, "/second/LSTM", batch_first=True), torch.tensor(y, dtype=torch.float32), theirs(x, lengths))


class Deep(torch.nn.Module):
    def __init__(self, swaps):
        super().__init__()
        self.swaps = swaps
        self.a, self.b = torch.nn.LSTM(INPUT, HIDDEN), torch.nn.LSTM(HIDDEN, HIDDEN)

    def forward(self, x):
        y = self.a(x)[0]
        for _ in range(self.swaps):
            y = y.transpose(0, 1).reshape(-1, TIME, 2, 2).transpose(2, 3).reshape(-1, TIME, HIDDEN).transpose(0, 1)
        return self.b(y)[0]


@pytest.mark.parametrize("swaps", [3, 4])
def test_a_long_chain_of_moves_is_none_if_it_ends_where_it_began(swaps, tmp_path):
    """Four swaps of the two pairs of features cancel out, three do not."""
    theirs = Deep(swaps)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(theirs.eval(), (torch.randn(TIME, BATCH, INPUT),), tmp_path / "m.onnx", dynamo=False, input_names=["x"])
    if swaps % 2:
        with pytest.raises(ValueError, match=r"what stands between '/a/LSTM' and '/b/LSTM' is not known to be the identity"):
            from_onnx(tmp_path / "m.onnx")
        return
    ours, x = from_onnx(tmp_path / "m.onnx"), torch.randn(TIME, BATCH, INPUT)
    assert ours.stack.num_layers == 2
    assert_same(ours, x, theirs(x))
