"""Cells of Flax Linen, Flax NNX, Haiku and Equinox as modules, and modules as their cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxrnn
from jaxrnn.interop import from_equinox, from_haiku, from_linen, from_nnx, from_params, to_equinox, to_haiku, to_linen, to_nnx

hk = pytest.importorskip("haiku")
eqx = pytest.importorskip("equinox")

TIME, BATCH, INPUT, HIDDEN = 5, 4, 3, 6


def randomised(tree, seed=0):
    """Arrays of the same shapes, all random, none zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.6 * rng.standard_normal(a.shape), a.dtype), tree)


def make_module(cell, *sizes, **options):
    module = nnx.eval_shape(lambda: jaxrnn.Recurrent(cell, *sizes, **options, rngs=nnx.Rngs(0)))
    nnx.update(module, randomised(nnx.state(module, nnx.Param)))
    return module


def arrays_of(tree):
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


def assert_same(got, want):
    """The same structure, the same bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(arrays_of(got), arrays_of(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def loop(step, carry, xs):
    """Run another library's step (carry, x) -> (carry, y) over time, forward."""
    return jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))(carry, xs)


@jax.jit
def run(module, xs):
    return module(xs)


def assert_computes(module, step, carry, *, carry_order=(0,), tolerance=1e-12, dtype=jnp.float64):
    """One layer gives what the other library's step gives: outputs, and final states in our order."""
    xs = jnp.asarray(np.random.default_rng(1).standard_normal((TIME, BATCH, INPUT)), dtype)
    final, want = loop(step, carry, xs)
    got, h_n = run(module, jnp.swapaxes(xs, 0, 1))
    np.testing.assert_allclose(got, np.swapaxes(want, 0, 1), rtol=tolerance, atol=tolerance)
    final = jax.tree.leaves(final)
    for ours, k in zip(h_n if isinstance(h_n, tuple) else (h_n,), carry_order, strict=True):
        np.testing.assert_allclose(ours[0], final[k], rtol=tolerance, atol=tolerance)


def zeros(dtype=jnp.float64):
    return jnp.zeros((BATCH, HIDDEN), dtype)


# Linen --------------------------------------------------------------------------------------------

LINEN = {
    "LSTMCell": nn.LSTMCell,
    "OptimizedLSTMCell": nn.OptimizedLSTMCell,
    "GRUCell": nn.GRUCell,
    "SimpleCell": nn.SimpleCell,
}


def linen_params(cell, input_size=INPUT, dtype=jnp.float64, seed=0):
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), *linen_example(cell, input_size)))["params"]
    return randomised(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), shapes), seed)


def linen_example(cell, input_size):
    h = jnp.zeros((2, cell.features))
    return (h, h) if "LSTM" in type(cell).__name__ else h, jnp.zeros((2, input_size))


@pytest.mark.parametrize("kind", LINEN)
def test_linen_cells_come_and_go(kind, x64):
    theirs = LINEN[kind](HIDDEN, param_dtype=jnp.float64)
    params = linen_params(theirs)
    module = from_linen(params)
    carry = (zeros(), zeros()) if "LSTM" in kind else zeros()
    assert_computes(
        module, lambda c, x: theirs.apply({"params": params}, c, x), carry, carry_order=(1, 0) if "LSTM" in kind else (0,)
    )
    assert_same(to_linen(module), ((params,),))


def test_the_relu_of_a_linen_cell_is_given(x64):
    theirs = nn.SimpleCell(HIDDEN, activation_fn=nn.relu, param_dtype=jnp.float64)
    params = linen_params(theirs)
    module = from_linen(params, nonlinearity="relu")
    assert_computes(module, lambda c, x: theirs.apply({"params": params}, c, x), zeros())


