"""Interrupts that other people's code cannot swallow.

Code in C that meets a KeyboardInterrupt may report it as an error of its own (safetensors makes a
ValueError of it) or drop it. So it is remembered that one came, and whoever handles errors asks.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_came = False


@contextmanager
def heeded() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT, and at SIGTERM, which batch systems send; remember it."""
    global _came
    _came = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as SIGINT is for a shell's background jobs
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _came = False


def raise_if_interrupted() -> None:
    """Raise the KeyboardInterrupt that came since `heeded` began, in case something swallowed it.

    Raises:
        KeyboardInterrupt: if one came.
    """
    if _came:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    raise KeyboardInterrupt
