"""Compile every shipped configuration of every kernel for real GPUs on a machine without one, and read what
it takes.

Run as a script it prints one JSON line a kernel: `python tests/kernels/aot.py [--any-stride]
[compute capability ...]`. It must run in a process that is not interpreting Triton.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import machine_code
import triton
from ast_source import ast_source
from triton.backends.compiler import GPUTarget

from discrete_distill.kernels import launch, triton_losses, triton_philox, triton_sampling
from discrete_distill.kernels.reference_sampling import LANES

POINTER = {2: "*bf16", 4: "*fp32"}
DEPTH = 64  # V = 50258


def sampling(major: int, itemsize: int, name: str, **flags: Any) -> tuple[str, Any, dict, dict, int, int]:
    line = launch.choose(launch.SAMPLING, itemsize, major)
    constants = {
        "Q": LANES,
        "U": line.unroll,
        "DEPTH": DEPTH,
        "M": 1,
        "HAS_ACTIVE": True,
        "HAS_TILT": False,
        "FORBIDDEN": False,
        "ENTROPY": False,
        **flags,
    }
    pointers = {
        "logits": POINTER[itemsize],
        "rows": "*i64",
        "active": "*u8",
        "seed": "*i64",
        "step": "*i64",
        "tilt": POINTER[itemsize],
        "tilt_scale": "*fp32",
        "tokens": "*i64",
        "log_probs": "*fp32",
        "entropy": "*fp32",
    }
    scalars = {
        "logits_stride": "i32",
        "tilt_stride": "i32",
        "last": "i32",
        "forbidden": "i32",
        "inverse_temperature": "fp32",
    }
    return (
        f"sample_rows {name}",
        triton_sampling.sample_rows_kernel,
        {**pointers, **scalars},
        constants,
        line.num_warps,
        line.max_registers,
    )


def losses(major: int, itemsize: int, name: str, **flags: Any) -> tuple[str, Any, dict, dict, int, int]:
    line = launch.choose(launch.LOSSES_FORWARD, itemsize, major)
    constants = {
        "U": line.unroll,
        "G": 32 * line.num_warps,
        "W": line.width,
        "ALIGNED": True,
        "HAS_ACTIVE": True,
        "HAS_TEACHER": True,
        "FORBIDDEN": False,
        **flags,
    }
    signature = {
        "student": POINTER[itemsize],
        "teacher": POINTER[itemsize],
        "tokens": "*i64",
        "active": "*u8",
        "statistics": "*fp32",
        "count": "i32",
        "student_stride": "i32",
        "teacher_stride": "i32",
        "last": "i32",
        "classes": "i32",
        "mask_token": "i32",
        "forbidden": "i32",
    }
    return (
        f"token_losses {name}",
        triton_losses.token_losses_kernel,
        signature,
        constants,
        line.num_warps,
        line.max_registers,
    )


def backward(major: int, itemsize: int, name: str, **flags: Any) -> tuple[str, Any, dict, dict, int, int]:
    line = launch.choose(launch.LOSSES_BACKWARD, itemsize, major)
    constants = {
        "BLOCK": line.unroll * LANES,
        "HAS_ACTIVE": True,
        "HAS_TEACHER": True,
        "FORBIDDEN": False,
        **flags,
    }
    signature = {
        "student": POINTER[itemsize],
        "teacher": POINTER[itemsize],
        "tokens": "*i64",
        "active": "*u8",
        "statistics": "*fp32",
        "gradients": "*fp32",
        "result": POINTER[itemsize],
        "count": "i32",
        "student_stride": "i32",
        "teacher_stride": "i32",
        "result_stride": "i32",
        "width": "i32",
        "last": "i32",
        "forbidden": "i32",
        "blocks": "i32",
    }
    kernel = triton_losses.token_losses_backward_kernel
    return f"token_losses_backward {name}", kernel, signature, constants, line.num_warps, line.max_registers


def shipped(major: int) -> Iterator[tuple[str, Any, dict, dict, int, int]]:
    """Every combination of flags that changes the loop, for both widths of logits."""
    counters = dict.fromkeys(("seed", "candidate", "row", "step", "stream", "words"), "*i64")
    constants = {"S0": 0, "S1": 1, "S2": 0, "S3": 0, "BLOCK": 1024}
    yield "philox", triton_philox.philox_kernel, {**counters, "count": "i32"}, constants, 4, 96
    for itemsize in (2, 4):
        for tilt, entropy, forbidden in itertools.product((False, True), repeat=3):
            name = f"{itemsize}B" + " tilt" * tilt + " entropy" * entropy + " forbidden" * forbidden
            yield sampling(major, itemsize, name, HAS_TILT=tilt, ENTROPY=entropy, FORBIDDEN=forbidden)
        yield sampling(major, itemsize, f"{itemsize}B M=4", M=4)
        for make in (losses, backward):
            for teacher, forbidden in itertools.product((False, True), repeat=2):
                name = f"{itemsize}B" + " teacher" * teacher + " forbidden" * forbidden
                yield make(major, itemsize, name, HAS_TEACHER=teacher, FORBIDDEN=forbidden)


STRIDES = ("logits_stride", "tilt_stride", "student_stride", "teacher_stride", "result_stride")


def resource_usage(
    kernel: Any, signature: dict, constants: dict, num_warps: int, capability: int, *, aligned_rows: bool = True
) -> dict[str, int]:
    """What a compiled kernel takes and does, see `machine_code.read`; with rows at multiples of 16, or anywhere."""
    aligned = [n for n, kind in signature.items() if kind.startswith("*") or (aligned_rows and n in STRIDES)]
    compiled = triton.compile(
        ast_source(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "enable_fp_fusion": True},
    )
    return machine_code.read(compiled.asm["cubin"])


def main(capabilities: list[int], *, aligned_rows: bool) -> None:
    for capability in capabilities:
        for name, kernel, signature, constants, warps, limit in shipped(capability // 10):
            if not aligned_rows and ("tilt" in name or "M=" in name or name == "philox"):
                continue
            if "ALIGNED" in constants:
                constants = {**constants, "ALIGNED": aligned_rows}
            usage = resource_usage(kernel, signature, constants, warps, capability, aligned_rows=aligned_rows)
            print(
                json.dumps({"kernel": name, "triton": triton.__version__, "sm": capability, "limit": limit, **usage}),
                flush=True,
            )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    main(
        numbers or [10 * major + minor for major, minor in launch.CAPABILITIES],
        aligned_rows="--any-stride" not in sys.argv,
    )
