"""The CUDA kernels compile for the GPUs they name, within their budgets of registers."""

import ctypes
import re
import shutil
import subprocess

import pytest
from cuda_on_cpu import SOURCES

from robustdyn.kernels.cuda.launch import source_text

ARCHITECTURES = ("sm_80", "sm_90")
# Registers per thread: what two to six blocks of a convolution and full occupancy elsewhere allow.
BUDGET = {
    "conv_f32": 170,
    "conv_f32_any": 204,
    "channel_conv": 204,
    "tf32": 128,
    "bf16": 128,
    "narrow": 168,
}
DEFAULT_BUDGET = 64


def _budget(kernel):
    exact = BUDGET.get(kernel)
    return exact or max((v for k, v in BUDGET.items() if k in kernel), default=DEFAULT_BUDGET)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc_compiles_without_spills(source, tmp_path):
    """One run of nvcc makes both architectures; ptxas says what each kernel takes."""
    code = tmp_path / f"{source}.cu"
    code.write_text(source_text(f"{source}.cu"))
    targets = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES]
    command = ["nvcc", "-std=c++17", *targets, "-fatbin", "-Xptxas", "-v", "-o"]
    done = subprocess.run([*command, "/dev/null", str(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    kernels = {a: {k for k, b, *_ in entries if b == a} for a in ARCHITECTURES}
    assert kernels["sm_80"] == kernels["sm_90"] != set()
    for kernel, architecture, stores, loads, registers in entries:
        assert (stores, loads) == ("0", "0"), f"{kernel} spills on {architecture}"
        assert int(registers) <= _budget(kernel), f"{kernel}: {registers} on {architecture}"


@pytest.mark.parametrize("source", SOURCES)
def test_nvrtc_compiles_without_a_gpu(source):
    """As CuPy will, but without asking a device for its architecture."""
    nvrtc = pytest.importorskip("cupy.cuda.nvrtc", reason="needs CuPy")
    try:
        nvrtc.getVersion()
    except (RuntimeError, ctypes.ArgumentError, OSError) as error:
        pytest.skip(f"needs NVRTC: {error}")
    for architecture in ARCHITECTURES:
        program = nvrtc.createProgram(source_text(f"{source}.cu"), f"{source}.cu", [], [])
        try:
            options = ("--std=c++17", f"-arch={architecture}", "-default-device")
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        assert nvrtc.getCUBIN(program)
