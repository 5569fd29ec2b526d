"""What several test modules use: random arrays, comparisons, a quick `jit`, walks through jaxprs. No test lives here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

quickly = {"xla_backend_optimization_level": 0}  # compiles in half the time
jit = partial(jax.jit, compiler_options=quickly)


def small_segments(monkeypatch):
    """Segments of the least length in both passes, and one product per gate for the inputs, as for large layers."""
    from jaxrnn.engine import tuning

    monkeypatch.setitem(tuning.CACHES, "cpu", tuning.Cache(1, 1, 1))
    jax.clear_caches()


def normal(*shape, seed=0, dtype=None):
    """Standard normal numbers; in float64 where 64-bit numbers are on."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype or jnp.zeros(()).dtype)


def drawn_like(tree, seed=0, scale=0.5):
    """Random arrays in place of those of `tree`, none zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.standard_normal(a.shape), a.dtype), tree)


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
