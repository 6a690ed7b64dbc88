"""A stream whose reader goes away, or whose disk is full, drops what is written to it."""

import io
import os
import subprocess
import sys

import pytest

from discrete_distill.streams import LastingStream


def test_it_passes_on_what_is_written() -> None:
    inner = io.StringIO()
    stream = LastingStream(inner)
    print("one", file=stream, flush=True)
    assert inner.getvalue() == "one\n"
    assert stream.error is None
    assert not stream.isatty()


@pytest.mark.parametrize("failing", ["write", "flush"])
def test_after_a_failure_it_drops_what_is_written(failing: str) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            if failing == "write":
                raise BrokenPipeError
            return super().write(text)

        def flush(self) -> None:
            if failing == "flush":
                raise OSError(28, "No space left on device")

    stream = LastingStream(Broken())
    for _ in range(3):
        print("lost", file=stream, flush=True)
    assert stream.error is not None


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_process_whose_reader_goes_away_runs_to_its_end_and_says_so() -> None:
    code = """
import sys
from discrete_distill.streams import LastingStream
sys.stdout = LastingStream(sys.stdout)
for _ in range(100_000):
    print("x" * 100)
sys.stdout.flush()
sys.stderr.write("done")
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr.read() == b"done"
    assert child.wait() == 0
