"""What stands between torch and the CUDA kernels, without a GPU."""

import sys
from importlib import import_module

import pytest
import torch
from cuda_cases import CASES
from cuda_on_cpu import SOURCES

from robustdyn.kernels import KERNELS
from robustdyn.kernels.cuda.launch import launch, source_text


@pytest.fixture
def launched(monkeypatch):
    calls = []
    module = import_module("robustdyn.kernels.cuda.launch")
    monkeypatch.setattr(module, "enqueue", lambda *call: calls.append(call))
    return calls


def test_arguments_are_pointers_and_32_bit_numbers(launched):
    x = torch.zeros(3)
    launch("rows", "gather_16", 2, 64, x, None, 7, True)
    ((source, kernel, blocks, block, values, device),) = launched
    assert (source, kernel, blocks, block, device) == ("rows", "gather_16", 2, (64, 1), x.device)
    assert [value.nbytes for value in values] == [8, 8, 4, 4]
    assert [int(value) for value in values] == [x.data_ptr(), 0, 7, 1]


def test_nothing_is_launched_for_no_blocks(launched):
    launch("rows", "gather_16", 0, 64, torch.zeros(3))
    assert not launched


def test_what_a_kernel_would_misread_is_an_error(launched):
    with pytest.raises(ValueError, match="contiguous"):
        launch("rows", "gather_16", 1, 64, torch.zeros(4, 4).T)
    with pytest.raises(ValueError, match="too large"):
        launch("rows", "gather_16", 1, 64, torch.zeros(4), 2**31)
    assert not launched


@pytest.mark.parametrize("source", SOURCES)
def test_the_source_is_one_text(source):
    assert '#include "' not in source_text(f"{source}.cu")


@pytest.mark.parametrize("kernel", sorted({case.kernel for case in CASES}))
def test_on_the_cpu_it_says_why_not(kernel):
    case = next(case for case in CASES if case.kernel == kernel)
    args, kwargs = case.make()
    cuda = next(i for i in KERNELS[kernel].implementations if i.name == "cuda")
    assert "not on a CUDA device" in cuda.not_supported_reasons(*args, **kwargs)[0]
    assert "cupy" not in sys.modules
