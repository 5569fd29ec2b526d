"""Residual blocks around a recurrence: both flavours, against their equations, in padding, step by step."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import close, drawn_like, equations, jit, normal

import jaxrnn
from jaxrnn.models import SequenceModel

BATCH, TIME, INPUT, HIDDEN, OUTPUT = 3, 7, 2, 6, 4
KINDS = {"MinGRU": {}, "LRU": {"bidirectional": True}, "GRU": {}, "ParaLSTM": {"zoneout": 0.2}}
every_kind = pytest.mark.parametrize("name", KINDS)


def made(name, **options):
    """A model with random parameters, none zero, after `eval()`."""
    model = SequenceModel(jaxrnn.CELLS[name](), INPUT, HIDDEN, OUTPUT, rngs=nnx.Rngs(0), **KINDS[name], **options)
    nnx.update(model, drawn_like(nnx.state(model, nnx.Param)))
    model.eval()
    return model


def by_hand(model, x):
    """The equations, from the arrays and the recurrent modules of a model."""

    def linear(layer, x):
        return x @ layer.kernel.get_value() + layer.bias.get_value()

    def norm(layer, x):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer.scale.get_value() + layer.bias.get_value()

    x = linear(model.encoder, x)
    for block in model.blocks:
        y = jax.nn.gelu(block.rnn(norm(block.norm, x))[0])
        u, v = jnp.split(linear(block.glu, y), 2, axis=-1)
        x = x + u * jax.nn.sigmoid(v)
    return linear(model.head, norm(model.norm, x))


@pytest.mark.slow
@pytest.mark.newest
@every_kind
def test_a_model_is_its_equations_in_both_flavours(name):
    model, x = made(name, num_layers=3), normal(BATCH, TIME, INPUT)
    want = by_hand(model, x)
    close(model(x), want, 2e-5)
    linen = jaxrnn.linen.SequenceModel(jaxrnn.CELLS[name](), INPUT, HIDDEN, OUTPUT, num_layers=3, **KINDS[name])
    raw = lambda tree: jax.tree.map(lambda p: p.get_value(), tree, is_leaf=lambda p: isinstance(p, nnx.Variable))
    both = lambda layer: {"kernel": raw(layer.kernel), "bias": raw(layer.bias)}
    scaled = lambda layer: {"scale": raw(layer.scale), "bias": raw(layer.bias)}
    params = {"encoder": both(model.encoder), "head": both(model.head), "norm": scaled(model.norm)}
    for k, block in enumerate(model.blocks):
        params |= {f"norms_{k}": scaled(block.norm), f"glus_{k}": both(block.glu)}
        params |= {f"rnns_{k}": jaxrnn.trees.to_dict(raw(block.rnn.params))}
    close(linen.apply({"params": params}, x), want, 2e-5)
    shapes = jax.eval_shape(linen.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, nn.unbox(shapes))
    if name != "LRU":
        state, ys = None, []
        for t in range(TIME):
            y, state = linen.apply({"params": params}, x[:, t], state, method="step")
            ys.append(y)
        close(jnp.stack(ys, 1), want, 2e-5)


@pytest.mark.slow
@pytest.mark.newest
@every_kind
@pytest.mark.parametrize("last", [False, True])
def test_padding_of_any_kind_reaches_no_value_and_no_gradient(name, last):
    """NaN stands there. At the last valid step the prediction is that of the valid steps alone; with none, that of zeros."""
    model, x = made(name, last=last), normal(BATCH, TIME, INPUT)
    lengths = jnp.array([TIME, 3, 0])
    valid = jnp.arange(TIME) < lengths[:, None]
    spoilt = jnp.where(valid[..., None], x, jnp.nan)
    graph, state, rest = nnx.split(model, nnx.Param, ...)

    def loss(state, x, lengths):
        output = nnx.merge(graph, state, rest)(x, lengths=lengths)
        return jnp.sum(output**2), output

    gradient = jit(jax.grad(loss, (0, 1), has_aux=True))
    (g_state, g_x), output = gradient(state, spoilt, lengths)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((g_state, g_x, output)))
    assert not g_x[~valid].any()
    assert np.abs(g_x[valid]).min() > 0
    alone = model(x[1:2, :3])[0]
    close(output[1] if last else output[1, :3], alone, 2e-5)
    if last:
        close(output[2], model.head(model.norm(jnp.zeros(HIDDEN))), 1e-6)
    else:
        assert not output[~valid].any()


@pytest.mark.slow
@pytest.mark.newest
@every_kind
def test_one_sequence_is_a_batch_as_any_other(name):
    """Its gradient is that of a batch of two times the same. No sum over time leaves an axis of length 1, see `blocks.rowwise`."""
    graph, params, rest = nnx.split(made(name), nnx.Param, ...)
    x = normal(1, TIME, INPUT)
    gradient = jax.grad(lambda params, x: jnp.mean(jnp.sin(nnx.merge(graph, params, rest)(x))))
    close(jit(gradient)(params, x), jit(gradient)(params, jnp.concatenate([x, x])), 1e-5)
    sums = [eqn for eqn in equations(jax.make_jaxpr(gradient)(params, x)) if eqn.primitive.name == "reduce_sum"]
    over_time = [eqn for eqn in sums if any(eqn.invars[0].aval.shape[axis] == TIME for axis in eqn.params["axes"])]
    assert over_time
    assert [eqn.outvars[0].aval.shape for eqn in over_time if 1 in eqn.outvars[0].aval.shape] == []
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    by_x = jax.grad(lambda x, params: jnp.mean(jnp.sin(nnx.merge(graph, params, rest)(x))))
    with jax.set_mesh(mesh):  # on which the batch has a place, which it keeps
        there = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        close(jax.device_get(jit(by_x)(there, params)), jax.device_get(by_x(x, params)), 1e-5)
        assert jit(lambda x, params: nnx.merge(graph, params, rest)(x))(there, params).sharding.spec[0] == "data"


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", [name for name in KINDS if name != "LRU"])
def test_steps_are_the_whole_and_a_reset_begins_anew(name):
    model, x = made(name), normal(BATCH, TIME, INPUT)
    whole, state = model(x), None
    for t in range(TIME):
        y, state = model.step(x[:, t], state)
        close(y, whole[:, t], 2e-5)
    reset = jnp.zeros((BATCH, TIME), bool).at[:, 4].set(True)
    close(model(x, reset=reset), jnp.concatenate([whole[:, :4], model(x[:, 4:])], axis=1), 2e-5)


@pytest.mark.slow
@pytest.mark.newest
def test_dropout_acts_in_training_alone_and_both_times():
    x = normal(2, 5, INPUT)
    model = SequenceModel(jaxrnn.MinGRUCell(), INPUT, HIDDEN, OUTPUT, dropout=0.5, rngs=nnx.Rngs(0))
    first, second = model(x), model(x)
    assert np.abs(first - second).max() > 1e-3
    model.eval()
    close(model(x), model(x), 0)
    everything = SequenceModel(jaxrnn.MinGRUCell(), INPUT, HIDDEN, OUTPUT, dropout=1.0, rngs=nnx.Rngs(0))
    close(everything(x), everything.head(everything.norm(everything.encoder(x))), 1e-6)
    linen = jaxrnn.linen.SequenceModel(jaxrnn.MinGRUCell(), INPUT, HIDDEN, OUTPUT, dropout=0.5)
    variables = linen.init(jax.random.key(0), x)
    draw = lambda k: linen.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(k)})
    assert np.abs(draw(0) - draw(1)).max() > 1e-3
    close(draw(0), draw(0), 0)


@pytest.mark.slow
@pytest.mark.newest
def test_a_step_draws_nothing_in_training():
    model, x = SequenceModel(jaxrnn.MinGRUCell(), INPUT, HIDDEN, OUTPUT, dropout=0.5, rngs=nnx.Rngs(0)), normal(2, INPUT)
    first, (again, _) = model.step(x)[0], model.step(x)
    close(first, again, 0)
    model.eval()
    close(first, model(x[:, None])[:, 0], 2e-5)


@pytest.mark.slow
@pytest.mark.newest
def test_a_model_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or an annotation would speak first
    make = partial(SequenceModel, jaxrnn.LRUCell(), INPUT, HIDDEN, OUTPUT)
    with pytest.raises(ValueError, match=r"SequenceModel: `output_size` should be"):
        SequenceModel(jaxrnn.LRUCell(), INPUT, HIDDEN, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"SequenceModel: `merge` should be one of 'concat', 'sum', 'mean', got 'none'"):
        make(merge="none", rngs=nnx.Rngs(0))
    linen = partial(jaxrnn.linen.SequenceModel, jaxrnn.LRUCell(), INPUT)
    for made in (partial(SequenceModel, jaxrnn.LRUCell(), INPUT, rngs=nnx.Rngs(0)), linen):
        for given, rule in (
            ({"hidden_size": -8}, "`hidden_size` should be at least 1, got -8"),
            ({"hidden_size": (8,)}, r"`hidden_size` should be an integer, got \(8,\)"),
            ({"num_layers": 0}, "`num_layers` should be at least 1, got 0"),
            ({"last": 1}, "`last` should be True or False, got 1"),
            ({"dropout": 2.0}, "`dropout` should be a probability, from 0 to 1, got 2.0"),
            ({"merge": "none"}, "`merge` should be one of 'concat', 'sum', 'mean', got 'none'"),
            ({"zoneout": -0.1}, "`zoneout` should be a probability, from 0 to 1, got -0.1"),
            ({"backend": "gpu"}, "`backend` should be one of .*, got 'gpu'"),
        ):
            with pytest.raises((TypeError, ValueError), match=f"SequenceModel: {rule}"):
                made(**{"hidden_size": HIDDEN, "output_size": OUTPUT} | given)
    with pytest.raises(TypeError, match="SequenceModel: `deterministic` should be True or False, got 1"):
        linen(HIDDEN, OUTPUT, deterministic=1)
    model, linen = make(rngs=nnx.Rngs(0)), linen(HIDDEN, OUTPUT)
    variables = linen.init(jax.random.key(0), jnp.ones((BATCH, TIME, INPUT)))
    for step in (model.step, partial(linen.apply, variables, method="step")):
        for given, rule in (
            ({"x": jnp.ones((BATCH, 5))}, r"`x` should end in input_size=2 \(the model's `input_size`\), got shape \(3, 5\)"),
            ({"x": [[1.0, 2.0]]}, "`x` should be an array, got list"),
            ({"x": jnp.ones((BATCH, INPUT), int)}, "`x` should be a floating-point array, got dtype int32"),
            ({"x": jnp.ones((BATCH, INPUT)), "reset": jnp.ones(2)}, r"`reset` should have shape \(3,\), the batch axes of `x`"),
        ):
            with pytest.raises((TypeError, ValueError), match=f"SequenceModel.step: {rule}"):
                step(**given)
    with pytest.raises(ValueError, match=r"SequenceModel: `x` should have shape \(\*batch, time, input\), got \(2,\)"):
        model(jnp.ones(INPUT))
    with pytest.raises(ValueError, match=r"SequenceModel: `x` should end in input_size=2"):
        model(jnp.ones((BATCH, TIME, 5)))
    with pytest.raises(ValueError, match=r"SequenceModel: `lengths` should have shape \(3,\)"):
        model(jnp.ones((BATCH, TIME, INPUT)), lengths=jnp.ones(TIME, int))
    with pytest.raises(ValueError, match=r"`bidirectional` should be False"):
        make(bidirectional=True, rngs=nnx.Rngs(0)).step(jnp.ones((BATCH, INPUT)))
