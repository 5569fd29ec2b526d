"""At home in Flax: Linen's transformations, readable paths and the tools that walk them, several batch axes, states by name."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import support
from flax import linen as nn
from flax import nnx, traverse_util
from support import arrays, drawn_like, equal, jit, normal

import jaxrnn
from jaxrnn.models import GRUModel, LSTMModel, SequenceModel

TIME, BATCH, INPUT, HIDDEN = 4, 2, 3, 5
X = normal(BATCH, TIME, INPUT)
Y = normal(BATCH, TIME, HIDDEN, seed=1)
KEY = jax.random.key(0)
close = partial(support.close, tolerance=2e-6)
flavours = pytest.mark.parametrize("flavour", ["nnx", "linen"])


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Without the run-time check of annotations, which would speak first, and costs a third of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def nnx_module(name="GRU", *sizes, **options):
    """An NNX module with random parameters, none zero."""
    module = getattr(jaxrnn, name)(*(sizes or (INPUT, HIDDEN)), **options, rngs=nnx.Rngs(0))
    nnx.update(module, drawn_like(nnx.state(module, nnx.Param)))
    return module


def drawn(module, *args):
    """Variables of a Linen module, random and none zero."""
    return drawn_like(jax.eval_shape(module.init, KEY, *args))


def as_functions(flavour, name="GRU", *sizes, **options):
    """One module as functions: of a call, of a step, of its start, with the same parameters in both flavours."""
    module = nnx_module(name, *sizes, **options)
    if flavour == "nnx":
        return module, module.step, module.initial_state
    linen = getattr(jaxrnn.linen, name)(*(sizes or (INPUT, HIDDEN)), **options)
    variables = {"params": jaxrnn.trees.to_dict(jaxrnn.params_of(module), module.learned and arrays(module.learned))}
    return partial(linen.apply, variables), *(partial(linen.apply, variables, method=m) for m in ("step", "initial_state"))


class Reader(nn.Module):
    """A compact module around layers, which may be transformed."""

    lift: object = staticmethod(lambda module: module)

    @nn.compact
    def __call__(self, x, lengths=None):
        output, _ = self.lift(jaxrnn.linen.LSTM)(INPUT, HIDDEN)(x, lengths=lengths)
        return nn.Dense(2)(output)


# Linen -------------------------------------------------------------------------------------------------------------------

PATHS = {
    f"layer_{layer}/{direction}/{name}"
    for layer in range(2)
    for direction in ("forward", "backward")
    for name in ("w_ih", "w_hh", "b_ih", "b_hh")
}
STARTS = {f"initial/layer_{k}/{direction}/{field}" for k in range(2) for direction in ("forward", "backward") for field in "hc"}


@pytest.mark.slow
@pytest.mark.newest
def test_parameters_are_nested_dicts_of_arrays_with_the_same_paths_in_both_flavours():
    options = {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}
    variables = jaxrnn.linen.LSTM(INPUT, HIDDEN, **options).init(KEY, X)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    assert set(flat) == PATHS | STARTS
    assert all(isinstance(a, jax.Array) for a in flat.values())
    module = jaxrnn.LSTM(INPUT, HIDDEN, **options, rngs=nnx.Rngs(0))
    of_nnx = {"/".join(path): v.get_value().shape for path, v in nnx.to_flat_state(nnx.state(module))}
    assert of_nnx == {path: a.shape for path, a in flat.items()}
    unbiased = jaxrnn.linen.GRU(INPUT, HIDDEN, bias=False).init(KEY, X)["params"]
    assert set(unbiased["layer_0"]["forward"]) == {"w_ih", "w_hh"}
    nested = jaxrnn.linen.Recurrent(jaxrnn.LayerNormGRUCell(), INPUT, HIDDEN)
    params = drawn(nested, X)["params"]
    assert all(isinstance(a, jax.Array) for a in traverse_util.flatten_dict(params).values())
    equal(jaxrnn.trees.to_dict(*jaxrnn.trees.from_dict(nested.stack, params)), params)


UNBOUND = {
    "": (lambda module: module(X), r"variables, x\)"),
    ".step": (lambda module: module.step(X[:, 0]), r'variables, x, state, method="step"\)'),
    ".initial_state": (lambda module: module.initial_state(BATCH), r'variables, batch_shape, method="initial_state"\)'),
}


@pytest.mark.parametrize("method", UNBOUND)
@pytest.mark.parametrize("name", ["GRU", "SequenceModel"])
def test_a_linen_module_without_variables_says_how_it_is_called(name, method):
    call, line = UNBOUND[method]
    made = {"GRU": (INPUT, HIDDEN), "SequenceModel": (jaxrnn.LRUCell(), INPUT, HIDDEN, 2)}[name]
    wanted = rf"^{name}{method}: should be called within apply, .*\nWrite module\.apply\({line}"
    with pytest.raises(ValueError, match=wanted):
        call(getattr(jaxrnn.linen, name)(*made))


def test_linen_tabulates_layers_at_the_top_and_inside_of_a_module():
    table = jaxrnn.linen.LSTM(INPUT, HIDDEN).tabulate(KEY, X, console_kwargs={"width": 200})
    count = 4 * HIDDEN * (INPUT + HIDDEN + 2)
    assert "layer_0" in table and "w_hh" in table and f"Total Parameters: {count}" in table
    inside = Reader().tabulate(KEY, X, console_kwargs={"width": 200})
    assert "LSTM_0" in inside and f"Total Parameters: {count + 2 * HIDDEN + 2}" in inside


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("inside", [False, True])
def test_linen_rematerialises_layers(inside):
    plain, remat = (
        (Reader(), Reader(nn.remat)) if inside else (jaxrnn.linen.LSTM(INPUT, HIDDEN), nn.remat(jaxrnn.linen.LSTM)(INPUT, HIDDEN))
    )
    variables, lengths = drawn(plain, X), jnp.array([3, 0])
    renamed = variables
    if inside:
        renamed = {"params": {k.replace("LSTM", "CheckpointLSTM"): v for k, v in variables["params"].items()}}
    assert jax.tree.map(jnp.shape, jax.eval_shape(remat.init, KEY, X)) == jax.tree.map(jnp.shape, renamed)
    loss = lambda module: lambda v: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(module.apply(v, X, lengths=lengths)))
    got, want = (jit(jax.value_and_grad(loss(m)))(v) for m, v in ((remat, renamed), (plain, variables)))
    sizes = lambda tree: sorted(jax.tree.leaves(tree), key=lambda a: (a.shape, float(a.sum())))
    close((got[0], sizes(got[1])), (want[0], sizes(want[1])))
    assert "remat" in str(jax.make_jaxpr(loss(remat))(renamed))


def test_linen_transforms_a_class_of_ones_own_too():
    class Mine(jaxrnn.linen.GRU):
        def describe_cell(self):
            return jaxrnn.MGUCell()

    module, own = jaxrnn.linen.Recurrent(jaxrnn.MGUCell(), INPUT, HIDDEN), nn.remat(Mine)(INPUT, HIDDEN)
    variables = drawn(module, X)
    assert jax.tree.map(jnp.shape, jax.eval_shape(own.init, KEY, X)) == jax.tree.map(jnp.shape, variables)
    close(jit(own.apply)(variables, X), jit(module.apply)(variables, X))


@pytest.mark.parametrize("named", [False, True])
def test_linen_maps_over_members(named):
    """With boxes and their metadata, and without either."""
    given = {"metadata_params": {nn.PARTITION_NAME: "member"}} if named else {}
    over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "in_axes": None, "axis_size": 3}
    members = nn.vmap(jaxrnn.linen.LSTM, **over, **given)(INPUT, HIDDEN, named_axes=named)
    boxed = jax.eval_shape(members.init, KEY, X)
    if named:
        assert boxed["params"]["layer_0"]["forward"]["w_hh"].names == ("member", "output", "gates", "hidden")
    variables = drawn_like(nn.unbox(boxed))
    output, (h_n, _) = jit(members.apply)(variables, X)
    one = jax.tree.map(lambda a: a[1], variables)
    want, (h, _) = jit(jaxrnn.linen.LSTM(INPUT, HIDDEN).apply)(one, X)
    close((output[1], h_n[1]), (want, h))
    assert np.abs(output[0] - output[1]).max() > 1e-3


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + jaxrnn.linen.GRU(HIDDEN, HIDDEN)(x)[0], None


def looped(params, x, residual):
    """The layers one after the other."""
    layer = jaxrnn.linen.GRU(HIDDEN, HIDDEN)
    for k in range(jax.tree.leaves(params)[0].shape[0]):
        y, _ = layer.apply({"params": jax.tree.map(lambda a, k=k: a[k], params)}, x)
        x = x + y if residual else y
    return x


@pytest.mark.slow
@pytest.mark.newest
def test_linen_scans_over_layers():
    scanned = nn.scan(Residual, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    variables = drawn(scanned, Y, None)
    close(jit(scanned.apply)(variables, Y, None)[0], jit(partial(looped, residual=True))(variables["params"]["GRU_0"], Y))


@pytest.mark.slow
@pytest.mark.newest
def test_linen_scans_over_layers_rematerialised():
    scanned = nn.remat_scan(jaxrnn.linen.GRU, lengths=(2, 2))(HIDDEN, HIDDEN, output_only=True)
    variables = drawn(scanned, Y)
    flat = jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), variables["params"])
    close(jit(scanned.apply)(variables, Y), jit(partial(looped, residual=False))(flat, Y))


class Inside(nn.Module):
    """A compact module that makes another."""

    make: object

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


OVER_MEMBERS = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "in_axes": None, "axis_size": 2}
MADE_INSIDE = {
    "vmap": lambda: nn.vmap(jaxrnn.linen.GRU, **OVER_MEMBERS)(HIDDEN, HIDDEN),
    "remat_scan": lambda: nn.remat_scan(jaxrnn.linen.GRU, lengths=(2,))(HIDDEN, HIDDEN, output_only=True),
    "scan": lambda: nn.scan(Residual, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(),
    "Sequential": lambda: nn.Sequential([jaxrnn.linen.GRU(HIDDEN, 2, output_only=True), jaxrnn.linen.GRU(2, 2, output_only=True)]),
}


@pytest.mark.parametrize("kind", MADE_INSIDE)
def test_what_passes_at_the_top_passes_inside_of_a_compact_module(kind):
    top, inside = MADE_INSIDE[kind](), Inside(MADE_INSIDE[kind])
    variables = drawn(top, Y)
    params = jax.eval_shape(inside.init, KEY, Y)["params"]
    if kind == "Sequential":  # whose layers are then the outer module's
        renamed = {name: variables["params"][f"layers_{name[-1]}"] for name in params}
    else:
        renamed = dict.fromkeys(params, variables["params"])
    assert jax.tree.map(jnp.shape, renamed) == jax.tree.map(jnp.shape, params)
    close(jit(inside.apply)({"params": renamed}, Y), jit(top.apply)(variables, Y))


# Sequential -------------------------------------------------------------------------------------------------------------


def in_sequence(flavour, *layers):
    """A Sequential of layers, each from a function of the namespace and the arguments of a constructor."""
    if flavour == "nnx":
        return nnx.Sequential(*(make(jaxrnn, nnx.Linear, {"rngs": nnx.Rngs(k)}) for k, make in enumerate(layers)))
    module = nn.Sequential([make(jaxrnn.linen, lambda _, width, **__: nn.Dense(width), {}) for make in layers])
    return lambda x: module.apply(drawn(module, x), x)


@flavours
@pytest.mark.parametrize("name", ["GRU", "LSTM", "RNN"])
def test_a_final_state_never_starts_the_next_module_of_this_library_in_a_sequential(flavour, name):
    text = rf"^{name}: arguments should be given by name, all but x, got 2 by position.\nWrite h_0=(.|\n)*output_only=True"
    first, second = (lambda space, _, more, i=i: getattr(space, name)(i, HIDDEN, **more) for i in (INPUT, HIDDEN))
    with pytest.raises(TypeError, match=text):
        in_sequence(flavour, first, second)(X)
    model = LSTMModel(INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))
    for taker, argument in ((model, "h_0"), (SequenceModel(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, rngs=nnx.Rngs(0)), "state")):
        with pytest.raises(TypeError, match=rf"all but x, got 2 by position.\nWrite {argument}="):
            taker(X, X)


@flavours
def test_layers_that_give_their_output_alone_pass_it_on_and_nothing_of_the_future(flavour):
    gru = lambda space, _, more, i=INPUT: space.GRU(i, HIDDEN, output_only=True, **more)
    model = in_sequence(flavour, gru, partial(gru, i=HIDDEN), lambda _, dense, more: dense(HIDDEN, 2, **more))
    output, changed = model(X), model(X.at[:, -1].add(1.0))
    assert output.shape == (BATCH, TIME, 2)
    equal(output[:, :-1], changed[:, :-1])
    assert np.abs(output[:, -1] - changed[:, -1]).min() > 1e-4


@pytest.mark.parametrize("activation", [nnx.leaky_relu, nnx.elu, nnx.celu], ids=lambda one: one.__name__)
def test_an_activation_behind_a_module_wants_its_output_alone(activation):
    """Else it takes h_n for its second argument, for one sequence in silence, as the guides say: no module sees what follows it."""
    pair, alone = (jaxrnn.GRU(INPUT, HIDDEN, output_only=only, rngs=nnx.Rngs(0)) for only in (False, True))
    for x in (X[0], X[:1]):
        wanted = activation(pair(x)[0])
        equal(nnx.Sequential(alone, activation)(x), wanted)
        assert np.abs(nnx.Sequential(pair, activation)(x) - wanted).max() > 1e-2
    with pytest.raises(TypeError, match="got incompatible shapes for broadcasting"):
        nnx.Sequential(pair, activation)(X)


@flavours
def test_a_module_that_gives_its_output_alone_gives_that_of_the_pair(flavour):
    call, step, _ = as_functions(flavour, "LSTM", output_only=True)
    pair = as_functions(flavour, "LSTM")[0]
    output, _, states = pair(X, return_states=True)
    equal(call(X), output)
    equal(call(X, return_states=True), (output, states))
    assert isinstance(step(X[:, 0]), tuple)  # a stream needs its state


@pytest.mark.slow
@pytest.mark.newest
def test_linens_modules_say_deterministic_where_a_call_cannot():
    draws = {"num_layers": 2, "dropout": 0.5}
    module = jaxrnn.linen.GRU(INPUT, HIDDEN, **draws, deterministic=False, output_only=True)
    variables, rngs = drawn(jaxrnn.linen.GRU(INPUT, HIDDEN, 2), X), {"dropout": KEY}
    called = jaxrnn.linen.GRU(INPUT, HIDDEN, **draws).apply(variables, X, deterministic=False, rngs=rngs)[0]
    equal(module.apply(variables, X, rngs=rngs), called)
    equal(nn.remat(jaxrnn.linen.GRU)(INPUT, HIDDEN, **draws, deterministic=False).apply(variables, X, rngs=rngs)[0], called)
    assert np.abs(called - jaxrnn.linen.GRU(INPUT, HIDDEN, 2).apply(variables, X)[0]).max() > 1e-3
    with pytest.raises(ValueError, match="GRU: `deterministic` should be said by the module or in the call, got both"):
        module.apply(variables, X, deterministic=True, rngs=rngs)


# Tools that walk nested dicts ---------------------------------------------------------------------------------------------


def test_masks_by_path_decay_weights_and_freeze_layers():
    module = jaxrnn.linen.LSTM(INPUT, HIDDEN, 2)
    params = drawn(module, X)["params"]
    decayed = traverse_util.path_aware_map(lambda path, _: path[-1].startswith("w_"), params)
    rates = traverse_util.path_aware_map(lambda path, _: "frozen" if path[0] == "layer_0" else "free", params)
    free = optax.chain(optax.add_decayed_weights(0.1, mask=decayed), optax.sgd(1.0))
    optimizer = optax.multi_transform({"frozen": optax.set_to_zero(), "free": free}, rates)
    none = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(none, optimizer.init(params), params)
    got = traverse_util.flatten_dict(updates, sep="/")
    for path, a in traverse_util.flatten_dict(params, sep="/").items():
        close(got[path], -0.1 * a if path.startswith("layer_1/forward/w_") else jnp.zeros_like(a))
    equal(traverse_util.unflatten_dict(traverse_util.flatten_dict(params)), params)


@pytest.mark.slow
@pytest.mark.newest
@flavours
def test_orbax_restores_without_a_target(flavour, tmp_path):
    module = nnx_module("LSTM", INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True)
    saved = nnx.to_pure_dict(nnx.state(module))
    if flavour == "linen":
        linen = jaxrnn.linen.LSTM(INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True)
        saved = {"params": saved}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "saved")
    equal(restored, saved)
    if flavour == "linen":
        equal(linen.apply(restored, X), module(X))
    else:
        other = jaxrnn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True, rngs=nnx.Rngs(1))
        nnx.update(other, restored)
        equal(other(X), module(X))


def test_numpyro_samples_the_parameters_of_a_linen_module():
    import numpyro
    from numpyro.contrib.module import random_flax_module
    from numpyro.distributions import Normal

    linen = jaxrnn.linen.GRU(INPUT, HIDDEN, output_only=True)
    prior = {"layer_0.forward.w_hh": Normal(0, 0.1), "layer_0.forward.b_ih": Normal(3, 0.01)}

    def model(x):
        return numpyro.deterministic("y", random_flax_module("net", linen, prior, input_shape=x.shape)(x))

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, KEY)).get_trace(X)
    sites = {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}
    assert set(sites) == {"net/layer_0.forward.w_hh", "net/layer_0.forward.b_ih"}
    assert abs(float(sites["net/layer_0.forward.b_ih"].mean()) - 3) < 0.1
    forward = trace["net$params"]["value"]["layer_0"]["forward"] | {k.rsplit(".")[-1]: a for k, a in sites.items()}
    equal(trace["y"]["value"], linen.apply({"params": {"layer_0": {"forward": forward}}}, X))


def test_parameters_of_earlier_releases_become_nested_dicts():
    stack = jaxrnn.Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True)
    params = drawn_like(stack.init(KEY))
    initial = drawn_like(stack.init_state(params))
    want = jaxrnn.trees.to_dict(params, initial)
    numbered = lambda tree: {str(k): {d: cell._asdict() for d, cell in enumerate(layer)} for k, layer in enumerate(tree)}
    equal(jaxrnn.trees.to_dict(numbered(params), numbered(initial)), want)
    equal(jaxrnn.trees.from_dict(stack, want), (params, initial))
    linen = jaxrnn.linen.LSTM(INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True)
    with pytest.raises(ValueError, match=r'(?s)^LSTM: `params` should hold "layer_0" .*jaxrnn.trees.to_dict\(params\["layers"\]'):
        linen.apply({"params": {"layers": params, "initial_state": initial}}, X)
    for wrong, text in (
        ({"layers": params}, r"got \['layers'\].\nParameters of 0.1.0\? Write jaxrnn.trees.to_dict\(tree\['layers'\]\)"),
        ({"params": want}, r"\nPass variables\['params'\]"),
        (params, "got tuple"),
        (want | {"layer_2": want["layer_1"]}, r"got \[.*'layer_2/forward/b_hh'"),
        ({name: tree for name, tree in want.items() if name != "initial"}, r"got \['layer_0/backward/b_hh'"),
    ):
        with pytest.raises(ValueError, match=f"(?s)^from_dict: `tree` should have the paths initial/layer_0/backward/c, .*{text}"):
            jaxrnn.trees.from_dict(stack, wrong)


# NNX ---------------------------------------------------------------------------------------------------------------------


def test_params_of_are_what_functions_take():
    module = nnx_module("LSTM", INPUT, HIDDEN, 2)
    params = jaxrnn.params_of(module)
    assert isinstance(params[1][0], jaxrnn.GateParams)
    equal(params, arrays(module.params))
    close(module.stack.apply(params, X.swapaxes(0, 1))[0].swapaxes(0, 1), module(X)[0])
    with pytest.raises(TypeError, match="params_of: `module` should be a Recurrent, got Linear"):
        jaxrnn.params_of(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_the_bridge_makes_a_linen_module_of_one():
    module = nnx.bridge.to_linen(jaxrnn.GRU, INPUT, HIDDEN, num_layers=2)
    variables = drawn_like(nn.unbox(jax.eval_shape(module.init, KEY, X)))
    equal(module.apply(variables, X), jaxrnn.linen.GRU(INPUT, HIDDEN, 2).apply(variables, X))


def test_a_view_draws_nothing_and_leaves_the_module_as_it_is():
    module = nnx_module("GRU", INPUT, HIDDEN, 2, dropout=0.5)
    view = nnx.view(module, deterministic=True)
    equal(view(X), nnx_module("GRU", INPUT, HIDDEN, 2)(X))
    assert not module.deterministic
    assert np.abs(module(X)[0] - view(X)[0]).max() > 1e-3
    with pytest.raises(TypeError, match="GRU: `deterministic` should be True or False, got 1"):
        nnx.view(module, deterministic=1)


def test_an_array_that_is_assigned_becomes_the_value_of_the_parameter():
    module = nnx_module("GRU", INPUT, HIDDEN, learn_initial_state=True)
    variable, new = module.layer_0.forward.w_hh, normal(HIDDEN, 3, HIDDEN, seed=7)
    for assign in (
        lambda: setattr(module.layer_0.forward, "w_hh", new),
        lambda: setattr(module.params[0][0], "w_hh", np.asarray(new, np.float64)),
        lambda: setattr(module, "params", ((jaxrnn.params_of(module)[0][0]._replace(w_hh=new),),)),
    ):
        module.layer_0.forward.w_hh = jnp.zeros_like(new)
        assert not np.any(jaxrnn.params_of(module)[0][0].w_hh)
        assign()
        equal(jaxrnn.params_of(module)[0][0].w_hh, new)
        assert module.layer_0.forward.w_hh is variable
        assert variable.get_value().dtype == jnp.float32
    before = nnx.graphdef(module)
    module.learned = ((jaxrnn.Hidden(jnp.arange(5.0)),),)
    equal(module.initial_state(2), jnp.broadcast_to(jnp.arange(5.0), (1, 2, 5)))
    assert nnx.graphdef(module) == before
    equal(pickle.loads(pickle.dumps(module))(X), module(X))


def test_an_assignment_that_does_not_fit_changes_nothing():
    module = nnx_module("GRU", bias=False)
    before = jaxrnn.params_of(module)
    forward, fields = module.layer_0.forward, module.params[0][0]
    for holder in (forward, fields):
        with pytest.raises(
            ValueError, match=r"assignment: `w_hh` should have shape \(5, 3, 5\), that of the parameter, got \(5, 5\)"
        ):
            holder.w_hh = jnp.ones((5, 5))
        with pytest.raises(TypeError, match="assignment: `w_hh` should be an array, got list"):
            holder.w_hh = [1.0]
        with pytest.raises(TypeError, match="assignment: `w_hh` should be of the kind of the parameter, float32, got dtype int32"):
            holder.w_hh = jnp.ones((5, 3, 5), int)
    with pytest.raises(AttributeError, match=r"GateParams: `w_hh` should be replaced in a copy, params._replace\(w_hh=…\)"):
        before[0][0].w_hh = jnp.ones(1)
    with pytest.raises(ValueError, match=r"assignment: `params\[0\]\[0\].b_ih` should not be there, got a value"):
        module.params = ((before[0][0]._replace(b_ih=jnp.ones(1)),),)
    equal(jaxrnn.params_of(module), before)


# Several batch axes -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@flavours
@pytest.mark.parametrize("batch_first", [True, False])
def test_several_batch_axes_are_one_made_of_all(flavour, batch_first):
    call, _, start = as_functions(flavour, "LSTM", INPUT, HIDDEN, 2, bidirectional=True, batch_first=batch_first)
    rng, shape = np.random.default_rng(0), (2, 3)
    x, h_0 = normal(*shape, TIME, INPUT), (normal(4, *shape, HIDDEN), normal(4, *shape, HIDDEN, seed=1))
    mask, reset = (jnp.asarray(rng.random((*shape, TIME)) < p) for p in (0.7, 0.3))
    joined = lambda a, axes=0: a.reshape(*a.shape[:axes], 6, *a.shape[axes + 2 :])
    lay = (lambda a, axes: a) if batch_first else (lambda a, axes: jnp.moveaxis(a, axes, 0))
    given = {"mask": mask, "reset": reset}
    got = call(lay(x, 2), h_0=h_0, return_states=True, **{k: lay(a, 2) for k, a in given.items()})
    want = call(
        lay(joined(x), 1),
        h_0=tuple(joined(h, 1) for h in h_0),
        return_states=True,
        **{k: lay(joined(a), 1) for k, a in given.items()},
    )
    front = 0 if batch_first else 1
    close((joined(got[0], front), tuple(joined(h, 1) for h in got[1])), want[:2])
    close(jax.tree.map(lambda a: joined(a, front), got[2]), want[2])
    lengths = [[4, 0, 1], [2, 3, 4]]
    close(joined(call(lay(x, 2), lengths=lengths)[0], front), call(lay(joined(x), 1), lengths=[4, 0, 1, 2, 3, 4])[0])
    assert start(shape)[0].shape == (4, 2, 3, HIDDEN)


@pytest.mark.slow
@pytest.mark.newest
def test_several_batch_axes_of_inputs_of_each_step_and_of_models():
    x = normal(2, 3, TIME, INPUT)
    model = GRUModel(INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))
    close(model(x, lengths=[[4, 0, 1], [2, 3, 4]]).reshape(6, 2), model(x.reshape(6, TIME, INPUT), lengths=[4, 0, 1, 2, 3, 4]))
    blocks = SequenceModel(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, last=True, rngs=nnx.Rngs(0))
    close(blocks(x, lengths=[[4, 0, 1], [2, 3, 4]]).reshape(6, 2), blocks(x.reshape(6, TIME, INPUT), lengths=[4, 0, 1, 2, 3, 4]))
    gru = nnx_module("GRU")
    y, _ = gru.step(x[:, :, 0])
    close(y.reshape(6, HIDDEN), gru.step(x[:, :, 0].reshape(6, INPUT))[0])
    conv = jaxrnn.Recurrent(jaxrnn.ConvLSTM1DCell(), INPUT, HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`x` should have shape \(batch, time, width, channels\) or, for one sequence"):
        conv(jnp.ones((2, 3, TIME, 7, INPUT)))  # width 7, or one axis of the batch too many?


# Where states start, and start anew ---------------------------------------------------------------------------------------

STARTING = {
    "learned": ("LSTM", (INPUT, HIDDEN, 2), {"learn_initial_state": True, "bidirectional": True}),
    "not zeros": ("Recurrent", (jaxrnn.SLSTMCell(), INPUT, HIDDEN), {}),
    "of several sizes": ("GRU", (INPUT, (HIDDEN, 4), 2), {"learn_initial_state": True}),
}


@pytest.mark.slow
@pytest.mark.newest
@flavours
@pytest.mark.parametrize("case", STARTING)
def test_the_initial_state_is_what_a_call_starts_from(flavour, case):
    name, sizes, options = STARTING[case]
    call, _, start = as_functions(flavour, name, *sizes, **options)
    for batch in ((2,), 2):
        close(call(X, h_0=start(batch)), call(X))
    assert any(np.abs(a).max() > 0.1 for a in jax.tree.leaves(start(2)))
    close(call(X[0], h_0=start()), call(X[0]))


@pytest.mark.slow
@pytest.mark.newest
def test_the_initial_state_of_a_stack_and_of_one_with_axes_of_space():
    stack = jaxrnn.Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, 2, learn_initial_state=True)
    params = drawn_like(stack.init(KEY))
    initial = drawn_like(stack.init_state(params))
    xs = X.swapaxes(0, 1)
    start = stack.initial_state(params, BATCH, initial=initial)
    close(stack.apply(params, xs, start), stack.apply(params, xs, initial=initial))
    equal(start[1][0].c, jnp.broadcast_to(initial[1][0].c, (BATCH, HIDDEN)))
    conv = jaxrnn.Stack(jaxrnn.ConvLSTM1DCell(), INPUT, HIDDEN)
    params = conv.init(KEY)
    assert conv.initial_state(params, (2, 7))[0][0].c.shape == (2, 7, HIDDEN)
    with pytest.raises(
        ValueError, match=r"Stack.initial_state: `batch_shape` should end in the axes of space, width, of a ConvLSTM1DCell"
    ):
        conv.initial_state(params)
    gru = nnx_module("GRU")
    for wrong, error, text in (
        (X, TypeError, "should be a tuple of integers, got an array"),
        ((2.5,), TypeError, "should be an integer, got 2.5"),
        (-1, ValueError, "should be at least 0, got -1"),
    ):
        with pytest.raises(error, match=f"GRU.initial_state: `batch_shape` {text}"):
            gru.initial_state(wrong)


@flavours
@pytest.mark.parametrize("case", ["learned", "not zeros"])
@pytest.mark.parametrize("dtype", [bool, "float32", "int8", "bfloat16"])
def test_a_step_with_reset_is_the_step_of_a_call_with_reset(flavour, case, dtype):
    name, sizes, options = STARTING[case]
    call, step, start = as_functions(flavour, name, *sizes, **options | {"bidirectional": False})
    reset = jnp.array([[0, 1, 0, 1], [1, 0, 0, 0]], bool)
    state = jax.tree.map(jnp.ones_like, start(BATCH))
    whole, last = call(X, h_0=state, reset=reset)
    for t in range(TIME):
        y, state = step(X[:, t], state, reset=reset[:, t].astype(dtype))
        close(y, whole[:, t])
    close(state, last)


def test_a_reset_of_a_step_that_does_not_fit_is_named():
    gru, stack = nnx_module("GRU"), jaxrnn.Stack(jaxrnn.GRUCell(), INPUT, HIDDEN)
    for _ in range(2):  # what was called before is remembered
        gru.step(X[:, 0], reset=jnp.ones(BATCH))
        with pytest.raises(ValueError, match=r"GRU.step: `reset` should have shape \(2,\), the batch axes of `x`, got \(1,\)"):
            gru.step(X[:, 0], reset=jnp.ones(1))
        with pytest.raises(ValueError, match=r"GRU.step: `reset` should be a boolean array, or 0 and 1, got 0.25"):
            gru.step(X[:, 0], reset=jnp.full(BATCH, 0.25))
    with pytest.raises(ValueError, match=r"Stack.step: `reset` should have shape \(2,\)"):
        stack.step(stack.init(KEY), X[:, 0], reset=jnp.ones(1))
    params, states = jaxrnn.params_of(gru), gru.stack.initial_state(jaxrnn.params_of(gru), BATCH)
    other = jax.tree.map(lambda a: a + 1, states)
    anew, _ = gru.stack.step(params, X[:, 0], other, reset=np.array([1, 0]))
    close(anew, jnp.stack([gru.stack.step(params, X[:, 0], s)[0][k] for k, s in enumerate((states, other))]))


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_masks_and_resets_of_zeros_and_ones_are_booleans(dtype):
    gru, params = nnx_module("GRU"), jaxrnn.params_of(nnx_module("GRU"))
    flags = jnp.array([[1, 0, 1, 1], [0, 1, 1, 0]], bool)
    xs, cell = X.swapaxes(0, 1), gru.stack.cell
    calls = {
        "module": lambda name, flags: gru(X, **{name: flags}),
        "traced": lambda name, flags: jit(lambda flags: gru(X, **{name: flags}))(flags),
        "stack": lambda name, flags: gru.stack.apply(params, xs, **{name: flags.T}),
        "unroll": lambda name, flags: jaxrnn.unroll(cell, params[0][0], xs, **{name: flags.T}),
    }
    for call in calls.values():
        for name in ("mask", "reset"):
            equal(call(name, flags.astype(dtype)), call(name, flags))
    a, b = jnp.full((4, 2), 0.5), normal(4, 2)
    equal(jaxrnn.linear_scan(a, b, reset=flags.T.astype(dtype)), jaxrnn.linear_scan(a, b, reset=flags.T))


@pytest.mark.slow
@pytest.mark.newest
def test_lengths_are_taken_as_a_list():
    gru, xs = nnx_module("GRU"), X.swapaxes(0, 1)
    params, cell = jaxrnn.params_of(gru), gru.stack.cell
    for call in (
        lambda n: gru(X, lengths=n),
        lambda n: gru.stack.apply(params, xs, lengths=n),
        lambda n: jaxrnn.unroll(cell, params[0][0], xs, lengths=n),
        lambda n: LSTMModel(INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))(X, lengths=n),
        lambda n: SequenceModel(cell, INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))(X, lengths=n),
    ):
        want = call(jnp.array([3, 1]))
        equal(call([3, 1]), want)
        equal(call((3, np.int64(1))), want)
    close(jit(lambda n: gru(X, lengths=[n, 1]))(jnp.int32(3)), gru(X, lengths=jnp.array([3, 1])))
    equal(gru(X[0], lengths=3), gru(X[0], lengths=jnp.array(3)))
    equal(gru(X[:0], lengths=[]), gru(X[:0]))


# Models -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
def test_a_models_steps_predict_what_a_call_predicts_of_all_so_far():
    model = LSTMModel(INPUT, HIDDEN, 2, num_layers=2, learn_initial_state=True, rngs=nnx.Rngs(0))
    nnx.update(model, drawn_like(nnx.state(model, nnx.Param)))
    state = None
    for t in range(TIME):
        output, state = model.step(X[:, t], state)
        close(output, model(X[:, : t + 1]))
    output, _ = model.step(X[:, 0], state, reset=jnp.array([1.0, 0.0]))
    close(output[0], model(X[:, :1])[0])
    assert np.abs(output[1] - model(X[:, :1])[1]).max() > 1e-3
    close(model(X, h_0=model.initial_state(BATCH)), model(X))
    with pytest.raises(ValueError, match=r"`bidirectional` should be False to run step by step"):
        LSTMModel(INPUT, HIDDEN, 2, bidirectional=True, rngs=nnx.Rngs(0)).step(X[:, 0])


@pytest.mark.slow
@pytest.mark.newest
@flavours
def test_stretches_of_a_sequence_model_are_the_whole(flavour):
    options = {"num_layers": 2, "learn_initial_state": True}
    if flavour == "nnx":
        model = SequenceModel(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, **options, rngs=nnx.Rngs(0))
        nnx.update(model, drawn_like(nnx.state(model, nnx.Param)))
        call, step, start = model, model.step, model.initial_state
    else:
        model = jaxrnn.linen.SequenceModel(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, learn_initial_state=True)
        variables = drawn(model, X)
        call, step, start = (partial(model.apply, variables, method=m) for m in ("__call__", "step", "initial_state"))
    reset = jnp.zeros((BATCH, TIME)).at[0, 3].set(1)
    whole, end = call(X, reset=reset, return_state=True)
    close(whole, call(X, reset=reset))
    first, state = call(X[:, :2], return_state=True)
    second, last = call(X[:, 2:], state=state, reset=reset[:, 2:], return_state=True)
    close((jnp.concatenate([first, second], 1), last), (whole, end))
    state = start(BATCH)
    for t in range(TIME):
        y, state = step(X[:, t], state, reset=reset[:, t])
        close(y, whole[:, t])
    close(state, end)
    with pytest.raises(TypeError, match="SequenceModel: `state` should be a tuple, the state of each of 2 blocks, got 1 of them"):
        call(X, state=state[:1])
    with pytest.raises(TypeError, match="SequenceModel: `return_state` should be True or False, got 1"):
        call(X, return_state=1)


# Odds and ends -----------------------------------------------------------------------------------------------------------


def test_the_warning_about_dropout_points_at_the_users_line():
    for make in (
        lambda: jaxrnn.LSTM(3, 5, dropout=0.5, rngs=nnx.Rngs(0)),
        lambda: jaxrnn.linen.LSTM(3, 5, dropout=0.5),
        lambda: jaxrnn.Stack(jaxrnn.LSTMCell(), 3, 5, dropout=0.5),
        lambda: LSTMModel(3, 5, 2, dropout=0.5, rngs=nnx.Rngs(0)),
    ):
        with pytest.warns(UserWarning, match="does nothing") as caught:
            make()
        assert caught[0].filename == __file__


def test_64_bit_dtypes_are_refused_where_jax_would_round_them():
    for option in ("dtype", "param_dtype"):
        with pytest.raises(ValueError, match=f"GRU: `{option}` should be float32 or smaller while 64-bit numbers are off, got"):
            jaxrnn.GRU(3, 5, **{option: jnp.float64}, rngs=nnx.Rngs(0))


def test_interop_is_there_without_an_import_of_its_own():
    assert jaxrnn.interop.from_params is not None
    with pytest.raises(AttributeError, match="module 'jaxrnn' has no attribute 'interops'"):
        jaxrnn.interops  # noqa: B018


@flavours
def test_resets_beside_the_input_are_told_where_they_go(flavour):
    """As a scan by hand takes them: (x, reset)."""
    call, step, _ = as_functions(flavour)
    for run, name, at, state in ((call, "GRU", X, "h_0"), (step, r"GRU\.step", X[:, 0], "state")):
        wanted = rf"^{name}: `x` should be one array, got tuple\. Resets are passed as reset=…, a state as {state}=…\."
        with pytest.raises(TypeError, match=wanted):
            run((at, np.zeros(at.shape[:-1], bool)))
