"""One sequence alone, without the axes of its batch of one. No cell may be known here."""

import jax
from jax import lax

from jaxrnn._arrays import may_be_dropped
from jaxrnn.engine.problem import Semantics, Steps, Weights


def without_batch(run, what: Semantics, weights: Weights, state, steps: Steps):
    """`run(weights, state, steps)`, for a cell whose equations do not see the batch. Batch axes of length 1 are left out, and put
    back after it.

    XLA:CPU copies the whole input where an axis of length 1 stands behind time, and takes 30 to 100 × as long for a sum over time
    beside one, which the gradient of a weight is (jax 0.10).
    """
    axes = range(steps.x.ndim - 1 - what.cell.event_ndim)
    behind, of_batch = range(1, 1 + len(axes)), (state, weights.initial, weights.h_mask)
    alone = all(may_be_dropped(a, axes) for a in jax.tree.leaves(of_batch))
    alone = alone and all(may_be_dropped(a, behind) for a in jax.tree.leaves(steps._replace(per_step=None)))
    if not axes or not alone or steps.per_step or weights.context:  # which have axes of their own
        return run(weights, state, steps)
    take = lambda tree, axes: jax.tree.map(lambda a: lax.squeeze(a, axes), tree)
    put = lambda tree, axes: jax.tree.map(lambda a: lax.expand_dims(a, axes), tree)
    weights = weights._replace(initial=take(weights.initial, axes), h_mask=take(weights.h_mask, axes))
    final, outputs = run(weights, take(state, axes), take(steps, behind))
    return put(final, axes), put(outputs, behind)
