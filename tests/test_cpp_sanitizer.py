"""The C++ kernels under AddressSanitizer: nothing is read or written beyond its tensor.

Slow, so it runs only where ROBUSTDYN_SANITIZE is set: `tox -e sanitizer`. The kernels' own tests
run again, in a process where every allocation is watched, with a library that is built for it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustdyn.kernels.build import NAME, SOURCES, find_compiler

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("ROBUSTDYN_SANITIZE"), reason="slow: run `tox -e sanitizer`"
    ),
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler"),
]
FLAGS = "-fsanitize=address,bounds -fno-sanitize-recover=bounds -fno-omit-frame-pointer -g1"
FILES = ("test_kernels_conv.py", "test_kernels_more.py", "test_kernels_recurrent.py")
BEYOND = """
import torch
from robustdyn.kernels.cpp_more import AffineCall
from robustdyn.kernels.native import native, pointer
x, mask = torch.ones(4, 8), torch.ones(5, dtype=torch.bool)
tensors = [pointer(x), pointer(x[0]), pointer(x[0]), pointer(mask), None, pointer(x)]
native().call("affine", AffineCall(*tensors, 5, 8, False, 0, 1))
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The environment of a process whose allocations and C++ kernels are watched."""
    if (SOURCES / NAME).exists():
        pytest.fail("the library was built with the package: install it in editable mode")
    folder = tmp_path_factory.mktemp("sanitizer")
    compiler = folder / "watching-compiler"
    compiler.write_text(f'#!/bin/sh\nexec {find_compiler()} {FLAGS} "$@"\n')
    compiler.chmod(0o755)
    runtimes = [
        subprocess.run(
            [find_compiler(), f"-print-file-name={name}"], capture_output=True, text=True
        )
        for name in ("libasan.so", "libubsan.so")
    ]
    return os.environ | {
        "CXX": str(compiler),
        "XDG_CACHE_HOME": str(folder),
        "LD_PRELOAD": " ".join(found.stdout.strip() for found in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }


def _run(command, env):
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=env,
        cwd=Path(__file__).parent,
        timeout=1500,
    )


def test_every_kernel_stays_inside_its_tensors(watched):
    done = _run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES], watched)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_number_written_beyond_is_reported(watched):
    done = _run(["-c", BEYOND], watched)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
