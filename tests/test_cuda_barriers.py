"""Every barrier of the CUDA kernels is needed, and a wrong use of one is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_on_cpu import SOURCES, barriers, build, needs_compiler, run

from robustdyn.kernels.cuda.launch import source_text

pytestmark = needs_compiler


def test_without_a_barrier_some_order_fails():
    """Without any of them the kernels race, and one of the orders shows it."""
    script = Path(__file__).parent / "cuda_mutants.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fates = json.loads(done.stdout)
    assert len(fates) == sum(len(barriers(source)) for source in SOURCES)
    assert set(fates.values()) <= {"wrong numbers", "crash"}, fates


WRONG = """
extern "C" __global__ void some_leave(int* out) {
  if (threadIdx.x < 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
EXPORT(some_leave)
extern "C" __global__ void two_barriers(int* out) {
  if (threadIdx.x < 3) __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
EXPORT(two_barriers)
extern "C" __global__ void half_a_warp(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __ballot_sync(~0u, 1);
}
EXPORT(half_a_warp)
extern "C" __global__ void nothing_written(int* out) {
  __shared__ int shared[32];
  out[threadIdx.x] = shared[threadIdx.x];
}
EXPORT(nothing_written)
extern "C" __global__ void not_waited_for(int* out, const int* from) {
  __shared__ int shared[32];
  copy_async<4>(&shared[threadIdx.x], from + threadIdx.x, true);
  commit_copies();
  out[threadIdx.x] = shared[threadIdx.x];
  wait_copies<0>();
}
EXPORT(not_waited_for)
"""


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("some_leave", "partial-block barrier, line 4: 29 threads wait, 3 are done"),
        ("two_barriers", "barriers of lines 11 and 9 meet"),
        ("half_a_warp", "deadlock: 0 of 32 threads"),
    ],
)
def test_a_wrong_barrier_is_named(kernel, message):
    out = np.zeros(32, np.int32)
    text = source_text("prelude.cuh") + WRONG
    shift = source_text("prelude.cuh").count("\n")
    with pytest.raises(RuntimeError) as error:
        run(build(text), kernel, 1, (32, 1), [np.uint64(out.ctypes.data)])
    lines = message.replace("line 4", f"line {4 + shift}")
    lines = lines.replace("11 and 9", f"{11 + shift} and {9 + shift}")
    assert lines in str(error.value)


def test_shared_memory_begins_poisoned_and_copies_come_late():
    out, from_ = np.zeros(32, np.int32), np.ones(32, np.int32)
    library = build(source_text("prelude.cuh") + WRONG)
    pointers = [np.uint64(out.ctypes.data), np.uint64(from_.ctypes.data)]
    run(library, "nothing_written", 1, (32, 1), pointers[:1])
    assert (out == -1).all()
    for order, late in (("forward", False), ("reverse", True)):
        run(library, "not_waited_for", 1, (32, 1), pointers, order)
        assert (out == (-1 if late else 1)).all()
