"""What several test modules use: random arrays, comparisons, a quick `jit`, walks through jaxprs. No test lives here."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from flax import nnx

OF_KERNELS = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}  # later, XLA knows no other way
optimised = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False, **OF_KERNELS}
"""Options of `jit` for a program as users get it, which conftest.py leaves off for all others: they compile three times as long."""
quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, **dict.fromkeys(OF_KERNELS, False)}
"""The same as conftest.py has for all programs, for processes that do without it."""
jit = partial(jax.jit, compiler_options=quickly)

RESIDUAL = {"residual": True}
SKIP = {"skip_connections": True}
"""The connections of a stack, as options."""
H_MASK = "h_mask"
"""The argument of `unroll` that multiplies what the recurrent products read of `h`."""


@contextlib.contextmanager
def unannotated():
    """Calls as users make them: no annotation is checked, so that the error is the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def small_segments(monkeypatch):
    """Segments of the least length in both passes, and one product per gate for the inputs, as for large layers."""
    from jaxrnn.engine import tuning

    monkeypatch.setitem(tuning.CACHES, "cpu", tuning.Cache(1, 1, 1))
    jax.clear_caches()


def as_on_a_gpu(monkeypatch):
    """The form of loops that a program gets when it is lowered for a GPU, lowered for a CPU: no segments, several steps at once."""
    from jaxrnn.engine import tuning

    monkeypatch.setitem(tuning.CACHES, "cpu", tuning.Cache(2**60, 2**60, 2**18))
    for name in ("segments", "directions", "wavefront"):
        monkeypatch.setattr(f"jaxrnn.engine.{name}.GPUS", ("cpu",))
    for name in ("tuning", "directions", "wavefront"):
        monkeypatch.setattr(f"jaxrnn.engine.{name}.WORTHWHILE", 8)
    jax.clear_caches()


def normal(*shape, seed=0, dtype=None):
    """Standard normal numbers; in float64 where 64-bit numbers are on."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype or jnp.zeros(()).dtype)


def drawn_like(tree, seed=0, scale=0.5):
    """Random arrays in place of those of `tree`, none zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.standard_normal(a.shape), a.dtype), tree)


def plain(tree):
    """The same arrays as nested dictionaries of NumPy arrays."""
    if tree is None:
        return None
    if hasattr(tree, "_asdict"):
        return {name: plain(value) for name, value in tree._asdict().items()}
    return np.asarray(tree)


def arrays(variables):
    """The values of a module's variables."""
    return jax.tree.map(lambda v: v.get_value(), variables, is_leaf=lambda v: isinstance(v, nnx.Variable))


def equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def close(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def weighted(tree):
    """A sum of every entry of `tree`, each with another weight."""
    rng = np.random.default_rng(3)
    terms = [jnp.sum(a * jnp.asarray(rng.standard_normal(a.shape), a.dtype)) for a in jax.tree.leaves(tree)]
    return sum(terms[1:], terms[0])


PLATFORM = "cpu"
"""The platform for which walks through jaxprs look."""


def inner_jaxprs(eqn):
    platforms = eqn.params.get("branches_platforms")
    if platforms is not None:  # what is lowered for one platform only
        index = next((i for i, names in enumerate(platforms) if names and PLATFORM in names), len(platforms) - 1)
        yield eqn.params["branches"][index].jaxpr
        return
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def equations(jaxpr):
    """All equations, those of inner jaxprs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def count(jaxpr, primitive):
    return sum(eqn.primitive.name == primitive for eqn in equations(jaxpr))


def residual_bytes(function, *args):
    """Bytes of what the forward pass of `function` stores for the backward pass."""
    kept = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(kept))


def keys_drawn_from(function, *args):
    """The data of the key of every draw that `function` makes, in any order; its other arithmetic is not carried out.

    The program is read, not what the library calls: so it does not matter which function draws.
    """
    found = []

    def once(compute):
        results = []
        return lambda: (results or results.append(compute()) or results)[0]

    def walk(jaxpr, consts, inputs):
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        read = lambda v: (lambda: v.val) if hasattr(v, "val") else known[v]
        for eqn in jaxpr.eqns:
            now = [read(v) for v in eqn.invars]
            inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr") if k in eqn.params), None)
            if inner is not None and eqn.primitive.name not in ("scan", "while", "cond"):
                closed = [] if not hasattr(inner, "consts") else [lambda c=c: c for c in inner.consts]
                outs = walk(getattr(inner, "jaxpr", inner), closed, now)
            else:
                values = once(lambda eqn=eqn, now=now: bind(eqn, [one() for one in now]))
                outs = [lambda k=k, values=values: values()[k] for k in range(len(eqn.outvars))]
            if eqn.primitive.name == "random_bits":
                found.append(now[0])
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def bind(eqn, values):
        out = eqn.primitive.bind(*values, **eqn.params)
        return out if eqn.primitive.multiple_results else [out]

    closed = jax.make_jaxpr(function)(*args)
    walk(closed.jaxpr, [lambda c=c: c for c in closed.consts], [lambda a=a: a for a in jax.tree.leaves(args)])
    return [np.asarray(jax.random.key_data(key())) for key in found]