@pytest.mark.slow
def test_linen_layers_come_with_what_flax_puts_around_them():
    """A stack of `nn.Bidirectional` of `nn.RNN`: different weights in each, all in their place."""
    first, second = nn.GRUCell(HIDDEN), nn.GRUCell(HIDDEN)
    params = [linen_params(c, w, jnp.float32, s) for s, (c, w) in enumerate([(first, INPUT)] * 2 + [(second, 2 * HIDDEN)] * 2)]
    wrapped = {"params": {"forward_rnn": {"cell": params[0]}, "backward_rnn": {"cell": params[1]}}}
    module = from_linen([wrapped, (params[2], {"cell": params[3]})])
    assert (module.stack.num_layers, module.stack.bidirectional) == (2, True)
    assert_same(to_linen(module), ((params[0], params[1]), (params[2], params[3])))

    bidirectional = nn.Bidirectional(nn.RNN(first), nn.RNN(second))
    one = from_linen(wrapped)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, TIME, INPUT)), jnp.float32)
    lengths = jnp.array([5, 2, 4, 1])
    want = jax.jit(lambda v, x, n: bidirectional.apply(v, x, seq_lengths=n))(wrapped, x, lengths)
    got, _ = jax.jit(lambda m, x, n: m(x, lengths=n))(one, x, lengths)
    valid = np.arange(TIME) < np.asarray(lengths)[:, None]
    np.testing.assert_allclose(np.asarray(got)[valid], np.asarray(want)[valid], rtol=1e-6, atol=1e-6)


def test_cells_within_a_larger_module_are_named():
    params = nn.GRUCell(5).init(jax.random.key(0), jnp.zeros((2, 5)), jnp.zeros((2, 3)))["params"]
    with pytest.raises(ValueError, match=r"\nPass those of one cell, source\['GRUCell_0'\]; of two directions, \[\(forward"):
        from_linen({"GRUCell_0": params, "Dense_0": {"kernel": jnp.zeros((5, 2))}})


def test_what_is_no_linen_cell_is_refused():
    params = linen_params(nn.LSTMCell(HIDDEN), dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"hf.bias should be float32 \(6,\), got none"):
        from_linen(params | {"hf": {"kernel": params["hf"]["kernel"]}})
    with pytest.raises(ValueError, match=r"extra.kernel should not be there, got float32 \(6, 6\)"):
        from_linen(params | {"extra": {"kernel": params["hf"]["kernel"]}})
    with pytest.raises(ValueError, match=r"ig.kernel should be float32 \(3, 6\), got float32 \(6, 3\)"):
        from_linen(params | {"ig": {"kernel": params["ig"]["kernel"].T}})
    with pytest.raises(ValueError, match=r"should hold the parameters of Linen's .* got \['hf.kernel', 'hn.bias'"):
        from_linen(linen_params(nn.MGUCell(HIDDEN), dtype=jnp.float32))
    with pytest.raises(ValueError, match=r"the cell should be one that Flax Linen has .*got ChungGRUCell"):
        to_linen(make_module(jaxrnn.ChungGRUCell(), 2, 3))
    with pytest.raises(ValueError, match=r"should have the same cell, got GRUCell, LSTMCell"):
        from_linen([params, linen_params(nn.GRUCell(HIDDEN), HIDDEN, jnp.float32)])
    with pytest.raises(ValueError, match=r"every layer should have as many directions as the first, got \[2, 1\]"):
        from_linen([(params, params), params])
    with pytest.raises(ValueError, match=r"params\[1\]\[0\].w_ih should be float32 \(6, 4, 6\), got float32 \(3, 4, 6\)"):
        from_linen([params, params])


# NNX ----------------------------------------------------------------------------------------------


def nnx_cell(kind, **options):
    made = nnx.eval_shape(lambda: kind(INPUT, HIDDEN, **options, rngs=nnx.Rngs(0)))
    nnx.update(made, randomised(nnx.state(made, nnx.Param)))
    return made


