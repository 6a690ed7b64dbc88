"""Standard output that may go away: a reader that closes the pipe or a full disk must not stop a run."""

from __future__ import annotations

import os
from typing import Any, TextIO


class LastingStream:
    """Passes writes on to a stream until one fails; from then on they are dropped, and the run goes on.

    Args:
        stream: text stream, such as ``sys.stderr``. Everything but writing is its own.

    Attributes:
        error: why writing failed; None while it works.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop the text where the stream has failed."""
        if self.error is None:
            try:
                return self.stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream has failed."""
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = error
        # What is still in the buffer would fail again when the interpreter flushes it at its end.
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError, AttributeError):  # A stream without a descriptor has no such buffer.
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
