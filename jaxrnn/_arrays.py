"""Arrays and where they lie: dtypes, products, selections. The only file that knows JAX's meshes, shardings and varying axes.

What differs between the versions supported, jax 0.10 to 0.12: from 0.12 on, new arrays made "like" another lie on the mesh that
is entered, not on that of the other, so that here every new array is laid by hand. No cell and no loop may be known here.
"""

from contextlib import nullcontext
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding

# Dtypes ----------------------------------------------------------------------------------------------------------------


def promote(*dtypes):
    """The dtype that holds all of `dtypes`; asked for by name, so also under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def computing_dtype(x, w):
    """The dtype that `x` and the weights `w` are computed in where none is asked for; real, also for complex weights."""
    return promote(x.dtype, jnp.finfo(w.dtype).dtype)


def is_real(a) -> bool:
    """Whether the entries of `a` are real floating-point numbers."""
    return jnp.issubdtype(a.dtype, jnp.floating)


def is_differentiable(a) -> bool:
    """Whether the entries of `a` are real or complex floating-point numbers."""
    return jnp.issubdtype(a.dtype, jnp.inexact)


def cast(tree, dtype):
    """Real floating-point arrays in `dtype`; others (complex, integer, keys) as they are.

    Parameters are cast where they are used, so that their gradients are summed in the dtype that they have.
    """
    return jax.tree.map(lambda a: a.astype(dtype) if is_real(a) else a, tree)


# Products --------------------------------------------------------------------------------------------------------------


def contract(x, w, b=None):
    """`x @ w + b` for weights (input, gates, hidden): computed in the dtype of `w`, accumulated at least in float32."""
    wide = promote(w.dtype, jnp.float32)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    x, sharding = x.astype(w.dtype), _product_sharding(x, w, 0)
    if sharding is not None:  # the two meet on one mesh, in both the same part of the axis they share
        specs = jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec
        w = jax.reshard(w, sharding.update(spec=specs[1]))
        x = jax.reshard(x, sharding.update(spec=jax.P(*specs[0][:-1], specs[1][0])))
    product = lax.dot_general(x, w, axes, preferred_element_type=wide, out_sharding=sharding)
    return product if b is None else product + broadcast_like(b, product)


def apply_product(product, x, w):
    """`product(x, w)`, for any product over the axis before the gates of `w`, laid as that of `contract` would be."""
    sharding = _product_sharding(x, w, w.ndim - 3)
    if sharding is not None:
        product = jax.sharding.auto_axes(out_sharding=sharding)(product)
    return product(x, w)


def _product_sharding(x, w, axis: int):
    """How the product of `x` with that axis of `w` should lie on an explicit mesh: as `x` before, as `w` behind. Else None."""
    of_x, of_w = jax.typeof(x).sharding, jax.typeof(w).sharding
    if not any(name is not None for name in (*of_x.spec, *of_w.spec)):
        return None
    meshed = of_w if of_x.mesh.empty else of_x
    return meshed.update(spec=jax.P(*of_x.spec[:-1], *of_w.spec[axis + 1 :]))


def may_join_axes(w) -> bool:
    """Whether two axes of `w` may become one: not under a mesh, which may have one of them in parts."""
    axes = {*jax.sharding.get_abstract_mesh().axis_types, *jax.typeof(w).sharding.mesh.axis_types}
    return axes <= {AxisType.Manual}


# New arrays, and new places for old ones -------------------------------------------------------------------------------


def broadcast_like(a, like):
    """`a` with new axes in front, in the shape, dtype and, on an explicit mesh, sharding of `like`."""
    sharding = jax.typeof(like).sharding
    sharded = any(axis is not None for axis in sharding.spec)
    axes = tuple(range(like.ndim - a.ndim, like.ndim))
    return lax.broadcast_in_dim(a.astype(like.dtype), like.shape, axes, out_sharding=sharding if sharded else None)


def zeros_like(a):
    """Zeros in the shape and dtype of `a`, where `a` lies."""
    zeros, sharding = jnp.zeros_like(a), jax.typeof(a).sharding
    return zeros if sharding.mesh.empty or jax.typeof(zeros).sharding == sharding else jax.reshard(zeros, sharding)


def zeros_beside(x, w):
    """Zeros (*leading axes of `x`, last axis of `w`), laid as those axes are; at least in float32."""
    zeros = jnp.zeros((*x.shape[:-1], w.shape[-1]), promote(w.dtype, jnp.float32))
    of_x, of_w = jax.typeof(x).sharding, jax.typeof(w).sharding
    meshed = of_w if of_x.mesh.empty else of_x
    if AxisType.Explicit in meshed.mesh.axis_types:
        zeros = jax.reshard(zeros, meshed.update(spec=jax.P(*of_x.spec[:-1], of_w.spec[-1])))
    return same_varying_axes(zeros, x, w)[0]


def lay_beside(a, like, axes: int):
    """`a`, whose first `axes` axes are the first of `like`, laid as those are on an explicit mesh."""
    of_like, of_a = jax.typeof(like).sharding, jax.typeof(a).sharding
    if AxisType.Explicit not in of_like.mesh.axis_types:
        return a
    rest = of_a.spec[axes:] if of_a.mesh == of_like.mesh else (None,) * (a.ndim - axes)
    wanted = of_like.update(spec=jax.P(*of_like.spec[:axes], *rest))
    return a if of_a == wanted else jax.reshard(a, wanted)


def may_be_dropped(a, axes) -> bool:
    """Whether all these axes have length 1, and none lies on an explicit mesh: an axis that is put back would not lie there."""
    return all(axis < a.ndim and a.shape[axis] == 1 and jax.typeof(a).sharding.spec[axis] is None for axis in axes)


def select(condition, a, b):
    """Entries of `a` where `condition`, which has the leading axes of both, is true; else of `b`."""
    of_a, of_b = jax.typeof(a).sharding, jax.typeof(b).sharding
    if of_a.mesh.empty != of_b.mesh.empty:  # one was made on the mesh that is entered, the other has no place yet
        a, b = (jax.reshard(x, of_b if of_a.mesh.empty else of_a) for x in (a, b))
    condition = lax.broadcast_in_dim(condition, a.shape, tuple(range(condition.ndim)))
    if jax.typeof(condition).sharding != jax.typeof(a).sharding:  # an explicit mesh, hidden axis sharded
        condition = jax.reshard(condition, jax.typeof(a).sharding)
    return lax.select(condition, a, b)


def stacked_buffer(row, time: int, state):
    """Zeros for `time` rows of the kind of `row`, which the loop over `state` fills."""
    everywhere = tuple(jax.typeof(jax.tree.leaves(state)[0]).mat.varying)
    if jnp.issubdtype(row.dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), row.dtype)).shape
        zeros = jnp.zeros((time, *row.shape, *words), jnp.uint32)
        zeros = lax.pcast(zeros, everywhere, to="varying") if everywhere else zeros
        return jax.random.wrap_key_data(zeros, impl=jax.random.key_impl(row))
    zeros = lax.broadcast(jnp.zeros((), row.dtype), (time, *row.shape))
    if AxisType.Explicit in row.sharding.mesh.axis_types:
        zeros = jax.reshard(zeros, row.sharding.update(spec=jax.P(None, *row.sharding.spec)))
    return lax.pcast(zeros, everywhere, to="varying") if everywhere else zeros


def same_varying_axes(*trees):
    """Make every array vary over the same manual axes of `jax.shard_map`, once, outside the loop: so do their gradients' sums."""
    varying = reduce(frozenset.union, (jax.typeof(a).mat.varying for a in jax.tree.leaves(trees)), frozenset())

    def vary(a):
        missing = tuple(varying - jax.typeof(a).mat.varying)
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(vary, trees)


