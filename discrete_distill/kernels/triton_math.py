"""The few device functions the kernels share. Importing this module imports triton."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from discrete_distill.kernels.dispatch import interpreting

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

if interpreting():  # the interpreter cannot run inline assembly

    @triton.jit
    def exp2_fast(x):
        return tl.exp2(x)

else:

    @triton.jit
    def exp2_fast(x):
        # One instruction: without .ftz the compiler adds two that rescale denormals, a third of the loop.
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
