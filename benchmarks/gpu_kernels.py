"""The CUDA kernels against their goals: a table, and rows as JSON.

    python benchmarks/gpu_kernels.py [RESULT.json]

Both sides are captured in CUDA graphs of several calls and replayed in turn, so that a number is
the GPU's time without Python's. Efficiency = active fraction / (sparse time / dense time), the
median of the rounds. A whole call of the sparse kernel is timed: compaction, packing of the
weight, convolution, and what is written off the mask.
"""

import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from robustdyn.kernels import (
    gather_rows,
    get_kernel,
    grouped_matmul,
    mask_compact,
    masked_conv2d,
    masked_depthwise_conv2d,
    recording,
    route_experts,
)

CALLS, ROUNDS = 20, 15
PRECISIONS = ("float32", "tf32", "bfloat16")
SHAPES = ((64, 56), (128, 28), (256, 14))  # channels, height and width
ACTIVE = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def main(result: Path) -> None:
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    rows = [*_convolutions(), *_depthwise(), *_experts(), _compaction(), *_gathers()]
    for row in rows:
        row["device"] = torch.cuda.get_device_name()
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "host": platform.platform()}
    result.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        goal = f"goal {row['goal']:g}: {'met' if row['met'] else 'MISSED'}" if row["goal"] else ""
        sys.stdout.write(
            f"{row['kernel']:24} {row['implementation']:6} {row['dtype']:9} {shape:>16} "
            f"{row['active']:5.0%} {row['seconds'] * 1e6:9.1f} us {row['dense_seconds'] * 1e6:9.1f}"
            f" us dense, efficiency {row['efficiency']:5.2f}  {goal}\n"
        )
    judged = [row for row in rows if row["goal"]]
    met = sum(row["met"] for row in judged)
    sys.stdout.write(f"{met} of {len(judged)} goals met.\n")


def _row(
    kernel: str,
    dtype: str,
    shape: list[int],
    active: float,
    sparse: Callable[[], object],
    dense: Callable[[], object],
    goal: float = 0.0,
) -> dict:
    """Time both and return one row; the goal is a lower bound on efficiency."""
    with recording() as ran:
        sparse()
    graphs = [_captured(sparse), _captured(dense)]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for graph, seconds in zip(graphs, times, strict=True):
            seconds.append(_seconds(graph) / CALLS)
    ratios = [active * d / s for s, d in zip(*times, strict=True)]
    efficiency = statistics.median(ratios)
    return {
        "kernel": kernel,
        "implementation": next((i for name, i in ran if name == kernel), "?"),
        "dtype": dtype,
        "shape": shape,
        "mask": "random",
        "active": active,
        "seconds": statistics.median(times[0]),
        "dense_seconds": statistics.median(times[1]),
        "efficiency": efficiency,
        "goal": goal,
        "met": efficiency >= goal,
    }


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    return graph


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _precision(name: str) -> torch.dtype:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _convolutions() -> Iterator[dict]:
    for precision in PRECISIONS:
        dtype, batch = _precision(precision), 64 if precision == "float32" else 256
        for channels, size in SHAPES:
            x = torch.randn(batch, size, size, channels, device="cuda", dtype=dtype)
            weight = torch.randn(channels, channels, 3, 3, device="cuda", dtype=dtype) / channels
            image, filters = x.permute(0, 3, 1, 2), weight.to(memory_format=torch.channels_last)
            for active in ACTIVE:
                mask = torch.rand(batch, size, size, device="cuda") < active
                judged = active == 0.25 and channels >= 128
                goal = (0.65 if precision == "float32" else 0.4) if judged else 0.0
                yield _row(
                    "masked_conv2d",
                    precision,
                    list(x.shape),
                    active,
                    lambda x=x, w=weight, m=mask: masked_conv2d(x, w, m, padding=1),
                    lambda x=image, w=filters: F.conv2d(x, w, padding=1),
                    goal,
                )


def _depthwise() -> Iterator[dict]:
    _precision("float32")
    x = torch.randn(64, 28, 28, 256, device="cuda")
    weight = torch.randn(256, 1, 3, 3, device="cuda")
    image = x.permute(0, 3, 1, 2)
    for active in (0.25, 1.0):
        mask = torch.rand(64, 28, 28, device="cuda") < active
        yield _row(
            "masked_depthwise_conv2d",
            "float32",
            list(x.shape),
            active,
            lambda m=mask: masked_depthwise_conv2d(x, weight, m, padding=1),
            lambda: F.conv2d(image, weight, padding=1, groups=256),
        )


def _experts() -> Iterator[dict]:
    """Sixteen experts of 512 x 512 on 16,384 rows, against one product of as many MACs."""
    for precision in PRECISIONS:
        dtype = _precision(precision)
        x = torch.randn(16384, 512, device="cuda", dtype=dtype)
        weight = torch.randn(16, 512, 512, device="cuda", dtype=dtype)
        chosen = torch.randint(16, (16384, 1), device="cuda")
        offsets = route_experts(chosen, 16).offsets
        yield _row(
            "grouped_matmul",
            precision,
            [16384, 512, 512],
            1.0,
            lambda x=x, w=weight, o=offsets: grouped_matmul(x, w, o),
            lambda x=x, w=weight[0]: x @ w,
        )


def _compaction() -> dict:
    """The goal is 12 microseconds: "dense" is that time."""
    mask = torch.rand(1_000_000, device="cuda") < 0.25
    row = _row("mask_compact", "bool", [1_000_000], 1.0, lambda: mask_compact(mask), mask.clone)
    row |= {"dense_seconds": 12e-6, "efficiency": 12e-6 / row["seconds"], "goal": 1.0}
    return row | {"met": row["efficiency"] >= 1}


def _gathers() -> Iterator[dict]:
    """Against a copy of as many bytes."""
    for width in (64, 256):
        x = torch.randn(400_000, width, device="cuda")
        rows = (torch.rand(400_000, device="cuda") < 0.5).nonzero().flatten()
        half, to = x[: len(rows)], torch.empty(len(rows), width, device="cuda")
        yield _row(
            "gather_rows",
            "float32",
            list(x.shape),
            1.0,
            lambda x=x, rows=rows: gather_rows(x, rows),
            lambda half=half, to=to: to.copy_(half),
            0.7,
        )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("needs a GPU")
    if (
        problem := get_kernel("mask_compact")
        .implementations[0]
        .not_supported_reasons(torch.ones(1, dtype=torch.bool, device="cuda"))
    ):
        sys.exit(f"the CUDA kernels cannot run: {'; '.join(problem)}")
    with torch.no_grad():
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "gpu.json"))
