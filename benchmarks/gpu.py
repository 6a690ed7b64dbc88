"""Check every kernel on this GPU, then time it: `python -m benchmarks.gpu`. Ends with pass or fail.

Each group of checks or times runs in a process of its own, since an error on the device ends all later work of its
process; results are written as they come. Figures are of the GPU they were run on, which the JSON names. `--dry-run`
walks through all of it on a CPU with tiny shapes: it proves that the program runs, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_baselines, gpu_checks
from benchmarks.gpu_run import Run, write_json, write_table
from benchmarks.gpu_timing import measure_rates, time_case
from discrete_distill.kernels import sample_rows, token_losses

COPY_GOAL, STEP_GOAL, LOSS_GOAL = 0.80, 20.0, 10.0
DTYPES = (torch.bfloat16, torch.float32)


def philox(run: Run) -> None:
    run.guarded("philox", lambda: gpu_checks.check_philox(run))


def tokens(run: Run) -> None:
    _check_all(run, "sample_rows", gpu_checks.check_tokens)


def losses(run: Run) -> None:
    _check_all(run, "token_losses", gpu_checks.check_losses)


def graph(run: Run) -> None:
    run.guarded("CUDA graph", lambda: gpu_checks.check_graph(run))


def _check_all(run: Run, name: str, check: Callable[[Run, int, torch.dtype], None]) -> None:
    for dtype in gpu_checks.DTYPES:
        for size in gpu_checks.sizes(run):
            run.guarded(f"{name} V={size} {str(dtype)[6:]}", lambda size=size, dtype=dtype: check(run, size, dtype))


def time_steps(run: Run) -> None:
    _time_all(run, "step", time_step)


def time_losses(run: Run) -> None:
    _time_all(run, "losses", time_loss)


def _time_all(run: Run, what: str, timed: Callable[[Run, int, torch.dtype, float, int], None]) -> None:
    """Padded rows at every batch and precision; rows as they are, not a multiple of 16 bytes, at the first batch."""
    measure_rates(run)
    for batch in run.batches:
        for dtype in DTYPES:
            for share in (1.0, 0.5):
                for stride in (run.stride, run.vocab_size):
                    if stride == run.vocab_size and (batch != run.batches[0] or share != 1.0):
                        continue
                    try:
                        if run.late():
                            raise TimeoutError("out of time")
                        timed(run, batch, dtype, share, stride)
                    except Exception as error:  # the other rows are worth their own try
                        failure = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)[:120]
                        run.row({**_labels(what, batch, dtype, share, stride), "note": failure})


def _labels(what: str, batch: int, dtype: torch.dtype, share: float, stride: int) -> dict[str, Any]:
    return {"what": what, "batch": batch, "dtype": str(dtype)[6:], "masked": f"{share:.0%}", "stride": stride}


def time_step(run: Run, batch: int, dtype: torch.dtype, share: float, stride: int) -> None:
    """The sampling kernel alone, and the whole reverse step."""
    rows = batch * run.length
    full = run.make_logits(rows, dtype, 1, stride)
    logits, x_t = full[:, : run.vocab_size], run.make_tokens(rows, share)
    seed, step = torch.tensor(3, device=run.device), torch.tensor(0, device=run.device)
    schedule = (run.mask, run.alpha_t, run.alpha_s)
    first = batch == run.batches[0] and stride == run.stride
    baselines: dict[str, Callable[[], Any]] = {}
    if first or (share == 1.0 and stride == run.stride):
        baselines["eager fp32"] = lambda: gpu_baselines.eager_step(logits, x_t, *schedule, torch.float32)
    if first and share == 1.0:
        baselines["eager fp64"] = lambda: gpu_baselines.eager_step(logits, x_t, *schedule, torch.float64)
        if not run.dry:
            compiled = torch.compile(gpu_baselines.eager_step)
            baselines["torch.compile"] = lambda: compiled(logits, x_t, *schedule, torch.float32)
            baselines["naive gumbel"] = lambda: gpu_baselines.naive_gumbel(full, run.mask)
        if importlib.util.find_spec("flashinfer") is not None:
            import flashinfer

            floats = logits.float().contiguous()
            baselines["flashinfer"] = lambda: flashinfer.sampling.sampling_from_logits(floats)
    numbers, active = torch.arange(rows, device=run.device), x_t == run.mask
    size = int(active.sum()) * run.mask * full.element_size()

    def draw() -> Any:
        return sample_rows(logits, seed=seed, positions_R=numbers, step=step, mask_token_id=run.mask, active_R=active,
                           backend=run.backend)  # fmt: skip

    time_case(run, _labels("sample_rows", batch, dtype, share, stride), size, draw, {})
    labels = _labels("step", batch, dtype, share, stride)
    time_case(run, labels, size, lambda: gpu_checks.fused_step(run, logits, x_t, seed, step), baselines)


def time_loss(run: Run, batch: int, dtype: torch.dtype, share: float, stride: int) -> None:
    """The token losses forward, and forward and backward."""
    rows = batch * run.length
    item = torch.empty(0, dtype=dtype).element_size()
    labels = _labels("losses", batch, dtype, share, stride)
    if run.device.type == "cuda" and 3 * rows * stride * item > 0.9 * torch.cuda.mem_get_info()[0]:
        return run.row({**labels, "note": "student, teacher and gradient do not fit: call in chunks"})
    student, teacher = run.make_logits(rows, dtype, 1, stride), run.make_logits(rows, dtype, 2, stride)
    student.requires_grad_()
    weight = (run.make_tokens(rows, share) == run.mask).float()
    targets = torch.arange(rows, device=run.device) % run.mask
    upstream = torch.ones(4, rows, device=run.device)

    def forward() -> Tensor:
        parts = token_losses(student, teacher, targets, weight_R=weight, mask_token_id=run.mask,
                             num_classes=run.vocab_size, backend=run.backend)  # fmt: skip
        return torch.stack([part for part in parts if part is not None])

    def eager(function: Callable[..., tuple[Tensor, ...]]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(torch.stack(function(student, teacher, targets)), student, upstream)

    live = int(weight.sum())
    forward_labels = _labels("losses forward", batch, dtype, share, stride)
    time_case(run, forward_labels, 2 * live * run.mask * item, lambda: forward().detach(), {})
    padded = stride == run.stride
    baselines = {"eager": eager(gpu_baselines.eager_losses)} if share == 1.0 and padded else {}
    if batch == run.batches[0] and share == 1.0 and padded and not run.dry:
        baselines["torch.compile"] = eager(torch.compile(gpu_baselines.eager_losses))
        if importlib.util.find_spec("liger_kernel") is not None:
            from liger_kernel.transformers import LigerJSD

            jsd = LigerJSD(beta=0.5)
            baselines["liger jsd"] = lambda: torch.autograd.grad(
                jsd(student.float().log_softmax(-1), teacher.float().log_softmax(-1)), student
            )
    size = 4 * live * run.mask * item + rows * stride * item
    return time_case(run, labels, size, lambda: torch.autograd.grad(forward(), student, upstream), baselines)


GROUPS: dict[str, Callable[[Run], None]] = {
    "philox": philox,
    "tokens": tokens,
    "losses": losses,
    "graph": graph,
    "time-steps": time_steps,
    "time-losses": time_losses,
}


def judge(run: Run) -> None:
    """The goals, on the rows where they were set."""
    goals = [(what, "of_copy", COPY_GOAL) for what in ("sample_rows", "losses forward", "losses")]
    goals += [("step", "x eager fp32", STEP_GOAL), ("losses", "x eager", LOSS_GOAL)]
    for what, column, goal in goals:
        for row in run.rows:
            if row["what"] == what and row.get("masked") == "100%" and column in row and row["stride"] == run.stride:
                name = f"goal: {what} {column} >= {goal:g} (B={row['batch']}, {row['dtype']})"
                run.note(name, None if run.dry else row[column] >= goal, f"{row[column]:.2f}")


def group_command(name: str, options: argparse.Namespace, seconds: float) -> list[str]:
    """Command line of one group's own process."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--group", name, "--out", str(options.out)]
    command += ["--seconds", f"{seconds:.0f}", "--batches", *map(str, options.batches)]
    return command + ["--dry-run"] * options.dry_run


