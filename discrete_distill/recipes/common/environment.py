"""Where a recipe runs: device, precision, threads, and a folder it can write to."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from ...distributed.collectives import num_processes

Precision = Literal["auto", "fp32", "bf16"]
Matmul = Literal["exact", "tf32"]


def make_accelerator(precision: Precision) -> Accelerator:
    """An `Accelerator` in the given precision; "auto" is bf16 where the device multiplies it natively."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU, accelerate joins the processes of torchrun only with ``cpu=True``.
    on_cpus = launched > 1 and not torch.cuda.is_available()
    made = Accelerator(cpu=on_cpus, mixed_precision="bf16" if resolve_precision(precision) == "bf16" else "no")
    if made.num_processes != launched or num_processes() != launched:
        raise ValueError(
            f"the launcher started {launched} processes, accelerate sees {made.num_processes} and torch.distributed "
            f"{num_processes()}; start the recipe with torchrun or accelerate launch, in a process that made no other "
            "Accelerator before"
        )
    return made


def resolve_precision(precision: Precision) -> str:
    """ "fp32" or "bf16"."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if native() else "fp32"


@contextmanager
def matmul_precision(matmul: Matmul) -> Iterator[None]:
    """Inside, fp32 matrix products are exact, or may be taken in TF32 (10 bits of mantissa) on GPUs that have it; the
    setting of before is in force again afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if matmul == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def describe_machine(accelerator: Accelerator) -> str:
    """One line for reports."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    return f"{name}, {precision}, torch {torch.__version__}, Python {platform.python_version()}"


def make_folder(folder: Path, *, only_check: bool = False) -> Path:
    """Make a folder that can be written to, or only see whether it could be made."""
    nearest = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise PermissionError(f"cannot write to {folder}; choose another --output")
    if not only_check:
        folder.mkdir(parents=True, exist_ok=True)
    return folder
