"""Triton without a GPU: interpreted, and compiled ahead of time. Each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections import Counter

import pytest

from discrete_distill.kernels.launch import CAPABILITIES

pytest.importorskip("triton", reason="triton is not installed; pip install triton to test the GPU kernels")
OLD_ASSEMBLER = importlib.metadata.version("triton").startswith("3.2.")  # that of CUDA 12.4

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
SUPPORTED = [10 * major + minor for major, minor in CAPABILITIES]
OTHER_TRITON = ROOT / ".triton-3.6.0"


def run(*arguments: str, first: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*([first] if first else []), str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    cleared = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "DISCRETE_DISTILL_BACKEND")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**cleared, "PYTHONPATH": path, **environment},
    )


def version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


@pytest.mark.skipif(
    version("triton") < (3, 7) and version("numpy") >= (2, 4),
    reason="the interpreter of triton below 3.7 needs numpy below 2.4",
)
def test_kernels_in_the_interpreter_equal_the_torch_reference():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted.py"), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def compiled(*arguments: str, script: str = "aot.py", cache: pathlib.Path, triton_at: str = "") -> list[dict]:
    """What a script of this folder says of the kernels that it compiled, with Triton from another folder if given."""
    environment = {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    done = run(str(HERE / script), *arguments, first=triton_at, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def skip_unknown(capability: int) -> None:
    if capability >= 100 and OLD_ASSEMBLER:
        pytest.skip("the assembler of Triton 3.2 knows no GPU of compute capability 10.0")


@pytest.mark.parametrize("capability", SUPPORTED)
def test_every_shipped_kernel_compiles_without_local_memory_and_within_its_registers(capability, tmp_path):
    skip_unknown(capability)
    kernels = compiled(str(capability), cache=tmp_path)
    assert len(kernels) == 35
    for kernel in kernels:
        assert kernel["LOCAL"] == 0, kernel
        # Registers are allotted otherwise by an older assembler: measured up to 109 of 96, and a word on the stack.
        assert kernel["STACK"] <= 8 * OLD_ASSEMBLER, kernel
        assert kernel["REG"] <= kernel["limit"] * (1.25 if OLD_ASSEMBLER else 1.0), kernel
        # Philox writes 64-bit words that it has computed, and reads next to nothing.
        assert kernel["loads_of_16_bytes"] > 0 or kernel["kernel"] == "philox", kernel
        # A thread sums what it loaded itself; threads exchange sums after the loop.
        assert kernel["shuffles_in_loop"] == 0, kernel
    for kernel in kernels:
        if kernel["kernel"] in ("sample_rows 2B", "sample_rows 4B"):
            # Twenty warps of the plain sampler fit a multiprocessor's 65536 registers.
            assert kernel["REG"] * 32 * 20 <= 65536, kernel


def check_rows_anywhere(kernels: list[dict]) -> None:
    assert len(kernels) == 24
    for kernel in kernels:
        assert kernel["LOCAL"] == kernel["STACK"] == kernel["shuffles_in_loop"] == 0, kernel
        assert kernel["REG"] <= kernel["limit"], kernel
        assert kernel["loads_of_16_bytes"] == 0, kernel


@pytest.mark.parametrize("capability", SUPPORTED)
def test_rows_that_start_anywhere_cost_no_local_memory_and_no_exchange_between_threads(capability, tmp_path):
    """A user's own logits of 50258 classes: a row starts at any multiple of two bytes."""
    skip_unknown(capability)
    check_rows_anywhere(compiled("--any-stride", str(capability), cache=tmp_path))


def made_for_this_python(folder: pathlib.Path) -> bool:
    """Whether a package stands in a folder, in a wheel of the Python that runs."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-"
    return any(tag in file.read_text() for file in folder.glob("triton-*.dist-info/WHEEL"))


@pytest.mark.skipif(
    not made_for_this_python(OTHER_TRITON), reason=f"no {OTHER_TRITON.name} for this Python; run make other-triton"
)
def test_another_version_of_triton_compiles_the_same_loops(tmp_path):
    """PyTorch on a GPU machine brings a Triton of its own, and compilers differ in how they spread a tile."""
    here = {"triton_at": str(OTHER_TRITON), "cache": tmp_path}
    check_rows_anywhere(compiled("--any-stride", "90", **here))
    kernels = compiled("90", **here)
    assert len(kernels) == 35
    assert {kernel["triton"] for kernel in kernels} == {OTHER_TRITON.name.rpartition("-")[2]}
    for kernel in kernels:
        assert kernel["LOCAL"] == kernel["STACK"] == kernel["shuffles_in_loop"] == 0, kernel
        assert kernel["REG"] <= kernel["limit"], kernel
        assert kernel["loads_of_16_bytes"] > 0 or kernel["kernel"] == "philox", kernel


def test_what_the_library_launches_reads_16_bytes_at_a_time(tmp_path):
    """The launches of DiT.project, sample_features and linear_token_losses, with the strides that they make."""
    kernels = compiled(script="recorded_launches.py", cache=tmp_path)
    seen = Counter(kernel["kernel"].removesuffix("_kernel") for kernel in kernels)
    assert seen == {"sample_rows": 4, "token_losses": 4, "token_losses_backward": 4, "philox": 1}
    for kernel in kernels:
        assert kernel["LOCAL"] == kernel["STACK"] == kernel["shuffles_in_loop"] == 0, kernel
        if kernel["kernel"] == "philox_kernel":
            continue
        assert kernel["REG"] <= kernel["limit"], kernel
        # Every tile of the loop; the tail of the row is masked element by element.
        assert kernel["loads_of_16_bytes"] >= 2, kernel
        if kernel["kernel"] == "token_losses_backward_kernel":
            assert kernel["stores_of_16_bytes"] >= 2, kernel
    # Rows without their padding are seen: the test above can fail.
    for kernel in compiled("--unpadded", script="recorded_launches.py", cache=tmp_path):
        assert kernel["loads_of_16_bytes"] == 0, kernel
