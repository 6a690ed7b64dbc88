"""How long the stages of a recipe take: an estimate from a measured probe, and the time left of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, in all {all_left}{postfix}]"


class StageClock:
    """Expected seconds of stages that follow one another, corrected by the speed of the current one.

    Args:
        expected: seconds of each stage by name, in order; empty where nothing was estimated.

    Examples:
        >>> clock = StageClock({"distil": 300.0, "evaluate": 120.0})
        >>> with clock.stage("distil"):
        ...     clock.later(whole=150.0)  # Twice as fast as expected.
        60.0
    """

    def __init__(self, expected: Mapping[str, float] | None = None) -> None:
        self.expected = dict(expected or {})
        self.current: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside is this stage."""
        self.current = name
        try:
            yield
        finally:
            self.current = None

    def later(self, whole: float) -> float:
        """Seconds of the stages after the current one, on a machine where the current one takes ``whole`` seconds."""
        assert self.current is not None
        names, planned = list(self.expected), self.expected[self.current]
        after = sum(self.expected[name] for name in names[names.index(self.current) + 1 :])
        return after * (whole / planned if planned else 1.0)

    def bar(self, *args: Any, **options: Any) -> tqdm:
        """A progress bar of the current stage that states the time left of all stages, where they were estimated."""
        return StageBar(*args, clock=self, **options) if self.current in self.expected else tqdm(*args, **options)

    def plan(self) -> str:
        """The stages and the time that each is expected to take, as lines for a person."""
        width, rows = max(map(len, self.expected)), list(self.expected.items())
        lines = [
            f"{number} of {len(rows)}  {name:{width}}  {about(seconds)}"
            for number, (name, seconds) in enumerate(rows, start=1)
        ]
        return "\n".join([*lines, f"in all  {about(sum(self.expected.values()))}, estimated from a measured pass"])


class StageBar(tqdm):
    """A progress bar with the time left of this stage and those after it."""

    def __init__(self, *args: Any, clock: StageClock, **options: Any) -> None:
        self.clock = clock
        super().__init__(*args, bar_format=BAR_FORMAT, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar shows."""
        shown = super().format_dict
        done, total, elapsed = shown["n"] - shown["initial"], shown["total"], shown["elapsed"]
        left = elapsed * (total - shown["n"]) / done if done and total else None
        if left is None:
            return {**shown, "all_left": "?"}
        return {**shown, "all_left": self.format_interval(left + self.clock.later(elapsed + left))}


def about(seconds: float) -> str:
    """A time that is known roughly."""
    if seconds < 20.0:
        return "seconds"
    if seconds < 90.0:
        return "about a minute"
    return f"about {seconds / 60.0:.0f} min" if seconds < 5400.0 else f"about {seconds / 3600.0:.1f} h"
