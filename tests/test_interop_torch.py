"""Weights from PyTorch and back, and through safetensors files: what is computed, every bit, every refusal."""

import errno
import pickle
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from jaxrnn import interop
from jaxrnn.interop import (
    from_safetensors,
    from_torch,
    load_safetensors,
    load_torch,
    to_safetensors,
    to_torch,
)

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

TIME, BATCH, INPUT, HIDDEN, PROJ = 7, 4, 3, 5, 2
LENGTHS = np.array([7, 2, 5, 1])

CASES = {
    "RNN": ("RNN", {"num_layers": 2}),
    "relu": ("RNN", {"nonlinearity": "relu", "bidirectional": True, "batch_first": True}),
    "LSTM": ("LSTM", {"bias": False}),
    "two-way LSTM": ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "projected": ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": PROJ}),
    "GRU": ("GRU", {"num_layers": 3, "batch_first": True}),
    "two-way GRU": ("GRU", {"bidirectional": True}),
}


def build(kind, options, dtype=torch.float64, seed=0):
    """A PyTorch module; its initial weights and biases are random, and none is zero."""
    torch.manual_seed(seed)
    return getattr(torch.nn, kind)(INPUT, HIDDEN, **options, dtype=dtype)


def run_torch(theirs, x, lengths, h_0=None):
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths, batch_first=theirs.batch_first, enforce_sorted=False)
    with torch.no_grad():
        output, h_n = theirs(packed, jax.tree.map(torch.tensor, h_0))
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=theirs.batch_first)
    return output, h_n


@jax.jit
def run(ours, x, lengths=None, h_0=None):
    return ours(x, h_0=h_0, lengths=lengths)


def assert_close(got, want, tolerance=1e-12):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert [a.shape for a in got] == [tuple(a.shape) for a in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def assert_same(got, want):
    """Two state_dicts hold the same bits under the same keys, in the same order."""
    assert list(got) == list(want)
    for key, a in want.items():
        assert got[key].dtype == a.dtype
        assert torch.equal(got[key], a)


def bits(module):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(nnx.state(module, nnx.Param))]


# Modules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_imported_module_computes_what_pytorch_computes(case, x64):
    theirs = build(*CASES[case])
    ours = from_torch(theirs)
    shape = (BATCH, TIME, INPUT) if theirs.batch_first else (TIME, BATCH, INPUT)
    x = np.random.default_rng(0).standard_normal(shape)
    got = run(ours, x, LENGTHS)
    assert_close(got, run_torch(theirs, x, LENGTHS))


