"""The CUDA kernels under AddressSanitizer: nothing is read or written beyond its tensor.

Slow, so it runs only where ROBUSTDYN_SANITIZE is set: `tox -e sanitizer`. What the kernels are
called with is recorded first and replayed without torch, which is slow to load there.
"""

import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from cuda_cases import CASES
from cuda_check import check
from cuda_on_cpu import build, library_path, needs_compiler, on_cpu

from robustdyn.kernels.cuda.launch import source_text

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(
        not os.environ.get("ROBUSTDYN_SANITIZE"), reason="slow: run `tox -e sanitizer`"
    ),
]
# Stacks are not watched, because fibers switch between them; array bounds are, shared ones too.
FLAGS = "-fsanitize=address,bounds -fno-sanitize-recover=bounds --param asan-stack=0"


def _replayed(launches, tmp_path):
    """Build with the sanitizer and run (source text, kernel, blocks, block, arguments) each."""
    record = tmp_path / "launches.pickle"
    paths = {text: str(library_path(text, FLAGS)) for text in {text for text, *_ in launches}}
    record.write_bytes(pickle.dumps([(paths[text], *rest) for text, *rest in launches]))
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    preload = {"LD_PRELOAD": " ".join(path.strip() for path in runtimes)}
    return subprocess.run(
        [sys.executable, Path(__file__).parent / "cuda_replay.py", record],
        capture_output=True,
        text=True,
        env=os.environ | preload | {"ASAN_OPTIONS": "detect_leaks=0"},
        timeout=900,
    )


def test_every_kernel_stays_inside_its_tensors(tmp_path, monkeypatch):
    module = import_module("robustdyn.kernels.cuda.launch")
    launches, arguments, value_of = [], [], module._value

    def value(argument):
        tensor = isinstance(argument, torch.Tensor)
        raw = argument.detach().reshape(-1).view(torch.uint8) if tensor else None
        arguments.append(raw.numpy().tobytes() if tensor else value_of(argument))
        return value_of(argument)

    def enqueue(source, kernel, blocks, block, values, device):
        text = source_text(f"{source}.cu")
        launches.append((text, kernel, blocks, block, arguments[-len(values) :]))
        build(text)
        run(source, kernel, blocks, block, values, device)

    with on_cpu():
        run = module.enqueue
        monkeypatch.setattr(module, "_value", value)
        monkeypatch.setattr(module, "enqueue", enqueue)
        for case in CASES:
            check(case)
    done = _replayed(launches, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(done.stdout) == len(launches) > len(CASES) / 2


BEYOND = 'extern "C" __global__ void beyond(float* out) { out[threadIdx.x + 1] = 1; }'


def test_a_number_written_beyond_is_reported(tmp_path):
    launch = (f"{BEYOND}\nEXPORT(beyond)\n", "beyond", 1, (32, 1), [bytes(128)])
    done = _replayed([launch], tmp_path)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
