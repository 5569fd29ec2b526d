"""Settings and fixtures that every test shares. No test lives here."""

import gc
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

# What is compiled once is read again: by later tests, by other workers, by the processes that tests start, in the next run.
CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, default in CACHE.items():
    jax.config.update(name, type(default)(os.environ.setdefault(name.upper(), str(default))))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 2)

# Tests compile thousands of small programs and run most of them once: compiled with few optimisations they cost a third. This
# holds for this process alone: notebooks, scripts and examples run in processes of their own, compiled as users compile them,
# and `support.optimised` does so here. XLA reads its flags once, when it first looks for devices.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # a later XLA knows no other way to make a kernel, and stops at a flag that it doesn't know
    flags = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{flags or ''} --xla_cpu_use_fusion_emitters=false"
    jax.devices()
    del os.environ["XLA_FLAGS"]
    if flags is not None:
        os.environ["XLA_FLAGS"] = flags

with jaxtyping.install_import_hook("jaxrnn", "beartype.beartype"):  # annotated shapes are checked, in tests only
    import jaxrnn
    import jaxrnn.cells

# Tracing makes many objects that live shortly beside the many that stay; to search all of them for garbage took a sixth of the time
# of a test that traces much.
gc.freeze()
gc.set_threshold(10_000)

# All different, and none the number of gates of a cell that has the axis, so that a swapped axis cannot hide.
TIME, BATCH, INPUT, HIDDEN, PROJ, SPACE = 9, 8, 6, 7, 5, (10, 2)

NEEDED = {"ProjectedLSTM": {"proj_size": PROJ}}  # arguments that a cell cannot do without


@pytest.fixture(params=jaxrnn.cells.CELLS)
def cell_name(request):
    return request.param


@pytest.fixture
def cell(cell_name):
    """Every registered cell: a new one is tested by existing."""
    return jaxrnn.cells.CELLS[cell_name](**NEEDED.get(cell_name, {}))


@pytest.fixture
def x64():
    """64-bit numbers for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def draw():
    """A function that draws parameters, a start state and inputs, all random, none zero."""

    def draw(cell, *, time=TIME, batch=(BATCH,), bias=True, dtype=jnp.float64, seed=0):
        rng = np.random.default_rng(seed)

        def random(scale):
            return lambda a: jnp.asarray(scale * rng.standard_normal(a.shape), dtype)

        shapes = jax.eval_shape(lambda key: cell.init(key, input_size=INPUT, hidden_size=HIDDEN, bias=bias), jax.random.key(seed))
        params = jax.tree.map(random(0.5), shapes)
        xs = jnp.asarray(rng.standard_normal((time, *batch, *SPACE[: cell.event_ndim - 1], INPUT)), dtype)
        state = jax.tree.map(random(1.0), jax.eval_shape(lambda xs: cell.initial_state(params, xs[0]), xs))
        return params, state, xs

    return draw
