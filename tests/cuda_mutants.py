"""Takes out each barrier of the CUDA kernels in turn, and prints what happened as JSON.

Every mutant runs in a fork of this process, because it may write anywhere or hang.
"""

import json
import os
import signal
import sys

import torch
from cuda_cases import CASES
from cuda_check import check, cuda_run
from cuda_on_cpu import ORDERS, SOURCES, barriers, build, on_cpu

from robustdyn.kernels.cuda.launch import source_text

WRONG, SECONDS = 3, 60


def is_caught(source: str, line: int) -> bool:
    """Return whether some order of threads gives wrong numbers without that barrier."""
    for case in CASES:
        if cuda_run(case).__module__.endswith(f".{source}"):
            for order in ORDERS:
                try:
                    with on_cpu(order, skipped=(source, line)):
                        check(case)
                except (AssertionError, RuntimeError):
                    return True
    return False


def fate(source: str, line: int) -> str:
    """Return "wrong numbers", "crash", "hang" or "survives"."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a crash talks
        signal.alarm(SECONDS)
        os._exit(WRONG if is_caught(source, line) else 0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "hang" if os.WTERMSIG(status) == signal.SIGALRM else "crash"
    return {0: "survives", WRONG: "wrong numbers"}.get(os.WEXITSTATUS(status), "broken test")


def main() -> None:
    torch.set_num_threads(1)
    with on_cpu():
        check(CASES[1])  # imports what torch loads late, once for all forks
    fates = {}
    for source in SOURCES:
        build(source_text(f"{source}.cu"))
        for line in barriers(source):
            fates[f"{source}.cu, line {line}"] = fate(source, line)
    json.dump(fates, sys.stdout)


if __name__ == "__main__":
    main()