def varying_over(tree, axes):
    """Every array of `tree` made to vary over manual axes of `jax.shard_map`: its gradient is that of each device's part alone."""
    return jax.tree.map(lambda a: lax.pcast(a, axes, to="varying"), tree)


def shape_like(a, like):
    """The shape and dtype of `a`, of an array that varies over the manual axes of `like`."""
    return jax.ShapeDtypeStruct(a.shape, a.dtype, manual_axis_type=jax.typeof(like).mat)


# Time in parts -----------------------------------------------------------------------------------------------------------


def time_axis_of(xs):
    """The axes of an explicit mesh that the first axis of `xs` is split over, as a spec names them; None: it is whole."""
    return next(iter(jax.typeof(xs).sharding.spec), None)


def in_parts_of_time(run, axis, parts, whole, xs):
    """`run(parts, whole)` where `axis` is manual, on the mesh of `xs`: (what is the same on all devices, what is in parts).

    Args:
        parts: arrays with time in front. whole: arrays without.
    """
    mesh, names = jax.typeof(xs).sharding.mesh, axis if isinstance(axis, tuple) else (axis,)

    def lay(a, first):
        spec = jax.typeof(a).sharding.spec
        rest = tuple(None if any(n in names for n in (s if isinstance(s, tuple) else (s,))) else s for s in spec)
        return jax.reshard(a, NamedSharding(mesh, jax.P(axis, *rest[1:]) if first else jax.P(*rest)))

    parts, whole = (jax.tree.map(lambda a, first=first: lay(a, first), tree) for tree, first in ((parts, True), (whole, False)))
    specs = (jax.P(axis), jax.P()), (jax.P(), jax.P(axis))
    return jax.shard_map(run, mesh=mesh, in_specs=specs[0], out_specs=specs[1], axis_names=set(names))(parts, whole)


# Devices -----------------------------------------------------------------------------------------------------------------


def gpu_at_hand_or_described():
    """Around a kernel for a GPU that is traced where there may be none, to be exported: jax from 0.12 on asks which GPU it is for,
    and hears that it is an H100. A mesh, inside of `jax.shard_map` say, knows its devices itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if jax.__version_info__ < (0, 12) or jax.local_devices()[0].platform == "gpu" or not mesh.empty:
        return nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("gpu",), (AxisType.Auto,), abstract_device=device))