@pytest.mark.parametrize("case", CASES)
def test_what_came_from_pytorch_goes_back_bit_for_bit(case, x64):
    theirs = build(*CASES[case])
    exported = to_torch(from_torch(theirs))
    assert_same(exported, theirs.state_dict())
    build(*CASES[case], seed=1).load_state_dict(exported, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_in_float32_too_and_from_any_start(case):
    kind, options = CASES[case]
    theirs = build(kind, options, torch.float32)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, TIME, INPUT) if theirs.batch_first else (TIME, BATCH, INPUT)).astype(np.float32)
    rows = theirs.num_layers * (1 + theirs.bidirectional)
    widths = [theirs.proj_size or HIDDEN] + [HIDDEN] * (kind == "LSTM")
    h_0 = tuple(rng.standard_normal((rows, BATCH, width)).astype(np.float32) for width in widths)
    h_0 = h_0 if kind == "LSTM" else h_0[0]
    assert_close(run(from_torch(theirs), x, LENGTHS, h_0), run_torch(theirs, x, LENGTHS, h_0), 1e-6)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    kind=st.sampled_from(["RNN", "LSTM", "GRU", "projected"]),
    sizes=st.tuples(st.integers(1, 4), st.integers(2, 5)),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    options=st.fixed_dictionaries(
        {"num_layers": st.integers(1, 2), "bidirectional": st.booleans(), "bias": st.booleans(), "batch_first": st.booleans()}
    ),
)
def test_any_options_compute_what_pytorch_computes(kind, sizes, lengths, options):
    """With ragged lengths; imported, exported, and imported again from nothing but the exported arrays."""
    if kind == "projected":
        kind, options = "LSTM", options | {"proj_size": 1}
    with jax.enable_x64(True):
        theirs = getattr(torch.nn, kind)(*sizes, **options, dtype=torch.float64)
        ours = from_torch(to_torch(from_torch(theirs)), batch_first=theirs.batch_first)
        axes = (len(lengths), max(lengths)) if theirs.batch_first else (max(lengths), len(lengths))
        x = np.random.default_rng(0).standard_normal((*axes, sizes[0]))
        assert_close(run(ours, x, np.array(lengths)), run_torch(theirs, x, lengths))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["RNN", "LSTM", "GRU", "projected"]),
    sizes=st.tuples(st.integers(1, 4), st.integers(2, 5)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    options=st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 3),
            "bidirectional": st.booleans(),
            "bias": st.booleans(),
            "batch_first": st.booleans(),
        }
    ),
)
def test_any_options_survive_the_round_trip(kind, sizes, dtype, options):
    """From PyTorch to a module, from it to a state_dict, from that alone to a module again: nothing is lost."""
    if kind == "projected":
        kind, options = "LSTM", options | {"proj_size": 1}
    theirs = getattr(torch.nn, kind)(*sizes, **options, dtype=dtype)
    ours = from_torch(theirs)
    assert ours.batch_first == options["batch_first"]
    exported = to_torch(ours)
    assert_same(exported, theirs.state_dict())
    again = from_torch({f"a.{key}": a for key, a in exported.items()}, "a", batch_first=ours.batch_first)
    assert again.stack == ours.stack
    assert bits(again) == bits(ours)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_cell_becomes_one_layer_that_steps(kind, x64):
    theirs = getattr(torch.nn, f"{kind}Cell")(INPUT, HIDDEN, dtype=torch.float64)
    ours = from_torch(theirs)
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((BATCH, INPUT)), rng.standard_normal((2, BATCH, HIDDEN))
    count = 2 if kind == "LSTM" else 1
    state = tuple(jnp.asarray(a)[None] for a in h[:count])
    pair = tuple(torch.tensor(a) for a in h[:count])
    step = jax.jit(lambda ours, x, state: ours.step(x, state))
    y, after = step(ours, x, state if count == 2 else state[0])
    with torch.no_grad():
        want = theirs(torch.tensor(x), pair if count == 2 else pair[0])
    assert_close(jax.tree.map(lambda a: a[0], after), want)
    assert_close(y, want[0] if count == 2 else want)
    assert_same(to_torch(ours, cell=True), theirs.state_dict())
    load_torch(ours, theirs.state_dict())
    bare = getattr(torch.nn, f"{kind}Cell")(INPUT, HIDDEN, bias=False, dtype=torch.float64)
    assert_same(to_torch(from_torch(bare), cell=True), bare.state_dict())


def test_a_module_inside_another_is_named_by_the_prefix():
    """With its options, which a state_dict does not say."""
    model = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"gru": torch.nn.GRU(2, 3, 2)}), "gru": torch.nn.GRU(2, 3)})
    ours = from_torch(model, "a.gru")
    assert not ours.batch_first
    assert_same(to_torch(ours), model["a"]["gru"].state_dict())
    assert_same(to_torch(from_torch(model, "gru.")), model["gru"].state_dict())
    with pytest.raises(ValueError, match=r"`prefix` should be among the modules in `source`, a, a.gru, gru, got 'b.'"):
        from_torch(model, "b.")


def test_options_come_along():
    theirs = torch.nn.RNN(INPUT, HIDDEN, 2, nonlinearity="relu", dropout=0.25).eval()
    ours = from_torch(theirs)
    assert ours.stack.cell.nonlinearity == "relu"
    assert ours.stack.dropout == 0.25
    assert not ours.batch_first
    assert ours.deterministic
    ours.train()
    assert ours(jnp.ones((1, 2, INPUT)))[0].shape == (1, 2, HIDDEN)  # dropout can draw
    assert not from_torch(theirs.train(), batch_first=True, dropout=0.0).deterministic


def test_the_relu_of_a_cell_comes_along():
    assert from_torch(torch.nn.RNNCell(2, 3, nonlinearity="relu")).stack.cell.nonlinearity == "relu"


