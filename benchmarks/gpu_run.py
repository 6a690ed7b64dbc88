"""What a run of the GPU benchmark is: shapes, deadline, results, and the files that are written as results come."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discrete_distill.kernels import uniform

PACKAGES = ("torch", "triton", "numpy", "flashinfer-python", "liger-kernel")


@dataclass
class Run:
    """Shapes, deadline and results of one process.

    Attributes:
        device: where it runs.
        dry: tiny shapes on a CPU; times mean nothing.
        deadline: `time.monotonic` after which nothing new is started.
        length: tokens of a sequence.
        vocab_size: V, with the mask as last class.
        stride: elements from one row of logits to the next, a multiple of 64.
        batches: sequences of each timing.
        checks: results of checks and goals; ``passed`` is None where nothing was judged.
        rows: of the table of times.
        rates: GB/s of a copy (read and write) and of a sum (read alone).
        save: called after every result.
    """

    device: torch.device
    dry: bool
    deadline: float
    length: int
    vocab_size: int
    stride: int
    batches: list[int]
    alpha_t: float = 0.25
    alpha_s: float = 0.5
    checks: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    save: Callable[[Run], None] = lambda run: None

    @classmethod
    def for_device(cls, *, dry: bool, seconds: float, batches: list[int]) -> Run:
        """The shapes of GPT-2's vocabulary on a GPU, tiny ones in a dry run."""
        shapes = (4, 1500, 1536) if dry else (1024, 50258, 50304)
        device = torch.device("cpu" if dry else "cuda")
        return cls(device, dry, time.monotonic() + seconds, *shapes, batches=[2, 3] if dry else batches)

    @property
    def mask(self) -> int:
        return self.vocab_size - 1

    @property
    def backend(self) -> Any:
        return "torch" if self.dry else "triton"

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def note(self, name: str, passed: bool | None, detail: str) -> None:
        """Add the result of a check."""
        self.checks.append({"check": name, "passed": passed, "detail": detail})
        mark = {True: "pass", False: "FAIL", None: "not judged"}[passed]
        print(f"{mark:>10}  {name}: {detail}", flush=True)
        self.save(self)

    def row(self, row: dict[str, Any]) -> None:
        """Add a row of the table."""
        self.rows.append(row)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        self.save(self)

    def guarded(self, name: str, check: Callable[[], None]) -> None:
        """Run a check; one that raises has failed, and the others still run."""
        if self.late():
            return self.note(name, None, "out of time")
        try:
            check()
        except Exception as error:  # whatever it is, the next check is worth its own answer
            self.note(name, False, f"{type(error).__name__}: {str(error)[:200]}")
        return None

    def make_logits(self, rows: int, dtype: torch.dtype, seed: int, stride: int | None = None) -> Tensor:
        """Normal logits ``[rows, stride]``, drawn in place a chunk at a time so that the largest batch fits."""
        generator = torch.Generator(self.device).manual_seed(seed)
        storage = torch.empty(rows, self.stride if stride is None else stride, dtype=dtype, device=self.device)
        for chunk in storage.split(4096):
            chunk.normal_(0.0, 3.0, generator=generator)
        return storage

    def make_tokens(self, rows: int, share: float) -> Tensor:
        """Tokens ``[rows]`` of which the share is masked, scattered."""
        masked = uniform(5, row=torch.arange(rows, device=self.device)) < share
        return torch.where(masked, self.mask, 1)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        settings = {k: str(v) for k, v in vars(self).items() if k not in ("checks", "rows", "rates", "save")}
        return {"about": about(self.device), "setting": settings, "rates": self.rates,
                "checks": self.checks, "rows": self.rows}  # fmt: skip


def about(device: torch.device) -> dict[str, Any]:
    """Machine and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"date": time.strftime("%Y-%m-%d"), "measured_on_a_gpu": gpu is not None, "device": gpu or "cpu",
            "cuda": torch.version.cuda, "python": platform.python_version(), "versions": versions}  # fmt: skip


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(value, indent=1))
    aside.replace(path)


def write_table(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV, with every column that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
