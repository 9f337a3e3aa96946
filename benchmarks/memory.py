"""Peak memory of a masked convolution against torch's dense one: python benchmarks/memory.py.

What a call adds at its peak to the memory that the process has, its result included, in MB; Linux
only. Batch 32 of 56 x 56, 64 channels, 3 x 3, random masks.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from timing import report
from torch.nn import functional as F

from robustdyn.kernels import masked_conv2d, masked_depthwise_conv2d

STATUS = Path("/proc/self/status")
MB = 1024.0  # of the kB that the system counts in
M_MMAP_THRESHOLD = -3  # of mallopt: what is larger is given back to the system when it is freed


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def added(run: Callable[[], torch.Tensor]) -> float:
    """Return by how many MB the memory grows at most while `run` runs, the second time."""
    run()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return round((_status("VmHWM") - before) / MB, 1)


@torch.no_grad()
def main() -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    torch.manual_seed(0)
    x = torch.randn(32, 56, 56, 64)
    weight, single = torch.randn(64, 64, 3, 3), torch.randn(64, 1, 3, 3)
    image = x.permute(0, 3, 1, 2)
    found = {
        "dense": added(lambda: F.conv2d(image, weight, padding=1)),
        "dense depthwise": added(lambda: F.conv2d(image, single, padding=1, groups=64)),
    }
    for part in (0.1, 0.25, 0.5, 0.75, 1.0):
        mask = torch.rand(32, 56, 56) < part
        conv = added(lambda m=mask: masked_conv2d(x, weight, m, padding=1))
        depthwise = added(lambda m=mask: masked_depthwise_conv2d(x, single, m, padding=1))
        found |= {f"masked, {part:.0%}": conv, f"masked depthwise, {part:.0%}": depthwise}
    report({"benchmark": "memory", "megabytes": found})


if __name__ == "__main__":
    main()