def run_isolated(run: Run, name: str, options: argparse.Namespace) -> None:
    """Run a group in its own process, and take over what it wrote before it ended, however it ended."""
    seconds = max(0.0, run.deadline - time.monotonic())
    written = options.out / f"gpu-{name}.json"
    written.unlink(missing_ok=True)
    try:
        code = subprocess.run(group_command(name, options, seconds), timeout=seconds + 60.0, check=False).returncode
        ending = "" if code == 0 else f"its process ended with exit code {code}"
    except subprocess.TimeoutExpired:
        ending = "its process was ended past its time"
    if written.exists():
        found = json.loads(written.read_text())
        run.checks += found["checks"]
        run.rows += found["rows"]
        run.rates |= found["rates"]
        written.unlink()
    if ending:
        run.note(f"group {name}", False, ending)
    run.save(run)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"), help="folder for gpu.json, gpu.csv"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seconds", type=float, default=420.0, help="nothing new is started after this long")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU: shows that the program runs")
    parser.add_argument("--in-process", action="store_true", help="all groups in this process, as for a debugger")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here: run this on a GPU, or see the program run with --dry-run", file=sys.stderr)
        return 2
    run = Run.for_device(dry=options.dry_run, seconds=options.seconds, batches=options.batches)
    if options.group:
        run.save = lambda run: write_json(options.out / f"gpu-{options.group}.json", run.to_dict())
        GROUPS[options.group](run)
        run.save(run)
        return 0
    run.save = lambda run: write_json(options.out / "gpu.json", run.to_dict())
    for name, group in GROUPS.items():
        if options.in_process:
            group(run)
        else:
            run_isolated(run, name, options)
    judge(run)
    run.save(run)
    write_table(options.out / "gpu.csv", run.rows)
    failed = [check["check"] for check in run.checks if check["passed"] is False]
    unjudged = sum(check["passed"] is None for check in run.checks)
    passed = len(run.checks) - len(failed) - unjudged
    print(f"\n{passed} passed, {len(failed)} failed, {unjudged} not judged: {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
