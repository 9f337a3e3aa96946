"""The CUDA kernels on a GPU: right, on torch's stream, without waiting for it, in graphs."""

import pytest
import torch
from cuda_cases import CASES
from cuda_check import check, copied, cuda_run, equal, reference_of, strict

from robustdyn.kernels import KERNELS
from robustdyn.kernels.cuda.support import cupy_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(bool(cupy_problem()), reason=cupy_problem()),
]
NAMES = sorted({case.kernel for case in CASES})


def _cases(kernel, at_most=1000):
    cases = [case for case in CASES if case.kernel == kernel]
    return cases[:: -(-len(cases) // at_most)]


@pytest.mark.parametrize("kernel", NAMES)
def test_equals_the_reference(kernel):
    for case in _cases(kernel):
        try:
            check(case, "cuda")
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(str(case)) from error


@pytest.mark.parametrize("kernel", NAMES)
def test_the_dispatcher_chooses_it_for_tensors_on_the_gpu(kernel):
    for case in _cases(kernel, 5):
        args, kwargs = case.make()
        assert KERNELS[kernel].select(*args, **kwargs).name != "cuda"
        chosen = KERNELS[kernel].select(*copied(args, "cuda"), **copied(kwargs, "cuda"))
        assert chosen.name == "cuda", str(case)


@pytest.mark.parametrize("kernel", NAMES)
def test_never_waits_for_the_gpu(kernel):
    for case in _cases(kernel, 5):
        args, kwargs = (copied(value, "cuda") for value in case.make())
        cuda_run(case)(*args, **kwargs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            cuda_run(case)(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kernel", NAMES)
def test_runs_on_torchs_current_stream(kernel):
    """Its inputs arrive late on a side stream, after much other work there."""
    stream = torch.cuda.Stream()

    def late(*args, **kwargs):
        made = [copied(value, "cuda") for value in (args, kwargs)]
        waiting = [_zeroed(value) for value in made]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            _assign(waiting[0], made[0])
            _assign(waiting[1], made[1])
            found = run(*waiting[0], **waiting[1])
        stream.synchronize()
        return found

    for case in _cases(kernel, 5):
        run = cuda_run(case)
        check(case, "cuda", late)


@pytest.mark.parametrize("kernel", NAMES)
def test_runs_again_in_a_graph_on_other_inputs(kernel):
    for case in _cases(kernel, 5):
        torch.manual_seed(0)
        first, second = case.make(), case.make()
        static = [copied(value, "cuda") for value in first]
        run = cuda_run(case)
        with strict(case.tf32):
            run(*copied(static[0], "cuda"), **copied(static[1], "cuda"))
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = run(*static[0], **static[1])
            for value, new in zip(static, second, strict=True):
                _assign(value, copied(new, "cuda"))
            graph.replay()
            torch.cuda.synchronize()
        equal(case, found, reference_of(case, second))


def _zeroed(values):
    if isinstance(values, torch.Tensor):
        return torch.zeros_like(values)
    if isinstance(values, dict):
        return {key: _zeroed(value) for key, value in values.items()}
    return type(values)(map(_zeroed, values)) if isinstance(values, list | tuple) else values


def _assign(to, values):
    if isinstance(to, torch.Tensor):
        to.copy_(values)
    elif isinstance(to, dict):
        for key, value in to.items():
            _assign(value, values[key])
    elif isinstance(to, list | tuple):
        for one, value in zip(to, values, strict=True):
            _assign(one, value)
