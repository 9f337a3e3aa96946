"""What every benchmark prints; the interleaved timing itself is robustdyn.bench.timing."""

import json
import platform
import sys

import torch


def report(result: dict) -> None:
    """Print a benchmark's result as JSON, with the machine it ran on."""
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    json.dump(result | {"machine": machine}, sys.stdout, indent=2)
    sys.stdout.write("\n")