def test_import_and_export_copy():
    """Training one side leaves the other alone."""
    theirs = torch.nn.LSTM(INPUT, HIDDEN)
    ours = from_torch(theirs)
    before = bits(ours)
    exported = to_torch(ours)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1)
    for a in exported.values():
        a.add_(1)
    assert bits(ours) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_arrays_stay_on_the_devices_that_hold_them(kind):
    """A mesh may be set whose axes have other names than those of parameters."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(kind,))
    theirs = torch.nn.GRU(INPUT, 4, bidirectional=True, dropout=0.0)
    with jax.set_mesh(mesh):
        ours = jaxrnn.GRU(INPUT, 4, bidirectional=True, rngs=nnx.Rngs(0))
        for variable in jax.tree.leaves(ours.params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
            names = jax.P(*[None] * (variable.get_value().ndim - 1), "model")
            variable.set_value(jax.device_put(variable.get_value(), jax.NamedSharding(mesh, names)))
        load_torch(ours, theirs.state_dict())
        assert {a.sharding.spec[-1] for a in jax.tree.leaves(nnx.state(ours, nnx.Param))} == {"model"}
        for copy in (from_torch(theirs), interop.from_onnx(interop.to_onnx(ours))):
            assert bits(copy) == bits(ours)
        interop.from_linen(interop.to_linen(ours))
        assert_same(to_torch(ours), theirs.state_dict())


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_documents_models_load_with_their_head(kind, x64):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = getattr(torch.nn, kind)(INPUT, HIDDEN, batch_first=True)
            self.fc = torch.nn.Linear(HIDDEN, PROJ)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    theirs = Model().double()
    model = getattr(jaxrnn.models, f"{kind}Model")
    options = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    ours = model(INPUT, HIDDEN, PROJ, **options)
    kernel = ours.fc.kernel
    kernel.set_value(kernel.get_value().astype(jnp.float64))
    ours.fc.bias.set_value(ours.fc.bias.get_value().astype(jnp.float64))
    load_torch(ours, theirs.state_dict())
    x = np.random.default_rng(0).standard_normal((BATCH, TIME, INPUT))
    assert_close(run(ours, x), theirs(torch.tensor(x)).detach())
    assert_same(to_torch(ours), theirs.state_dict())


# Refusals -----------------------------------------------------------------------------------------


def spoil(change):
    def spoiled():
        found = dict(torch.nn.LSTM(INPUT, HIDDEN, bidirectional=True).state_dict())
        change(found)
        return found

    return spoiled


SPOILED = {
    "missing": (
        spoil(lambda d: d.pop("bias_hh_l0_reverse")),
        r"bias_hh_l0_reverse should be float32 \(20,\), got none",
    ),
    "extra": (
        spoil(lambda d: d.update(weight_ih_l1=torch.ones(2, 2))),
        r"weight_ih_l1 should not be there, got float32 \(2, 2\)",
    ),
    "shape": (
        spoil(lambda d: d.update(weight_hh_l0=d["weight_hh_l0"][:-1])),
        r"weight_hh_l0 should be float32 \(20, 5\), got float32 \(19, 5\)",
    ),
    "transposed": (
        spoil(lambda d: d.update(weight_ih_l0=d["weight_ih_l0"].T)),
        r"weight_ih_l0 should be float32 \(20, 3\), got float32 \(3, 20\)",
    ),
    "dtype": (
        spoil(lambda d: d.update(bias_ih_l0=d["bias_ih_l0"].half())),
        r"bias_ih_l0 should be float32 \(20,\), got float16 \(20,\)",
    ),
    "float8": (
        spoil(lambda d: d.update(bias_ih_l0=d["bias_ih_l0"].to(torch.float8_e4m3fn))),
        "`bias_ih_l0` of .* should have one of the dtypes .*got float8_e4m3fn",
    ),
    "one direction": (
        lambda: torch.nn.LSTM(INPUT, HIDDEN).state_dict(),
        "weight_ih_l0_reverse should be .* got none",
    ),
    "another cell": (
        lambda: torch.nn.GRU(INPUT, HIDDEN, bidirectional=True).state_dict(),
        r"weight_hh_l0 should be float32 \(20, 5\), got float32 \(15, 5\)",
    ),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_wrong_state_dict_changes_nothing(fault, tmp_path):
    make, message = SPOILED[fault]
    ours = jaxrnn.LSTM(INPUT, HIDDEN, bidirectional=True, rngs=nnx.Rngs(0))
    before = bits(ours)
    with pytest.raises((ValueError, TypeError), match=message):
        load_torch(ours, make())
    assert bits(ours) == before
    contiguous = {key: a.contiguous() for key, a in make().items()}
    safetensors_torch.save_file(contiguous, tmp_path / "spoiled")
    with pytest.raises((ValueError, TypeError), match=message.replace("float8_e4m3fn", "F8_E4M3")):
        load_safetensors(ours, tmp_path / "spoiled")
    assert bits(ours) == before


def test_what_is_no_state_dict_is_refused():
    ours = jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"load_torch: `source` should be a state_dict or a module of PyTorch, got list.$"):
        load_torch(ours, [])


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("2000", r"number its layers from 0 on without a gap, .* got 2 layers, among them weight_ih_l2000"),
        ("1000000000", r"among them weight_ih_l1000000000"),
        ("7" * 5000, r"weight_ih_l7+… \(5011 characters\)"),
    ],
    ids=["2000", "10⁹", "5,000 digits"],
)
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_a_layer_of_any_number_is_refused_before_anything_is_made(number, message, kind):
    """And at once: a module of so many layers would take minutes, or all memory."""
    state = torch.nn.GRU(2, 3).state_dict()
    state |= {key.replace("l0", f"l{number}"): a for key, a in torch.nn.GRU(3, 3).state_dict().items()}
    state = {key: a.numpy() for key, a in state.items()} if kind == "arrays" else state
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        from_torch(state)
    assert time.process_time() - start < 2


def test_arguments_in_the_wrong_order_are_named_as_such():
    ours, theirs = jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0)), torch.nn.GRU(2, 3)
    text = r"got GRU\.\nOurs comes first, PyTorch's second: load_torch\(ours, theirs\)\.$"
    for first in (theirs, theirs.state_dict()):
        with pytest.raises(TypeError, match=text):
            interop.load_torch(first, ours)


def test_what_cannot_be_imported_is_refused_by_name():
    model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(2, 3), "head": torch.nn.Linear(3, 1)})
    with pytest.raises(TypeError, match=r"(?s)got ModuleDict.*Pass its `.encoder`"):
        from_torch(model)
    with pytest.raises(ValueError, match=r"(?s)got encoder.*Is the prefix 'encoder.'\?"):
        from_torch(model.state_dict(), "decoder")
    with pytest.raises(ValueError, match=r"as many rows as 1 \(RNN\), 3 \(GRU\) or 4 \(LSTM\) times 3, .* got 6"):
        from_torch({"weight_ih_l0": np.ones((6, 2)), "weight_hh_l0": np.ones((6, 3))})
    with pytest.raises(TypeError, match=r"should not be float64 while JAX's 64-bit numbers are off"):
        from_torch(torch.nn.GRU(2, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"got float8_e4m3fn"):
        from_torch({k: a.to(torch.float8_e4m3fn) for k, a in torch.nn.GRU(2, 3).state_dict().items()})


class LSTM(torch.nn.Module):
    """Somebody's own layer of the same name, with the same weights and attributes: a minimal gated unit for all we know."""

    def __init__(self):
        super().__init__()
        theirs = torch.nn.LSTM(2, 3, batch_first=True)
        vars(self).update({name: getattr(theirs, name) for name in theirs.__constants__ if not name.startswith("_")})
        for name, a in theirs.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(a.detach().clone()))

    def forward(self, x):
        return 2 * x


