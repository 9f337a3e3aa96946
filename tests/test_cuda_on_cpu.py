"""The CUDA kernels, run on the CPU in three orders of their threads, do what the references do."""

import pytest
from cuda_cases import CASES
from cuda_check import check
from cuda_on_cpu import ORDERS, needs_compiler, on_cpu

pytestmark = needs_compiler


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", sorted({case.kernel for case in CASES}))
def test_equals_the_reference(kernel, order):
    for case in CASES:
        if case.kernel == kernel:
            try:
                with on_cpu(order):
                    check(case)
            except (AssertionError, RuntimeError) as error:
                raise AssertionError(str(case)) from error
