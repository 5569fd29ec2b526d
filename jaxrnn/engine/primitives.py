"""A loop over time as a primitive of JAX: its meaning is a function, on which every platform and every transformation that knows
nothing better falls back; on a platform, a kernel may stand in its place. No loop and no cell may be known here."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn._arrays import same_varying_axes


class Loop:
    """A primitive that is called as `loop(what, *trees)`.

    Args:
        name: of the primitive, as it reads in a program.
        meaning: (what, *trees) -> a tree of arrays. Forward mode and `vmap` are those of this function.
        shapes: (what, *trees) -> the same tree, of shapes and dtypes.
    """

    def __init__(self, name: str, meaning: Callable, shapes: Callable):
        self.meaning, self.shapes = meaning, shapes
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True
        self.primitive.def_impl(jax.jit(partial(_flat, meaning), static_argnames=("what", "tree")))
        self.primitive.def_abstract_eval(partial(_abstract, shapes))
        ad.primitive_jvps[self.primitive] = partial(_jvp, meaning)
        batching.primitive_batchers[self.primitive] = partial(_batched, meaning)
        self.lower(meaning)

    def __call__(self, what, *trees):
        leaves, tree = jax.tree.flatten(same_varying_axes(*trees))
        outs = self.primitive.bind(*leaves, what=what, tree=tree)
        return jax.tree.unflatten(jax.tree.structure(self.shapes(what, *trees)), outs)

    def lower(self, function: Callable, platform: str | None = None):
        """Let programs for a platform, or for all others, compute it by `function`."""
        mlir.register_lowering(self.primitive, mlir.lower_fun(partial(_flat, function), multiple_results=True), platform=platform)

    def differentiate(self, rule: Callable):
        """Let the derivative be (what, trees, tangents) -> (outs, tangents of outs), what cannot be differentiated having None for
        a tangent."""

        def jvp(primals, tangents, *, what, tree):
            outs, d_outs = rule(what, jax.tree.unflatten(tree, primals), jax.tree.unflatten(tree, _instantiate(primals, tangents)))
            return jax.tree.leaves(outs), jax.tree.leaves(d_outs)

        ad.primitive_jvps[self.primitive] = jvp

    def transpose(self, rule: Callable):
        """Let the loop, linear in all trees but the first, be transposed by (what, first tree, cotangents) -> cotangents of the
        other trees."""

        def transposed(cotangents, *operands, what, tree):
            fixed, *_ = jax.tree.unflatten(tree, operands)
            out = self.shapes(what, *jax.tree.unflatten(tree, [getattr(a, "aval", a) for a in operands]))
            zero = lambda a, d: jnp.zeros(a.shape, a.dtype) if type(d) is ad.Zero else d
            leaves = [zero(a, d) for a, d in zip(jax.tree.leaves(out), cotangents, strict=True)]
            found = jax.tree.leaves(rule(what, fixed, jax.tree.unflatten(jax.tree.structure(out), leaves)))
            wanted = operands[len(jax.tree.leaves(fixed)) :]
            given = [d if ad.is_undefined_primal(a) else None for a, d in zip(wanted, found, strict=True)]
            return [None] * (len(operands) - len(wanted)) + given

        ad.primitive_transposes[self.primitive] = transposed


def _flat(function, *leaves, what, tree):
    return jax.tree.leaves(function(what, *jax.tree.unflatten(tree, leaves)))


def _abstract(shapes, *avals, what, tree):
    like = next(a for a in avals if jnp.issubdtype(a.dtype, jnp.floating))  # on a mesh by hand, all vary over the same axes
    return [like.update(shape=a.shape, dtype=a.dtype) for a in jax.tree.leaves(shapes(what, *jax.tree.unflatten(tree, avals)))]


def _jvp(meaning, primals, tangents, **static):
    float0 = lambda a, d: np.zeros(a.shape, jax.dtypes.float0) if d is None else d
    tangents = [float0(a, d) for a, d in zip(primals, _instantiate(primals, tangents), strict=True)]
    return jax.jvp(partial(_flat, meaning, **static), tuple(primals), tuple(tangents))


def _batched(meaning, operands, axes, **static):
    outs = jax.vmap(partial(_flat, meaning, **static), in_axes=tuple(axes))(*operands)
    return outs, [0] * len(outs)


def _instantiate(primals, tangents):
    """Tangents as arrays; None of what cannot be differentiated."""
    zero = lambda a: jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.floating) else None
    return [zero(a) if type(d) is ad.Zero or d.dtype == jax.dtypes.float0 else d for a, d in zip(primals, tangents, strict=True)]