class Called(torch.nn.LSTM):
    """A subclass with a call of its own."""

    def __call__(self, x, *states):
        return super().__call__(2 * x, *states)


class Forward(torch.nn.LSTM):
    def forward(self, x, *states):
        return super().forward(2 * x, *states)


class Row(torch.nn.Sequential):
    """A sequence that is none."""

    def forward(self, x):
        return x + super().forward(x)


def changed(layer):
    layer.forward = lambda x: x
    return layer


ODD = {
    "look-alike": (LSTM, r"got (LSTM, )?[\w.]*test_interop_torch\.LSTM", r"be a torch.nn.LSTM or torch.nn.LSTMCell.*_torch\.LSTM"),
    "call": (lambda: Called(2, 3, batch_first=True), *[r"have the __call__ of torch.nn.LSTM, got Called with its own"] * 2),
    "forward": (lambda: Forward(2, 3, batch_first=True), *[r"have the forward of torch.nn.LSTM, got Forward with its own"] * 2),
    "instance": (
        lambda: changed(torch.nn.LSTM(2, 3, batch_first=True)),
        *[r"have the forward of torch.nn.LSTM, got LSTM with"] * 2,
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_a_layer_that_only_looks_like_pytorchs_is_not_taken_for_it(case):
    """Its weights fit, and nobody knows what it computes: not alone, in a list, inside, nor as what a model is compared with."""
    make, message, compared = ODD[case]
    ours = jaxrnn.LSTM(2, 3, rngs=nnx.Rngs(0))
    before = nnx.state(ours)
    for call in (
        lambda: from_torch(make()),
        lambda: from_torch([torch.nn.LSTM(2, 2, batch_first=True), make()]),
        lambda: from_torch(torch.nn.ModuleDict({"rnn": make()}), "rnn"),
    ):
        with pytest.raises(TypeError, match=rf"(?s)from_torch: `source` should (.* )?{message}"):
            call()
    with pytest.raises(TypeError, match=rf"load_torch: `source` should {compared}"):
        load_torch(ours, make())
    with pytest.raises(TypeError, match=rf"to_torch: `target` should {compared}"):
        to_torch(ours, target=make())
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(ours))
    weights = dict(make().named_parameters())
    load_torch(ours, weights)  # as whoever knows better may do
    assert all(torch.equal(a, weights[key]) for key, a in to_torch(ours).items())


def test_a_sequence_with_a_forward_of_its_own_is_no_stack():
    rows = Row(torch.nn.GRU(3, 3), torch.nn.GRU(3, 3))
    with pytest.raises(
        TypeError, match=r"(?s)should have the forward of torch.nn.Sequential, got Row with its own.\nPass list\(source"
    ):
        from_torch(rows)
    assert from_torch(list(rows)).stack.num_layers == 2


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_do_not_come_along_without_a_word(register):
    theirs = torch.nn.GRU(2, 3)
    getattr(theirs, register)(lambda module, *args: None)
    with pytest.warns(UserWarning, match=r"from_torch: 1 forward hook\(s\) of `source` do not come along\."):
        from_torch(theirs)


def test_what_pytorch_lacks_is_refused_by_name():
    def make(cell, *sizes, **options):
        return nnx.eval_shape(lambda: jaxrnn.Recurrent(cell, *sizes, **options, rngs=nnx.Rngs(0)))

    gru = jaxrnn.GRUCell()
    with pytest.raises(ValueError, match=r"the cell should be one that PyTorch has .*got MGUCell"):
        to_torch(make(jaxrnn.MGUCell(), 2, 3))
    with pytest.raises(ValueError, match=r"`merge` should be 'concat'.*got 'sum'"):
        to_torch(make(gru, 2, 3, bidirectional=True, merge="sum"))
    with pytest.raises(ValueError, match=r"`learn_initial_state` should be False"):
        to_torch(make(gru, 2, 3, learn_initial_state=True))
    with pytest.raises(ValueError, match=r"`zoneout` should be 0.0, the only one .*got 0.1"):  # which acts in evaluation too
        to_torch(make(gru, 2, 3, zoneout=0.1))
    with pytest.raises(ValueError, match=r"`residual` should be False.*got True"):
        to_torch(make(gru, 2, 3, 2, residual=True))
    with pytest.raises(ValueError, match=r"`hidden_size` should be one for all .*got \(3, 4\)"):
        to_torch(make(gru, 2, (3, 4), 2))
    with pytest.raises(ValueError, match=r"cell should have one layer"):
        to_torch(make(gru, 2, 3, 2), cell=True)
    with pytest.raises(TypeError, match=r"`module` should be a jaxrnn.RNN, LSTM, GRU.*got Linear"):
        to_torch(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_file_of_ours_is_pytorchs_and_ours_again(dtype, tmp_path, x64):
    """Every bit; also `batch_first`, `dropout` and `nonlinearity`, of which the keys say nothing."""
    options = {"num_layers": 2, "nonlinearity": "relu", "dropout": 0.25, "batch_first": False}
    theirs = build("RNN", options, dtype)
    ours = from_torch(theirs)
    to_safetensors(ours, tmp_path / "ours", "a.b")
    loaded = safetensors_torch.load_file(tmp_path / "ours")
    assert {f"a.b.{key}" for key in theirs.state_dict()} == set(loaded)
    for key, a in theirs.state_dict().items():
        assert torch.equal(loaded[f"a.b.{key}"], a)
    again = from_safetensors(tmp_path / "ours", "a.b")
    assert (again.stack, again.batch_first) == (ours.stack, False)
    assert bits(again) == bits(ours)
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_a_file_of_pytorch_loads(tmp_path):
    theirs = build("LSTM", {"bidirectional": True}, torch.float32)
    arrays = {f"m.{key}": a.detach() for key, a in theirs.state_dict().items()}
    safetensors_torch.save_file(arrays | {"head.weight": torch.ones(3)}, tmp_path / "theirs")
    assert_same(to_torch(from_safetensors(tmp_path / "theirs", "m.")), theirs.state_dict())
    with pytest.raises(ValueError, match=r"Is the prefix 'm.'"):
        from_safetensors(tmp_path / "theirs")
    ours = jaxrnn.LSTM(INPUT, HIDDEN, num_layers=1, bidirectional=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"(?s)of the module\.\nIs the prefix 'm.'\?\n.*m.weight_ih_l0 should not be there"):
        load_safetensors(ours, tmp_path / "theirs")
    with pytest.raises(TypeError, match=r"load_safetensors: `path` should be a str or an os.PathLike, got LSTM.$"):
        load_safetensors(str(tmp_path / "theirs"), ours)
    with pytest.raises(ValueError, match=r"(?s)Is the prefix ''\?$"):
        from_torch(theirs.state_dict(), "m.")
    with pytest.raises(ValueError, match=r"(?s)Is the prefix 'a.'\?\n  "):
        interop.load_torch(jaxrnn.models.GRUModel(2, 3, 2, rngs=nnx.Rngs(0)), {"a.rnn.weight_ih_l0": np.ones((9, 2), "float32")})


def test_a_transposed_array_is_not_written_as_other_numbers(tmp_path, monkeypatch):
    """safetensors 0.8.0 writes the memory of an array, whatever its strides, and says nothing."""
    ours = jaxrnn.LSTM(INPUT, HIDDEN, proj_size=PROJ, rngs=nnx.Rngs(0))
    arrays = jaxrnn.interop._torch_keys.to_arrays(jaxrnn.interop._torch_keys.slots_of("", ours, ""))
    transposed = {key: np.asfortranarray(a) for key, a in arrays.items()}
    assert not transposed["weight_ih_l0"].flags.c_contiguous
    monkeypatch.setattr(jaxrnn.interop._torch_keys, "to_arrays", lambda *_: transposed)
    to_safetensors(ours, tmp_path / "file")
    for key, a in safetensors_torch.load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(a, arrays[key])


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-3], lambda b: b[:9], lambda b: b"?" + b])
def test_a_damaged_file_changes_nothing(damage, tmp_path):
    ours = jaxrnn.GRU(INPUT, HIDDEN, rngs=nnx.Rngs(0))
    to_safetensors(ours, tmp_path / "file")
    (tmp_path / "file").write_bytes(damage((tmp_path / "file").read_bytes()))
    before = bits(ours)
    with pytest.raises(ValueError, match=r"`path` should be a whole safetensors file, got .*file"):
        load_safetensors(ours, tmp_path / "file")
    with pytest.raises(ValueError, match=r"from_safetensors: `path` should be a whole"):
        from_safetensors(tmp_path / "file")
    assert bits(ours) == before
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        load_safetensors(ours, tmp_path / "nowhere")


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_nothing_is_unpickled(kind, tmp_path):
    """Of whatever name; the trap itself works."""
    trap = Trap(tmp_path / "sprung")
    for name in ("m.safetensors", "m.onnx", "m.keras", "m.weights.h5"):
        if kind == "pickle":
            (tmp_path / name).write_bytes(pickle.dumps(trap))
        else:
            torch.save({"weight_ih_l0": trap}, tmp_path / name)
        ours = jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))
        read = {
            "m.safetensors": (from_safetensors, lambda path, ours=ours: load_safetensors(ours, path)),
            "m.onnx": (interop.from_onnx, interop.onnx_node),
        }.get(name, (interop.from_keras, lambda path, ours=ours: interop.load_keras(ours, path)))
        for call in read:
            with pytest.raises(ValueError, match=r"should be a whole"):
                call(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    if kind == "pickle":
        pickle.loads((tmp_path / "m.onnx").read_bytes()).close()
        assert (tmp_path / "sprung").exists()


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """What was there stays, and nothing is left over, when the disk is full or the process may not write."""
    ours = jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))
    writers = {"m.safetensors": to_safetensors, "m.onnx": interop.to_onnx}
    for name in writers:
        (tmp_path / name).write_text("before")

    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError("No space left on device, says no system")):

        def full(*_, error=error):
            raise error

        monkeypatch.setattr(interop._files.os, "replace", full)
        for name, write in writers.items():
            with pytest.raises(OSError, match="No space left on device") as raised:
                write(ours, tmp_path / name)
            assert raised.value.filename == (str(tmp_path / name) if error.errno else None)
            assert (tmp_path / name).read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writers)


