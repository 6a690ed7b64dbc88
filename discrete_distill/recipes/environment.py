"""Where a recipe runs: device, precision, threads, and a folder it can write to."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

Precision = Literal["auto", "fp32", "bf16"]


def make_accelerator(precision: Precision) -> Accelerator:
    """An `Accelerator` in the given precision; "auto" is bf16 where the device multiplies it natively."""
    return Accelerator(mixed_precision="bf16" if resolve_precision(precision) == "bf16" else "no")


def resolve_precision(precision: Precision) -> str:
    """ "fp32" or "bf16"."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if native() else "fp32"


def describe_machine(accelerator: Accelerator) -> str:
    """One line for reports."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    return f"{name}, {precision}, torch {torch.__version__}, Python {platform.python_version()}"


def make_folder(folder: Path, *, only_check: bool = False) -> Path:
    """Make a folder that can be written to, or only see whether it could be made.

    Raises:
        PermissionError: if it cannot.
    """
    nearest = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise PermissionError(f"cannot write to {folder}; choose another --output")
    if not only_check:
        folder.mkdir(parents=True, exist_ok=True)
    return folder
