"""Compiling for an H100 and a TPU v5e on a machine that has neither. What a compiled program says is read by `compiled_text`."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
from compiled_text import Program, collectives, gpu_program, tpu_program
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""NVIDIA's data sheet of the H100 SXM5, in the form in which XLA takes a device that is not there."""

SPILLS = "xla_gpu_fail_ptx_compilation_on_register_spilling"


class Compiled(NamedTuple):
    """What is known of a compiled program without running it."""

    program: Program
    spills: bool
    """Whether a kernel keeps registers in memory."""
    collectives: int
    temp_bytes: int


class NoCompiler(Exception):
    """What compiles for the device is not installed."""


def device(name: str):
    """The device "h100" or "v5e", to compile for.

    Raises:
        NoCompiler: with what to install.
    """
    try:
        if name == "h100":
            return topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1").devices[0]
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud for the machine's place in it
        return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    except Exception as error:
        version = jax.__version__
        packages = {
            "h100": f"--no-deps jax-cuda12-pjrt=={version} jax-cuda12-plugin=={version} nvidia-cuda-nvcc-cu12",
            "v5e": f"'jax[tpu]=={version}'",
        }
        raise NoCompiler(f"compiling for {name} needs jax >= 0.12 and: pip install {packages[name]}\n({error})") from error


def compile_for(name: str, function, *shapes) -> Compiled:
    """Compile a function of arrays of these shapes for one device, and read what came out."""
    lies = SingleDeviceSharding(device(name))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=lies), shapes)
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda" if name == "h100" else "tpu",))
    if name == "v5e":
        compiled = lowered.compile()
        hlo = compiled.as_text()
        return Compiled(tpu_program(hlo), False, collectives(hlo), compiled.memory_analysis().temp_size_in_bytes)
    with tempfile.TemporaryDirectory() as dump:
        options, spills = {"xla_dump_to": dump}, False
        try:
            compiled = lowered.compile(compiler_options=options | {SPILLS: True})
        except jax.errors.JaxRuntimeError as error:
            if "spill" not in str(error):
                raise
            compiled, spills = lowered.compile(compiler_options=options), True
        thunks = max(Path(dump).glob("*thunk_sequence_after_thunk_passes.txt"), key=lambda path: path.stat().st_mtime).read_text()
    hlo = compiled.as_text()
    return Compiled(gpu_program(thunks, hlo), spills, collectives(hlo), compiled.memory_analysis().temp_size_in_bytes)