def test_options_that_a_newer_file_has_are_not_passed_over(tmp_path):
    import safetensors.numpy

    arrays = jaxrnn.interop._torch_keys.to_arrays(jaxrnn.interop._torch_keys.slots_of("", jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0)), ""))
    for text in ('{"batch_first": true, "merge": "sum"}', "0.2", "not json"):
        safetensors.numpy.save_file(arrays, tmp_path / "file", {"jaxrnn": text})
        with pytest.raises(ValueError, match=r"(?s)the metadata `jaxrnn` of .* should be a JSON object with batch_first, .*newer"):
            from_safetensors(tmp_path / "file")


# Imports ------------------------------------------------------------------------------------------

FRAMEWORKS = ["torch", "safetensors", "onnx", "onnxruntime", "keras", "h5py", "haiku", "equinox"]


@pytest.mark.slow
def test_importing_interop_imports_no_framework():
    code = f"import sys, jaxrnn.interop; print([m for m in {FRAMEWORKS} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


CALLS = {
    "from_torch": (lambda ours: from_torch(3), "torch", "torch"),
    "to_torch": (to_torch, "torch", "torch"),
    "to_safetensors": (lambda ours: to_safetensors(ours, "file"), "safetensors", "jaxrnn[interop]"),
    "from_onnx": (lambda ours: interop.from_onnx("file"), "onnx", "jaxrnn[interop]"),
    "onnx_node": (lambda ours: interop.onnx_node("file"), "onnx", "jaxrnn[interop]"),
    "to_onnx": (interop.to_onnx, "onnx", "jaxrnn[interop]"),
    "from_keras": (lambda ours: interop.from_keras("file.keras"), "h5py", "jaxrnn[interop]"),
    "load_keras": (lambda ours: interop.load_keras(ours, __file__), "h5py", "jaxrnn[interop]"),
    "from_equinox": (lambda ours: interop.from_equinox(3), "equinox", "equinox"),
    "to_equinox": (interop.to_equinox, "equinox", "equinox"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_framework_that_is_missing_is_named(name, monkeypatch):
    """With what to type."""
    call, package, install = CALLS[name]
    for loaded in [package, *(module for module in sys.modules if module.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    message = re.escape(f"{name}: the package {package} is missing: pip install '{install}'")
    with pytest.raises(ImportError, match=message):
        call(jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0)))