@pytest.mark.parametrize("kind", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_nnx_cells_come_and_go(kind, x64):
    theirs = nnx_cell(kind, param_dtype=jnp.float64, dtype=jnp.float64)
    module = from_nnx(theirs)
    two = "LSTM" in kind.__name__
    graph, state = nnx.split(theirs)
    carry = (zeros(), zeros()) if two else zeros()
    assert_computes(module, lambda c, x: nnx.merge(graph, state)(c, x), carry, carry_order=(1, 0) if two else (0,))
    ((again,),) = to_nnx(module)
    if kind is nnx.OptimizedLSTMCell:
        again = from_nnx(again)
        assert_same(nnx.state(again), nnx.state(module))
    else:
        assert type(again) is kind
        assert_same(nnx.to_pure_dict(nnx.state(again)), nnx.to_pure_dict(nnx.state(theirs)))
        again(carry, jnp.ones((BATCH, INPUT)))


def test_the_relu_of_an_nnx_cell_comes_and_goes():
    module = from_nnx(nnx_cell(nnx.SimpleCell, activation_fn=nnx.relu))
    assert module.stack.cell.nonlinearity == "relu"
    assert to_nnx(module)[0][0].activation_fn is nnx.relu


@pytest.mark.slow
def test_what_an_nnx_cell_cannot_hold_is_refused_by_name():
    """A bias within the reset product of a GRU, as PyTorch, Keras and Linen have it."""
    gru = make_module(jaxrnn.GRUCell(), INPUT, HIDDEN)
    with pytest.raises(ValueError, match=r"(?s)nnx.GRUCell has no bias within its reset product, got .*call to_linen"):
        to_nnx(gru)
    assert float(jnp.abs(to_linen(gru)[0][0]["hn"]["bias"]).max()) > 0
    b_hh = gru.params[0][0].b_hh
    b_hh.set_value(b_hh.get_value().at[2].set(0))
    ((cell,),) = to_nnx(gru)
    x, h = jnp.ones((BATCH, INPUT)), jnp.ones((BATCH, HIDDEN))
    np.testing.assert_allclose(cell(h, x)[1], gru.step(x, h[None])[0], rtol=1e-6, atol=1e-6)


def test_what_has_no_counterpart_in_nnx_is_refused_by_name():
    with pytest.raises(ValueError, match="`activation_fn` should be tanh, got"):
        from_nnx(nnx_cell(nnx.LSTMCell, activation_fn=nnx.relu))
    with pytest.raises(ValueError, match="`gate_fn` should be sigmoid, got"):
        from_nnx(nnx_cell(nnx.GRUCell, gate_fn=nnx.hard_sigmoid))
    with pytest.raises(ValueError, match="`residual` of a SimpleCell should be False"):
        from_nnx(nnx_cell(nnx.SimpleCell, residual=True))
    with pytest.raises(TypeError, match=r"(?s)should be one of nnx.LSTMCell, .* got RNN.\nPass its `.cell`"):
        from_nnx(nnx.RNN(nnx_cell(nnx.GRUCell), rngs=False))
    it = nnx.Bidirectional(*(nnx.RNN(nnx_cell(nnx.GRUCell), rngs=False) for _ in range(2)), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"\[\(it\.forward_rnn\.cell, it\.backward_rnn\.cell\)\]\.$"):
        from_nnx(it)
    assert from_nnx([(it.forward_rnn.cell, it.backward_rnn.cell)]).stack.bidirectional


# Haiku --------------------------------------------------------------------------------------------

HAIKU = {
    "lstm": (lambda: hk.LSTM(HIDDEN), jaxrnn.LSTMCell()),
    "gru": (lambda: hk.GRU(HIDDEN), jaxrnn.ChungGRUCell()),
    "vanilla_rnn": (lambda: hk.VanillaRNN(HIDDEN), jaxrnn.RNNCell(nonlinearity="relu")),
}


def haiku_cell(make, dtype=jnp.float64):
    """A pure step, its random parameters, and its first state."""
    transformed = hk.without_apply_rng(hk.transform(lambda x, state: make()(x, state)))
    initial = hk.without_apply_rng(hk.transform(lambda: make().initial_state(BATCH))).apply({})
    initial = jax.tree.map(lambda a: a.astype(dtype), initial)
    shapes = jax.eval_shape(transformed.init, jax.random.key(0), jnp.zeros((BATCH, INPUT)), initial)
    params = randomised(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), shapes))
    return transformed.apply, params, initial


@pytest.mark.parametrize("name", HAIKU)
def test_haiku_cores_come_and_go(name, x64):
    make, cell = HAIKU[name]
    apply, params, initial = haiku_cell(make)
    module = from_haiku(params, name)
    assert module.stack.cell == cell

    def step(state, x):
        y, state = apply(params, x, state)
        return state, y

    assert_computes(module, step, initial, carry_order=(0, 1) if name == "lstm" else (0,))
    assert_same(to_haiku(module, name), params)


def test_haikus_single_bias_is_read():
    apply, params, initial = haiku_cell(lambda: hk.VanillaRNN(HIDDEN, double_bias=False), jnp.float32)
    x = jnp.ones((BATCH, INPUT))
    got, _ = from_haiku(params, "vanilla_rnn").step(x)
    np.testing.assert_allclose(got, apply(params, x, initial)[0], rtol=1e-6, atol=1e-6)


