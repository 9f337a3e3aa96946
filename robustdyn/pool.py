"""Worker processes that outlive the death of one of them.

joblib's loky gives up the whole call when a worker dies (killed, out of memory, segmentation
fault). Here the tasks that were being worked on are then tried again, each alone, and the others go
on: only a task that kills its worker by itself is lost.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

Result = tuple[str, Any]


def stream(
    function: Callable[..., Any], tasks: Mapping[str, tuple], *, jobs: int, scratch: Path
) -> Iterator[Result]:
    """Yield (name, function(*arguments)) for every task, as they end.

    In place of a result comes a RuntimeError where the task ended its process.

    Args:
        function: importable by name in another process.
        tasks: name -> arguments; begun in this order.
        jobs: worker processes.
        scratch: a folder for markers (*.partial) of the tasks that are being worked on.
    """
    waiting = dict(tasks)
    while waiting:
        try:
            for name, result in _parallel(function, waiting, min(jobs, len(waiting)), scratch):
                del waiting[name]
                yield name, result
        except TerminatedWorkerError:
            begun = [name for name in waiting if _marker(scratch, name).exists()]
            for name in begun or list(waiting):
                yield name, _alone(function, name, waiting.pop(name), scratch)


def _parallel(
    function: Callable[..., Any], tasks: Mapping[str, tuple], jobs: int, scratch: Path
) -> Iterator[Result]:
    # n_jobs=1 would run in this process
    pool = Parallel(n_jobs=max(jobs, 2), backend="loky", return_as="generator_unordered")
    parent = os.getpid()
    yield from pool(
        delayed(_marked)(function, name, arguments, scratch, parent)
        for name, arguments in list(tasks.items())
    )


def _alone(function: Callable[..., Any], name: str, arguments: tuple, scratch: Path) -> Any:
    try:
        (result,) = _parallel(function, {name: arguments}, 1, scratch)
        return result[1]
    except TerminatedWorkerError:
        _marker(scratch, name).unlink(missing_ok=True)
        return RuntimeError("its worker process ended: killed, out of memory, or a crash")


def _marked(
    function: Callable[..., Any], name: str, arguments: tuple, scratch: Path, parent: int
) -> Result:
    _end_with(parent)
    marker = _marker(scratch, name)
    marker.touch()
    try:
        return name, function(*arguments)
    finally:
        marker.unlink(missing_ok=True)


@cache
def _end_with(parent: int) -> None:
    """Let this worker end as soon as its parent is gone, instead of idling for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _marker(scratch: Path, name: str) -> Path:
    return scratch / f"{name}.begun.partial"
