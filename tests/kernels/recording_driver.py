"""A Triton driver for an H100 that is not there: kernels are specialised and compiled as they would be, and recorded
instead of launched."""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CAPABILITY = (9, 0)


class Recorder:
    """Names and binaries of the kernels, in the order of their first launches."""

    def __init__(self) -> None:
        self.kernels: list[tuple[str, bytes]] = []
        self.launches = 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": 232448,
            "max_num_regs": 65536,
            "multiprocessor_count": 132,
            "warpSize": 32,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        self.kernels.append((name, binary))
        known = 1, 1, 32, 0, 1024  # module, function, registers, spills, threads
        return known[:4] if triton.__version__.startswith("3.2.") else known

    def unload_module(self, module: int) -> None:
        pass


class RecordingDriver:
    """What Triton asks of a driver."""

    def __init__(self) -> None:
        self.utils = recorder = Recorder()

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                pass

            def __call__(self, *arguments: Any) -> None:
                recorder.launches += 1

        self.launcher_cls = Launcher

    def get_current_target(self) -> GPUTarget:
        major, minor = CAPABILITY
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def is_active(self) -> bool:
        return True


def install() -> Recorder:
    """Make it the driver of this process."""
    made = RecordingDriver()
    driver.set_active(made)
    return made.utils