def test_haiku_layers_are_found_by_name():
    """Each name stands for one core; others with longer names are not mixed in."""
    params = {
        f"net/{name}/linear": {"w": jnp.full((rows, 20), k, jnp.float32), "b": jnp.full(20, -k, jnp.float32)}
        for k, (name, rows) in enumerate([("lstm", 8), ("lstm_1", 8), ("lstm_2", 15), ("lstm_3", 15)], start=1)
    }
    module = from_haiku(
        params | {"net/linear": {"w": jnp.ones((2, 2))}}, [("net/lstm", "net/lstm_1"), ("net/lstm_2", "net/lstm_3")]
    )
    names = [[float(p.w_ih[0, 0, 0]) for p in layer] for layer in module.params]
    assert names == [[1, 2], [3, 4]]
    assert_same(to_haiku(module, [("net/lstm", "net/lstm_1"), ("net/lstm_2", "net/lstm_3")]), params)


def test_what_haiku_lacks_is_refused_by_name():
    _, params, _ = haiku_cell(lambda: hk.LSTM(HIDDEN), jnp.float32)
    with pytest.raises(ValueError, match=r"`name` should be that of a core in `params`, which has \['lstm'\], got 'gru'"):
        from_haiku(params, "gru")
    with pytest.raises(ValueError, match=r"/linear/b should be float32 \(24,\), got none"):
        from_haiku({"lstm/linear": {"w": params["lstm/linear"]["w"]}}, "lstm")
    with pytest.raises(ValueError, match=r"the cell should be one that Haiku has .*got GRUCell"):
        to_haiku(make_module(jaxrnn.GRUCell(), 2, 3), "gru")
    with pytest.raises(ValueError, match=r"`nonlinearity` should be 'relu', the only one of hk.VanillaRNN, got 'tanh'"):
        to_haiku(make_module(jaxrnn.RNNCell(), 2, 3), "vanilla_rnn")
    with pytest.raises(ValueError, match=r"`name` should hold a name for each of 2 layer\(s\) of 1 direction\(s\), got 'lstm'"):
        to_haiku(make_module(jaxrnn.LSTMCell(), 2, 3, 2), "lstm")


# Equinox ------------------------------------------------------------------------------------------


def equinox_cell(kind, *sizes, dtype=jnp.float64, seed=0, **options):
    shapes = eqx.filter_eval_shape(kind, *sizes, dtype=dtype, **options, key=jax.random.key(0))
    return randomised(shapes, seed)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_equinox_cells_come_and_go(kind, bias, x64):
    theirs = equinox_cell(getattr(eqx.nn, kind), INPUT, HIDDEN, use_bias=bias)
    module = from_equinox(theirs)
    assert module.stack.bias == bias

    def step(state, x):
        state = jax.vmap(theirs)(x, state)
        return state, state[0] if kind == "LSTMCell" else state

    two = kind == "LSTMCell"
    assert_computes(module, step, (zeros(), zeros()) if two else zeros(), carry_order=(0, 1) if two else (0,))
    assert_same(to_equinox(module), ((theirs,),))


def test_equinox_layers_come_and_go():
    sizes = [(INPUT, HIDDEN)] * 2 + [(2 * HIDDEN, HIDDEN)] * 2
    a, b, c, d = (equinox_cell(eqx.nn.GRUCell, *s, dtype=jnp.float32, seed=k) for k, s in enumerate(sizes))
    module = from_equinox([(a, b), (c, d)], batch_first=False)
    assert not module.batch_first
    assert_same(to_equinox(module), ((a, b), (c, d)))


@pytest.mark.slow
def test_both_biases_of_ours_become_equinoxs(x64):
    """A module with two random biases: they are added, except within the reset product."""
    for cell in (jaxrnn.LSTMCell(), jaxrnn.GRUCell()):
        module = make_module(cell, INPUT, HIDDEN, param_dtype=jnp.float64)
        ((theirs,),) = to_equinox(module)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, INPUT)))
        state = zeros() + 0.5
        pair = (state, state) if cell == jaxrnn.LSTMCell() else state
        got, _ = module.step(x, jax.tree.map(lambda a: a[None], pair))
        want = jax.vmap(theirs)(x, pair)
        np.testing.assert_allclose(got, want[0] if isinstance(want, tuple) else want, rtol=1e-12, atol=1e-12)
        again = from_linen(to_linen(module)[0][0])
        np.testing.assert_allclose(again.step(x, jax.tree.map(lambda a: a[None], pair))[0], got, rtol=1e-12, atol=1e-12)


