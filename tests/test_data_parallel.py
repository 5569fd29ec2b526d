"""The gradient over several devices is that of one, summed once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import unannotated

import jaxrnn
from jaxrnn.data_parallel import value_and_grad

EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto


def mesh(devices, kind=AUTO):
    return jax.make_mesh((devices,), ("rows",), devices=jax.devices()[:devices], axis_types=(kind,))


def lay(where, tree, *spec):
    return jax.device_put(tree, NamedSharding(where, P(*spec)))


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
@pytest.mark.parametrize("carried", [False, True])
def test_two_devices_give_the_gradient_of_one_with_one_exchange(carried, kind):
    """So many steps that the engine cuts time into segments: the exchange is not one for each, as a sharded `jit` has it."""
    model = jaxrnn.models.GRUModel(3, 64, 2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in [(4, 700, 3), (4, 2)])
    h = rng.standard_normal((1, 4, 64)).astype(np.float32)

    def loss(params, *batch):
        model = nnx.merge(graph, params)
        if not carried:
            x, y = batch
            return jnp.mean((model(x) - y) ** 2)
        h, x, y = batch
        output, h = model.rnn(x, h_0=h)
        return jnp.mean((model.fc(output[:, -1]) - y) ** 2), h

    results, hlo = [], ""
    for devices in (1, 2):
        where = mesh(devices, kind)
        step = jax.jit(value_and_grad(loss, where, carry=P(None, "rows") if carried else None))
        batch = (*((lay(where, h, None, "rows"),) if carried else ()), *lay(where, (x, y), "rows"))
        params = lay(where, jax.device_get(params))
        with jax.set_mesh(where):
            results.append(jax.device_get(step(params, *batch)))
            hlo = step.lower(params, *batch).compile().as_text()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *results)
    plain = jax.value_and_grad(loss, has_aux=carried)(jax.device_get(params), *((h,) if carried else ()), x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), results[0], jax.device_get(plain))
    computations = re.split(r"\n(?=(?:ENTRY )?%?\S+ \()", hlo)
    exchanges = {c.split(" ")[0]: len(re.findall(r" all-reduce(?:-start)?\(", c)) for c in computations if " all-reduce" in c}
    assert exchanges == {"ENTRY": 1}


def test_an_axis_of_a_mesh_with_several_is_named():
    where = jax.make_mesh((2, 1), ("data", "model"), axis_types=(AUTO, AUTO))
    loss = lambda w, x: jnp.mean((x @ w) ** 2)
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    w = np.arange(3.0, dtype=np.float32)
    value, gradient = jax.jit(value_and_grad(loss, where, axis="data"))(lay(where, w), lay(where, x, "data"))
    np.testing.assert_allclose(value, loss(w, x), rtol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(loss)(w, x), rtol=1e-6)
    with pytest.raises(ValueError, match=r"value_and_grad: `axis` should be one of 'data', 'model', got None\."):
        value_and_grad(loss, where)
    with pytest.raises(ValueError, match=r"value_and_grad: `axis` should be one of 'data', 'model', got 'rows'\."):
        value_and_grad(loss, where, axis="rows")


def loss_of(w, x):
    return jnp.mean(x) * w


def carrying(w, h, x):
    return jnp.mean(x) * w + jnp.mean(h), h


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("x", "came"),
    [
        (np.ones((5, 3)), r"\(5, 3\)\.\nRows are axis 0 of the batch\. If they are axis 1: states go by carry=P\(None, 'rows'\)"),
        (np.ones(5), r"\(5,\)\.(?!\nRows)"),
        (np.ones(()), r"\(\)"),
        ([4, 1], r"\(\)\.\nIs it a list of"),
    ],
)
def test_rows_that_devices_cannot_share_are_refused(x, came, compiled):
    step = value_and_grad(loss_of, mesh(2))
    message = (
        rf"value_and_grad: `batch`: axis 0 of each array should be a multiple of 2, the devices of P\('rows'\), got shape {came}"
    )
    with pytest.raises(ValueError, match=message):
        (jax.jit(step) if compiled else step)(jnp.ones(()), x)


@pytest.mark.parametrize(
    ("carried", "message"),
    [
        ([np.ones((1, 3, 4))], r"`carried`: axis 1 of .* multiple of 2, the devices of P\(None, 'rows'\), got shape \(1, 3, 4\)"),
        ([np.ones(4)], r"`carried`: axis 1 of .* multiple of 2, the devices of P\(None, 'rows'\), got shape \(4,\)"),
        ([], "`carried` should be given behind the parameters, since `carry` is, got none"),
    ],
)
def test_what_is_carried_is_spread_as_it_says(carried, message):
    step = value_and_grad(carrying, mesh(2), carry=P(None, "rows"))
    with pytest.raises(ValueError, match=f"value_and_grad: {message}"):
        step(jnp.ones(()), *carried, *([np.ones((4, 3))] if carried else []))


def test_what_is_not_placed_on_an_explicit_mesh_is_told_how():
    where = mesh(2, EXPLICIT)
    w, h, x = np.ones(2, np.float32), np.ones((1, 4, 2), np.float32), np.ones((4, 2), np.float32)
    step = jax.jit(value_and_grad(carrying, where, carry=P(None, "rows")))
    placed = {"params": lay(where, w[0]), "carried": lay(where, h, None, "rows"), "batch": lay(where, x, "rows")}
    assert jax.tree.map(jnp.shape, step(*placed.values())) == (((), (1, 4, 2)), ())
    for name, array, spec in (("batch", x, r"P\('rows'\)"), ("carried", lay(where, h), r"P\(None, 'rows'\)")):
        place = rf"\nPlace it with jax.device_put\({name}, NamedSharding\(mesh, {spec}\)\)\."
        with pytest.raises(
            ValueError, match=rf"value_and_grad: `{name}` should be spread .* as {spec}, got P\(None, .*\)\.{place}"
        ):
            step(*(placed | {name: array}).values())
    with pytest.raises(ValueError, match=r"`params` should be spread over the mesh as P\(\), got P\('rows'\)"):
        step(*(placed | {"params": lay(where, w, "rows")}).values())


def test_the_random_state_of_dropout_is_no_parameter():
    model = jaxrnn.models.GRUModel(3, 5, 2, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    model.eval()
    where, x, y = mesh(2), np.ones((4, 7, 3), np.float32), np.zeros((4, 2), np.float32)
    graph, everything = nnx.split(model)
    loss = lambda params, x, y: jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)
    with pytest.raises(TypeError) as caught:
        value_and_grad(loss, where)(everything, x, y)
    hint = "Is it the random state of dropout? Split by nnx.Param: graph, params, rest = nnx.split(model, nnx.Param, ...)."
    got = r"value_and_grad: `params` should be floating-point numbers, got dtype (uint32|key<fry>)\.\n"
    assert re.fullmatch(got + re.escape(hint), str(caught.value))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda params, x, y: jnp.mean((nnx.merge(graph, params, rest)(x) - y) ** 2)
    value, _ = jax.jit(value_and_grad(loss, where))(params, x, y)
    np.testing.assert_allclose(value, loss(params, x, y), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"mesh": 2}, TypeError, "`mesh` should be a Mesh, got int"),
        ({"loss": "a"}, TypeError, "`loss` should be a function, got str"),
        ({"carry": "rows"}, TypeError, "`carry` should be a (P|PartitionSpec), got str"),
        ({"carry": P(None, "row")}, ValueError, "`carry` should be one of 'rows', got 'row'"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_when_it_is_made(given, error, message):
    with unannotated(), pytest.raises(error, match=f"value_and_grad: {message}"):
        value_and_grad(**({"loss": loss_of, "mesh": mesh(2)} | given))
