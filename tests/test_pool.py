"""Worker processes: results stream, and the death of one loses only its own task."""

import os
import signal

from robustdyn.pool import stream


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_workers_stream_every_result(tmp_path):
    tasks = {str(k): (k,) for k in range(6)}
    assert dict(stream(square, tasks, jobs=2, scratch=tmp_path)) == {
        str(k): k * k for k in range(6)
    }
    assert not list(tmp_path.iterdir())


def test_only_the_task_that_kills_its_worker_is_lost(tmp_path):
    tasks = {str(k): (k,) for k in range(8)}
    results = dict(stream(square_or_die, tasks, jobs=2, scratch=tmp_path))
    assert isinstance(results.pop("3"), RuntimeError)
    assert results == {str(k): k * k for k in range(8) if k != 3}
    assert not list(tmp_path.iterdir())
