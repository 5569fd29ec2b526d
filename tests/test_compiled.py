"""What the engine compiles to on devices that are not there: the reader of compiled programs, and counts that may not rise."""

import json
from math import log2
from pathlib import Path

import compiled
import compiled_devices
import compiled_kernels
import jax
import pytest
from compiled_text import Loop, Program, collectives, gpu_program, tpu_program

TABLE = json.loads((Path(compiled.__file__).parent / "results" / "compiled.json").read_text())

HLO = """HloModule jit_f, is_scheduled=true

%inner (p.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %t.1 = (s32[], /*index=1*/f32[4,8]{1,0}) tuple(%p.1)
}

%less (p.2: (s32[], f32[4,8])) -> pred[] {
  %c.2 = s32[]{:T(128)} constant(6)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.2, %c.2), direction=LT
}

%outer (p.3: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %i.3 = s32[]{:T(128)S(6)} copy(%p.3)
  %f.3 = (f32[4,8]{1,0:T(8,128)S(1)}, (f32[4,8], u32[])) fusion(%p.3), kind=kLoop, calls=%body
  %a.3 = f32[4,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %s.3 = ((f32[4,8]{1,0}), f32[4,8]{1,0}, u32[]) all-reduce-start(%f.3), to_apply=%add
  %d.3 = f32[4,8]{1,0} all-reduce-done(%s.3)
  %while.3 = (s32[], f32[4,8]{1,0}) while(%f.3), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %t.3 = (s32[], f32[4,8]{1,0}) tuple(%while.3)
}

ENTRY %main (x.4: f32[4,8]) -> f32[4,8] {
  %x.4 = f32[4,8]{1,0} parameter(0)
  %dot.4 = f32[4,8]{1,0} convolution(%x.4, %x.4), dim_labels=bf_io->bf
  %while.4 = (s32[], f32[4,8]{1,0}) while(%x.4), condition=%less, body=%outer
  ROOT %g.4 = f32[4,8]{1,0} all-reduce(%while.4), to_apply=%add
}
"""

THUNKS = """000: kCommandBuffer [source       | next=003 (1)]
    001: kCustomKernel [source       | next=002 (1)] gemm grid: [128, 1, 1] threads: [64, 1, 1]  shared_memory: 1024 bytes
    002: kCopy         [prev=001 (1) | sink        ] kCopy
003: kWhile         [prev=000 (1) | sink        ]
condition:
    004: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 9999 bytes
  body:
    005: kAsyncStart   [source       | next=008 (3)] stream=computation_stream[0], async_id=5
        007: kDynamicSliceFusion [source | sink] params=1, results=1
            006: kCopy [source | sink] kCopy
    008: kAsyncDone    [source       | sink        ] async_id=5
    009: kWhile        [prev=005 (2) | next=015 (1)]
condition:
        010: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
      body:
        000: kCommandBuffer [source | sink]
            011: kCustomKernel [source | sink] gemm grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 1536 bytes
            012: kCustomKernel [source | sink] add grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
        013: kCustomKernel [source | sink] add grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
    015: kCustomKernel [prev=009 (1) | sink        ] add grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
016: kMemzero       [prev=003 (1) | sink        ] kMemzero
"""


def test_a_sequence_of_thunks_is_read():
    """An asynchronous copy is one launch, a condition none; what is inside of a loop counts there, an inner loop by itself."""
    program = gpu_program(THUNKS, HLO)
    outer, inner = Loop(trips=6, launches=2, command_buffers=0, bare=2), Loop(trips=30, launches=3, command_buffers=1, bare=1)
    assert program == Program(once=3, loops=(outer, inner), shared_memory=1536)
    assert program.in_all == 3 + 6 * 2 + 30 * 3


def test_a_schedule_for_a_tpu_is_read():
    """Scalars, names of memory and the second halves of what is asynchronous are no work; a trip count may stand in a condition."""
    program = tpu_program(HLO)
    assert [(loop.trips, loop.launches) for loop in program.loops] == [(6, 2), (30, 0)]
    assert program.once == 2
    assert program.in_all == 2 + 6 * 2


def test_a_loop_of_unknown_length_has_no_count():
    unknown = HLO.replace("direction=LT", "direction=GT")
    assert [loop.trips for loop in tpu_program(unknown).loops] == [None, None]
    assert tpu_program(unknown).in_all is None


def test_collectives_are_counted_once():
    assert collectives(HLO) == 2


def test_the_table_says_that_nothing_was_timed():
    """And it has every row, so that none can be left out because it is worse."""
    assert TABLE["what"] == "compiled, never timed"
    rows = [(row["device"], tuple(row["size"].values()), row["case"], row["mode"]) for row in TABLE["rows"]]
    wanted = [
        (d, s, c, m) for d in compiled.DEVICES for s in compiled.SIZES.values() for c in compiled.CASES for m in compiled.MODES
    ]
    assert rows == wanted


