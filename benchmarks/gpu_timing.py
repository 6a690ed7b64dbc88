"""Times on a GPU without the host in them: replays of a captured graph, or calls that are queued one behind another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_run import Run

MEASURE_SECONDS = 0.8
QUEUED_CALLS = 10


class Measured(NamedTuple):
    """Median and spread (10th to 90th percentile) of one call in ms, and how it was timed; or why there is none."""

    ms: float = float("nan")
    spread_ms: float = float("nan")
    how: str = ""
    failure: str = ""


def measure(run: Run, function: Callable[[], Any]) -> Measured:
    """Time a function. What does not run is a row of the table with its reason, not the end of the program."""
    try:
        for _ in range(1 if run.dry else 3):
            function()
        if run.device.type != "cuda":
            return _measure_on_cpu(run, function)
        call, how = _captured(function)
        return _measure_on_gpu(call, how)
    except torch.OutOfMemoryError:
        return Measured(failure="out of memory")
    except Exception as error:
        return Measured(failure=f"{type(error).__name__}: {str(error)[:80]}")
    finally:
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def _captured(function: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
    """The function as a graph, where it can be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            function()
    except Exception:  # it waits for the device, or its memory does not fit twice
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return function, "queued calls"
    return graph.replay, "graph replays"


def _measure_on_gpu(call: Callable[[], Any], how: str) -> Measured:
    times: list[float] = []
    stop = time.monotonic() + MEASURE_SECONDS
    while len(times) < 7 or (time.monotonic() < stop and len(times) < 100):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(QUEUED_CALLS):
            call()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / QUEUED_CALLS)
    return _summary(times, how)


def _measure_on_cpu(run: Run, function: Callable[[], Any]) -> Measured:
    times = []
    for _ in range(3 if run.dry else 7):
        begin = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begin))
    return _summary(times, "calls")


def _summary(times: list[float], how: str) -> Measured:
    cuts = statistics.quantiles(times, n=10)
    return Measured(statistics.median(times), cuts[8] - cuts[0], how)


def measure_rates(run: Run) -> None:
    """GB/s of a copy, which reads and writes, and of a sum, which reads: what kernels are held against."""
    source = torch.empty(2**24 if run.dry else 2**31, dtype=torch.uint8, device=run.device).fill_(1)
    floats = source.view(torch.float32)
    target = torch.empty_like(floats)
    for name, size, function in (
        # A plain copy is moved by the copy engine where it is part of a graph, at less than the memory's rate.
        ("copy", 2 * source.numel(), lambda: torch.neg(floats, out=target)),
        ("read", source.numel(), lambda: floats.sum()),
    ):
        run.rates[f"{name} GB/s"] = size / measure(run, function).ms / 1e6
    print(run.rates, flush=True)


def time_case(
    run: Run,
    labels: dict[str, Any],
    size: int,
    ours: Callable[[], Any],
    baselines: dict[str, Callable[[], Any]],
) -> None:
    """One row of the table: time, rate, and the ratio of every baseline to it.

    Args:
        run: of this process.
        labels: what was timed.
        size: bytes that must be moved.
        ours: the library's function.
        baselines: what it is compared with, by name.
    """
    own = measure(run, ours)
    row: dict[str, Any] = {**labels, "bytes": size}
    if own.failure:
        row["note"] = own.failure
    else:
        row |= {"ms": own.ms, "spread_ms": own.spread_ms, "timed": own.how, "GB/s": size / own.ms / 1e6}
        row |= {f"of_{name}": row["GB/s"] / run.rates[f"{name} GB/s"] for name in ("copy", "read")}
    for name, function in baselines.items():
        theirs = Measured(failure="out of time") if run.late() else measure(run, function)
        row[f"{name} ms"] = theirs.failure or theirs.ms
        if not theirs.failure and not own.failure:
            row[f"x {name}"] = theirs.ms / own.ms
    run.row(row)
