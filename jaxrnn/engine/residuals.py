"""What the forward loop of a gated cell stores for the backward one: which values, each once, and how a step's linear map is put
together from them again."""

from typing import Any

import jax

from jaxrnn._arrays import is_differentiable

COSTLY = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "sin", "cos", "pow"}
COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}


def gate_values(gates: int):
    """A policy that stores the values of the first transcendental functions, one for each gate, and the bits of comparisons.

    These are the gates themselves: to compute them again, their pre-activations would have to be stored instead. What `update`
    makes of them (the tanh of the new cell state, say) is computed again in the backward loop. JAX may rename primitives: a test
    counts what every registered cell stores.
    """
    left = iter(range(gates))

    def policy(primitive, *_, **__) -> bool:
        if primitive.name in COMPARISONS:
            return True
        return primitive.name in COSTLY and next(left, None) is not None

    return policy


@jax.tree_util.register_pytree_node_class
class Linear:
    """The linear map of one step, or of all of them with time in front of its arrays.

    The arrays that it needs are stored here only where they cannot be had elsewhere: each is an array that there is at every step
    anyway ("step"), one that all steps share ("shared"), or stored afresh ("fresh"). Two traces of one step are the same map, so
    that where its parts come from is all that tells maps apart.
    """

    def __init__(self, structure, sources: tuple[tuple[str, int], ...], fresh: list):
        self.structure, self.sources, self.fresh = structure, sources, fresh

    def tree_flatten(self):
        return self.fresh, _Recipe(self.structure, self.sources)

    @classmethod
    def tree_unflatten(cls, recipe, fresh):
        return cls(recipe.structure, recipe.sources, list(fresh))

    @classmethod
    def of(cls, function, per_step: list, shared: list) -> "Linear":
        """The map `function`, from `jax.linearize`, with what it needs told apart by identity."""
        residuals, structure = jax.tree.flatten(function)
        sources, fresh = [], []
        for residual in residuals:
            step = next((i for i, a in enumerate(per_step) if a is residual), None)
            constant = next((i for i, a in enumerate(shared) if a is residual), None)
            if step is not None:
                sources.append(("step", step))
            elif constant is not None:
                sources.append(("shared", constant))
            else:
                sources.append(("fresh", len(fresh)))
                fresh.append(residual)
        return cls(structure, tuple(sources), fresh)

    def stored(self, per_step: list) -> list:
        """The arrays that differ from step to step, `per_step` being those that there are anyway."""
        pick = {"step": per_step, "fresh": self.fresh}
        return [pick[kind][i] for kind, i in self.sources if kind != "shared"]

    def apply(self, stored: list, shared: list, *tangents):
        """The map, from what `stored` gave, applied."""
        own = iter(stored)
        leaves = [shared[i] if kind == "shared" else next(own) for kind, i in self.sources]
        return jax.tree.unflatten(self.structure, leaves)(*tangents)


class _Recipe:
    def __init__(self, structure, sources):
        self.structure, self.sources = structure, sources

    def __eq__(self, other):
        return isinstance(other, _Recipe) and self.sources == other.sources

    def __hash__(self):
        return hash(self.sources)


def partition(tree) -> tuple[Any, Any]:
    """The arrays of `tree` that can be differentiated, and the others, each with None in place of the rest."""
    moving = jax.tree.map(lambda a: a if is_differentiable(a) else None, tree)
    return moving, jax.tree.map(lambda a: None if is_differentiable(a) else a, tree)


def join(moving, others):
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, moving, others, is_leaf=lambda v: v is None)