def test_what_equinox_lacks_is_refused_by_name():
    with pytest.raises(TypeError, match=r"a cell should be an eqx.nn.LSTMCell or GRUCell, got Linear"):
        from_equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"the cell should be one that Equinox has .*got RNNCell"):
        to_equinox(make_module(jaxrnn.RNNCell(), 2, 3))
    with pytest.raises(ValueError, match=r"`learn_initial_state` should be False"):
        to_equinox(make_module(jaxrnn.GRUCell(), 2, 3, learn_initial_state=True))
    with pytest.raises(TypeError, match=r"`module` should be a jaxrnn.RNN, LSTM, GRU or Recurrent, got Linear"):
        to_equinox(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def everywhere():
    """For each format: a call that reads a tree of arrays, such a tree, and the first of its arrays."""
    haiku = haiku_cell(lambda: hk.LSTM(HIDDEN), jnp.float32)[1]
    graph, state = nnx.split(nnx_cell(nnx.GRUCell))
    equinox, rest = eqx.partition(equinox_cell(eqx.nn.GRUCell, INPUT, HIDDEN, dtype=jnp.float32), eqx.is_array)
    return {
        "linen": (from_linen, linen_params(nn.LSTMCell(HIDDEN), dtype=jnp.float32)),
        "nnx": (lambda tree: from_nnx(nnx.merge(graph, tree)), state),
        "haiku": (lambda tree: from_haiku(tree, "lstm"), haiku),
        "equinox": (lambda tree: from_equinox(eqx.combine(tree, rest)), equinox),
    }


@pytest.mark.parametrize("name", ["linen", "nnx", "haiku", "equinox"])
def test_a_tree_with_a_wrong_array_is_refused(name):
    """Any array of it: of another shape, of another dtype, of a dtype that is not kept."""
    read, tree = everywhere()[name]
    read(tree)
    leaves, structure = jax.tree.flatten(tree)
    for k, a in enumerate(leaves):
        for wrong, message in [
            (jnp.concatenate([a, a], axis=-1), "should be .* got|should hold"),
            (a.astype(jnp.float16), "float16"),
            (a.astype(jnp.float8_e4m3fn), "should have one of the dtypes float64, float32, float16, bfloat16, got float8_e4m3fn"),
        ]:
            with pytest.raises((ValueError, TypeError), match=rf"from_{name}: (?s:.*)({message})"):
                read(jax.tree.unflatten(structure, [*leaves[:k], wrong, *leaves[k + 1 :]]))


def test_a_tree_with_an_array_too_many_or_too_few_is_refused():
    _, params = everywhere()["haiku"]
    with pytest.raises(ValueError, match=r"/linear/z should not be there, got float32 \(24,\)"):
        from_haiku({"lstm/linear": params["lstm/linear"] | {"z": params["lstm/linear"]["b"]}}, "lstm")
    cell = nnx_cell(nnx.LSTMCell)
    cell.extra = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"extra.kernel should not be there, got float32 \(2, 3\)"):
        from_nnx(cell)
    del cell.extra
    cell.hf.bias = None
    with pytest.raises(ValueError, match=r"hf.bias should be float32 \(6,\), got none"):
        from_nnx(cell)
    theirs = equinox_cell(eqx.nn.GRUCell, INPUT, HIDDEN, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"bias should be float32 \(18,\), got none"):
        from_equinox(eqx.tree_at(lambda cell: cell.bias, theirs, None))


def test_what_are_no_cells_is_refused():
    pair = r"or a list of layers, each .* or a pair \(forward, backward\) of them, got"
    with pytest.raises(TypeError, match=rf"from_linen: `source` should be a cell's parameters, {pair} int"):
        from_linen(3)
    with pytest.raises(TypeError, match=rf"from_nnx: `source` should be a cell, {pair} \[\]"):
        from_nnx([])
    with pytest.raises(TypeError, match=rf"from_haiku: `name` should be a name, {pair} \[\[str, int\]\]"):
        from_haiku({}, [("lstm", 3)])
    with pytest.raises(TypeError, match=r"from_haiku: `params` should be what .* returns, got NoneType"):
        from_haiku(None, "lstm")
    with pytest.raises(TypeError, match=rf"from_equinox: `source` should be a cell of Equinox, {pair} \[str\]"):
        from_equinox(["lstm"])