def test_the_table_reaches_its_goals():
    """Launches per step on an H100, each loop of a row by itself, in one command buffer an iteration; no loop over segments."""
    goals = {
        ("LSTM", "forward"): [2.5],
        ("LSTM", "training"): [5, 5],
        ("GRU", "training"): [5, 5],
        ("LSTM, bidirectional", "forward"): [4],
        ("LSTM, 4 layers", "forward"): [4],
        ("LSTM, 4 layers", "training"): [5, 5],
    }
    for row in TABLE["rows"]:
        goal = goals.get((row["case"], row["mode"])) if row["device"] == "h100" else None
        if goal:
            assert len(row["loops"]) == len(goal)
            for loop, most in zip(row["loops"], goal, strict=True):
                assert loop["launches"] * loop["trips"] / row["size"]["time"] <= most
                assert (loop["command_buffers"], loop["bare"]) == (1, 0)


def test_four_layers_need_hardly_more_launches_than_one():
    """As one loop, which has the steps by which the layers lag behind, and a rest; forward at T=200, 1,100 would be the most."""
    rows = {(r["case"], r["mode"], r["size"]["time"]): r for r in TABLE["rows"] if r["device"] == "h100"}
    for mode in compiled.MODES:
        for time in (100, 1000):
            one, four = rows["LSTM", mode, time], rows["LSTM, 4 layers", mode, time]
            assert four["launches_in_all"] <= 1.25 * one["launches_in_all"]
            assert four["temp_bytes"] <= 4.75 * one["temp_bytes"]
    assert 2 * rows["LSTM, 4 layers", "forward", 100]["launches_in_all"] <= 1100


def test_a_linear_cell_has_no_loop_and_launches_that_grow_as_the_logarithm_of_time():
    rows = {(r["case"], r["mode"], r["size"]["time"]): r for r in TABLE["rows"] if r["device"] == "h100"}
    for case in ("minGRU", "LRU"):
        for mode in compiled.MODES:
            short, long = (rows[case, mode, time] for time in (100, 1000))
            assert short["loops"] == long["loops"] == []
            assert 0 < long["launches_in_all"] - short["launches_in_all"] <= 8 * log2(1000 / 100)


COMPILED = [
    ("LSTM", "forward"), ("LSTM", "training"), ("LSTM, bidirectional", "forward"), ("LSTM, 4 layers", "forward"),
    ("LSTM, 4 layers", "training"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("device", compiled.DEVICES)
@pytest.mark.parametrize(("case", "mode"), COMPILED)
def test_no_count_rises(device, case, mode):
    """Compiled now, against the table; where the compilers are installed, of the version that the table is of."""
    if jax.__version__ != TABLE["versions"]["jax"]:
        pytest.skip(f"the table is of jax {TABLE['versions']['jax']}: write it anew with scripts/compiled.py")
    try:
        now = compiled.row(device, case, "short", mode)
    except compiled_devices.NoCompiler as missing:
        pytest.skip(str(missing))
    size = dict(zip(("time", "batch", "input", "hidden"), compiled.SIZES["short"], strict=True))
    (was,) = (r for r in TABLE["rows"] if (r["device"], r["case"], r["mode"], r["size"]) == (device, case, mode, size))
    assert now["launches_in_all"] <= was["launches_in_all"]
    assert [loop["bare"] for loop in now["loops"]] <= [loop["bare"] for loop in was["loops"]]
    assert len(now["loops"]) <= len(was["loops"])
    assert now["spills"] <= was["spills"]
    assert now["collectives"] <= was["collectives"]
    assert now["temp_bytes"] <= 1.1 * was["temp_bytes"]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("name", "hidden", "dtype"), [("LSTM", 128, "bfloat16"), ("GRU", 61, "float32")])
def test_the_kernels_compile_at_their_largest_with_no_register_in_memory(name, hidden, dtype):
    """Whole, and padded; the sweep over all sizes is `scripts/compiled_kernels.py`. One more is refused, see test_fused.py."""
    assert hidden <= compiled_kernels.sizes(name, dtype)[-1] < 2 * hidden
    try:
        row = compiled_kernels.row(name, hidden, dtype)
    except compiled_devices.NoCompiler as missing:
        pytest.skip(str(missing))
    assert not row["spills"]
    assert row["loops"] == 0
    assert row["launches"] <= 40


def test_the_sizes_of_the_kernels_in_the_table_compile_with_no_register_in_memory():
    """Every size that the kernels accept, with none left out."""
    swept = json.loads((Path(compiled.__file__).parent / "results" / "compiled_kernels.json").read_text())
    assert swept["what"] == "compiled, never timed"
    wanted = [
        (name, dtype, hidden)
        for name in compiled_kernels.FITTING
        for dtype in compiled_kernels.DTYPES
        for hidden in compiled_kernels.sizes(name, dtype)
    ]
    done = [(row["cell"], row["dtype"], row["hidden"]) for row in swept["rows"]]
    assert done == wanted
    assert not any(row["spills"] or row["loops"] for row in swept["rows"])
    assert max(row["shared_memory"] for row in swept["rows"]) <= 232448
