"""Times every kernel against dense execution: active fractions, masks, implementations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from robustdyn.bench.cases import ACTIVE, Case, Draw, Problem, chosen_cases
from robustdyn.bench.timing import ratios, spread, take_turns, threads
from robustdyn.errors import UserError

QUICK_ACTIVE = (0.25, 1.00)
STEADY = 1.5  # dense times are steady if three of four are below this multiple of their minimum


@dataclass(frozen=True)
class KernelRow:
    """One implementation of one kernel on one input, against the dense operation of torch.

    Attributes:
        case: shape and kernel in two words.
        kernel: its name.
        implementation: which ran.
        dispatched: whether the dispatcher chooses it; then its time is that of the whole call,
            with the choice.
        device, threads, dtype, shape: of the input, NHWC for convolutions.
        mask: "random" or "blocky".
        active: the part of the dense work that is asked for.
        seconds, seconds_low, seconds_high: median and quartiles.
        dense_seconds, dense_seconds_low, dense_seconds_high: of the dense operation.
        efficiency: active / (seconds / dense_seconds); 1 if skipped work is saved time.
        efficiency_low, efficiency_high: quartiles over the rounds, each with its own dense time.
        ceiling: what memory traffic allows at best, for kernels that are bound by it, else None.
        steady: False if the machine was too busy for the numbers to be trusted.
        rounds: how often each was measured, in turn.
    """

    case: str
    kernel: str
    implementation: str
    dispatched: bool
    device: str
    threads: int
    dtype: str
    shape: str
    mask: str
    active: float
    seconds: float
    seconds_low: float
    seconds_high: float
    dense_seconds: float
    dense_seconds_low: float
    dense_seconds_high: float
    efficiency: float
    efficiency_low: float
    efficiency_high: float
    ceiling: float | None
    steady: bool
    rounds: int


@torch.no_grad()
def bench_kernels(
    names: Sequence[str] = (),
    *,
    device: str = "cpu",
    thread_count: int | None = None,
    rounds: int = 15,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[KernelRow]:
    """Return a row for every case, mask, active fraction and implementation.

    Args:
        names: cases or kernels, or patterns of them; none are all.
        device: "cpu" or "cuda".
        thread_count: threads of torch and of our kernels, by default torch's number.
        rounds: how often each is measured.
        quick: only random masks, a quarter and all of the work.
        progress: called with how many inputs are done, and of how many.

    Raises:
        UserError: if a name is unknown or there is no such device.
    """
    check_device(device)
    points = [
        (case, mask, active)
        for case in chosen_cases(names)
        for mask in (case.masks[:1] if quick else case.masks)
        for active in (QUICK_ACTIVE if quick else ACTIVE)
    ]
    rows: list[KernelRow] = []
    with threads(thread_count):
        for k, (case, mask, active) in enumerate(points):
            draw = Draw(device, torch.Generator().manual_seed(0), mask == "blocky")
            rows += _measured(case, mask, case.make(active, draw), device, rounds)
            if progress is not None:
                progress(k + 1, len(points))
    return rows


def check_device(device: str) -> None:
    """Raise UserError unless kernels can run on `device`, "cpu" or "cuda"."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"Unknown device '{device}'.", "Choose cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no CUDA device.", "Use --device cpu, or see `robustdyn doctor`.")


def _measured(case: Case, mask: str, problem: Problem, device: str, rounds: int) -> list[KernelRow]:
    seconds = take_turns({"": problem.dense, **problem.sparse}, rounds=rounds, device=device)
    all_dense = seconds.pop("")
    dense = spread(all_dense)
    rows = []
    for name, own in seconds.items():
        time, ratio = spread(own), spread(ratios(own, all_dense))
        rows.append(
            KernelRow(
                case=case.name,
                kernel=case.kernel,
                implementation=name,
                dispatched=name == problem.chosen,
                device=device,
                threads=torch.get_num_threads(),
                dtype="float32",
                shape=case.shape,
                mask=mask,
                active=problem.active,
                seconds=time.median,
                seconds_low=time.low,
                seconds_high=time.high,
                dense_seconds=dense.median,
                dense_seconds_low=dense.low,
                dense_seconds_high=dense.high,
                efficiency=problem.active * dense.median / time.median,
                efficiency_low=problem.active / ratio.high,
                efficiency_high=problem.active / ratio.low,
                ceiling=problem.ceiling,
                steady=dense.high <= STEADY * min(all_dense),
                rounds=rounds,
            )
        )
    return rows
