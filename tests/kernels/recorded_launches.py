"""Launch the kernels as the library does, on a pretended CUDA device, through Triton's own specialisation and
compiler; print one JSON line for each compiled kernel. `--unpadded` takes the padding of rows away.

It must run in a process of its own: the driver is the process's.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "cuda"))

import machine_code
import pretended_cuda as pretended
import recording_driver
from pretended_cuda import CUDA, PretendedCuda
from torch import Tensor

from discrete_distill.kernels import launch, linear_token_losses, padding, philox, sample_features, sample_rows
from discrete_distill.kernels.losses import _token_losses_backward_op, _token_losses_op
from discrete_distill.kernels.sampling import _sample_rows_op
from discrete_distill.models import DiT, DiTConfig

VOCAB, WIDTH, ROWS = 50258, 16, 8
TABLES = {
    "sample_rows_kernel": launch.SAMPLING,
    "token_losses_kernel": launch.LOSSES_FORWARD,
    "token_losses_backward_kernel": launch.LOSSES_BACKWARD,
}
# The pretended device would hand an operation's CPU values to its body.
OPS = (philox._philox_op, _sample_rows_op, _token_losses_op, _token_losses_backward_op)
BODIES = {op._qualname: op._init_fn for op in OPS}


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], original: Any = pretended.dispatch) -> Any:
    body = BODIES.get(func._schema.name)
    if body is None:
        return original(func, args, kwargs)
    with pretended.Factories():
        return body(*args, **kwargs)


def report(recorder: recording_driver.Recorder, caller: str, dtype: torch.dtype) -> None:
    """What was compiled since the last report."""
    for name, binary in recorder.kernels:
        table = TABLES.get(name)
        line = None if table is None else launch.choose(table, dtype.itemsize, recording_driver.CAPABILITY[0])
        limit = {} if line is None else {"limit": line.max_registers}
        print(
            json.dumps(
                {"caller": caller, "kernel": name, "bytes": dtype.itemsize, **limit, **machine_code.read(binary)}
            )
        )
    recorder.kernels.clear()


def on_device(*shape: int, dtype: torch.dtype) -> Tensor:
    return PretendedCuda(torch.zeros(shape, dtype=dtype))


def call_all(recorder: recording_driver.Recorder, dtype: torch.dtype) -> None:
    positions = PretendedCuda(torch.arange(ROWS))
    tokens = PretendedCuda(torch.zeros(ROWS, dtype=torch.int64))
    options = {"seed": 0, "positions_R": positions, "step": 0, "mask_token_id": VOCAB - 1}
    config = DiTConfig(
        vocab_size=VOCAB, max_length=ROWS, hidden_size=WIDTH, num_layers=1, num_heads=2, cond_size=8, dropout=0.0
    )
    network = pretended.to_cuda(DiT(config).eval().to(dtype))
    features = on_device(ROWS, WIDTH, dtype=dtype)
    with torch.no_grad():
        logits = network.project(features)
    sample_rows(logits, **options)
    report(recorder, "DiT.project", dtype)
    sample_features(features, network.project, return_entropy=True, **options)
    report(recorder, "sample_features", dtype)
    weight = on_device(VOCAB, WIDTH, dtype=dtype)
    for teacher in (False, True):
        head = weight.detach().requires_grad_()
        theirs = {"teacher_features_RD": features, "teacher_weight_VD": weight} if teacher else {}
        losses = linear_token_losses(features, head, tokens, mask_token_id=VOCAB - 1, **theirs)
        losses.log_prob.sum().backward()
        report(recorder, "linear_token_losses" + ", teacher" * teacher, dtype)


def main(*, unpadded: bool) -> None:
    recorder = recording_driver.install()
    multiple = 1 if unpadded else padding.ROW_MULTIPLE
    with (
        pretended.pretended_cuda(),
        mock.patch.object(pretended, "dispatch", dispatch),
        mock.patch.object(PretendedCuda, "data_ptr", lambda self: self.inner.data_ptr()),
        mock.patch.object(padding, "ROW_MULTIPLE", multiple),
    ):
        os.environ["DISCRETE_DISTILL_BACKEND"] = "triton"
        for dtype in (torch.bfloat16, torch.float32):
            call_all(recorder, dtype)
        philox.uniform(0, row=torch.arange(ROWS, device=CUDA))
        report(recorder, "uniform", torch.int64)


if __name__ == "__main__":
    main(unpadded="--unpadded" in sys.argv)
