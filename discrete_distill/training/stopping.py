"""Requests to stop: noted, so that the step is finished and saved; a second Ctrl-C is obeyed at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# A launcher passes on to its processes the Ctrl-C that the terminal has sent them already.
SECONDS_BETWEEN = 2.0


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note the first SIGINT, SIGTERM or SIGHUP inside rather than obey it.

    The yielded function returns whether one came. A SIGHUP that was ignored before (``nohup``) stays ignored.

    A second SIGINT, some seconds later, raises KeyboardInterrupt wherever the program is."""
    received: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if number == signal.SIGINT and received[-1] - received[0] > SECONDS_BETWEEN:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is whole, run again to resume")

    signals = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none.
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        signals.append(hang_up)
    try:
        previous = {number: signal.signal(number, note) for number in signals}
    except ValueError:  # Not in the main thread, where handlers cannot be set.
        previous = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
