"""Reads what a compiled kernel does: registers, loads, and the instructions of its loops. No GPU is needed."""

from __future__ import annotations

import pathlib
import re
import subprocess
import tempfile

import triton

CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.M)


def read(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory; loads by width; length of the longest loop and the shuffles in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        )
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage.stdout)}
    instructions = [(int(place, 16), name, rest) for place, name, rest in INSTRUCTION.findall(code.stdout)]
    names = [name for _, name, _ in instructions]
    body = longest_loop(instructions)
    return {
        **counts,
        "loads_of_16_bytes": sum(name.startswith("LDG") and ".128" in name for name in names),
        "stores_of_16_bytes": sum(name.startswith("STG") and ".128" in name for name in names),
        "loads_of_2_bytes": sum(name.startswith("LDG") and ".U16" in name for name in names),
        "loop": len(body),
        "shuffles_in_loop": sum(name.startswith("SHFL") for name in body),
    }


def longest_loop(instructions: list[tuple[int, str, str]]) -> list[str]:
    """Names of the instructions between a backward branch and its target; the longest such stretch."""
    longest: list[str] = []
    for place, name, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if not name.startswith("BRA") or target is None or int(target[1], 16) >= place:
            continue
        body = [inner for at, inner, _ in instructions if int(target[1], 16) <= at <= place]
        longest = max(longest, body, key=len)
    return longest