def test_a_pair_is_neither_two_layers_nor_two_directions():
    """With as many inputs as units, both would fit."""
    with pytest.raises(
        TypeError, match=r"from_linen: .* layers, \[first, second\], or directions, \[\(forward, backward\)\], got a pair"
    ):
        from_linen(({}, {}))
    params = jaxrnn.GRUCell().init(jax.random.key(0), 5, 5)
    with pytest.raises(TypeError, match="from_params: `params` should say what the two are"):
        from_params(jaxrnn.GRUCell(), (params, params))
    assert from_params(jaxrnn.GRUCell(), [params, params]).stack.num_layers == 2
    assert from_params(jaxrnn.GRUCell(), [(params, params)]).stack.num_directions == 2


@pytest.mark.slow
def test_cells_compute_the_same_in_float32_too():
    gru = nn.GRUCell(HIDDEN)
    params = linen_params(gru, dtype=jnp.float32)
    apply, haiku, initial = haiku_cell(lambda: hk.LSTM(HIDDEN), jnp.float32)
    equinox = equinox_cell(eqx.nn.GRUCell, INPUT, HIDDEN, dtype=jnp.float32)
    graph, state = nnx.split(nnx_cell(nnx.SimpleCell))
    h = zeros(dtype=jnp.float32)

    def same(h):
        return h, h

    for module, step, carry, order in [
        (from_linen(params), lambda h, x: gru.apply({"params": params}, h, x), h, (0,)),
        (from_haiku(haiku, "lstm"), lambda s, x: apply(haiku, x, s)[::-1], initial, (0, 1)),
        (from_equinox(equinox), lambda h, x: same(jax.vmap(equinox)(x, h)), h, (0,)),
        (from_nnx(nnx.merge(graph, state)), lambda h, x: nnx.merge(graph, state)(h, x), h, (0,)),
    ]:
        assert_computes(module, step, carry, carry_order=order, tolerance=1e-6, dtype=jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_dtypes_are_kept(dtype):
    for cell, there, back in [
        (jaxrnn.LSTMCell(), to_equinox, from_equinox),
        (jaxrnn.GRUCell(), to_linen, from_linen),
        (jaxrnn.LSTMCell(), to_nnx, from_nnx),
        (jaxrnn.ChungGRUCell(), lambda m: to_haiku(m, "gru"), lambda p: from_haiku(p, "gru")),
    ]:
        module = make_module(cell, 2, 3, param_dtype=dtype)
        assert {a.dtype for a in arrays_of(there(module))} == {np.dtype(dtype)}
        assert {a.dtype for a in arrays_of(nnx.state(back(there(module))))} == {np.dtype(dtype)}


NAMED = "core"
BIAS_FREE = {
    "Linen, LSTM": (jaxrnn.LSTMCell(), to_linen, from_linen),
    "Linen, GRU": (jaxrnn.GRUCell(), to_linen, from_linen),
    "Linen, RNN": (jaxrnn.RNNCell(), to_linen, from_linen),
    "NNX, LSTM": (jaxrnn.LSTMCell(), to_nnx, from_nnx),
    "NNX, GRU": (jaxrnn.GRUCell(), to_nnx, from_nnx),
    "Haiku, LSTM": (jaxrnn.LSTMCell(), lambda m: to_haiku(m, NAMED), lambda p: from_haiku(p, NAMED)),
    "Haiku, GRU": (jaxrnn.ChungGRUCell(), lambda m: to_haiku(m, NAMED), lambda p: from_haiku(p, NAMED)),
    "Haiku, RNN": (jaxrnn.RNNCell(nonlinearity="relu"), lambda m: to_haiku(m, NAMED), lambda p: from_haiku(p, NAMED)),
    "Equinox, LSTM": (jaxrnn.LSTMCell(), to_equinox, from_equinox),
}


@pytest.mark.parametrize("case", BIAS_FREE)
def test_a_module_without_biases_comes_back_as_what_it_computes(case):
    """Where the other side has biases, they are those that change nothing: for Haiku's LSTM, which adds 1 itself, minus 1."""
    cell, write, read = BIAS_FREE[case]
    module = make_module(cell, INPUT, HIDDEN, bias=False)
    again = read([list(layer) for layer in there] if isinstance(there := write(module), tuple) else there)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, INPUT)), jnp.float32)
    with jax.disable_jit():  # each is called once
        np.testing.assert_allclose(again(x)[0], module(x)[0], rtol=1e-5, atol=1e-6)
