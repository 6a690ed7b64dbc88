"""Check every kernel on this GPU, then time it: `python -m benchmarks.gpu`. Ends with pass or fail.

Figures are of the GPU they were run on, and the JSON says which. `--dry-run` walks through all of it on a CPU
with tiny shapes: it proves that the program runs, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_baselines
from discrete_distill.kernels import STREAM_COIN, STREAM_TOKEN, sample_rows, token_losses, uniform

COPY_GOAL, STEP_GOAL, LOSS_GOAL = 0.80, 20.0, 10.0
MEASURE_SECONDS = 0.8
PACKAGES = ("torch", "triton", "numpy", "flashinfer-python", "liger-kernel")


@dataclass
class Setting:
    """What is run, and until when."""

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
    copy_rate: float = 0.0

    @property
    def mask(self) -> int:
        return self.vocab_size - 1

    @property
    def backend(self) -> Any:
        return "torch" if self.dry else "triton"

    def late(self) -> bool:
        return time.monotonic() > self.deadline


def fused_step(s: Setting, logits: Tensor, z: Tensor, seed: Tensor, step: Tensor) -> Tensor:
    rows = torch.arange(len(z), device=z.device)
    drawn = sample_rows(
        logits,
        seed=seed,
        rows_R=rows,
        step=step,
        mask_token_id=s.mask,
        active_R=z == s.mask,
        backend=s.backend,
    )
    coin = uniform(seed, row=rows, step=step, stream=STREAM_COIN) * (1 - s.alpha_t) < s.alpha_s - s.alpha_t
    return torch.where((z == s.mask) & coin, drawn.tokens[:, 0], z)


def make_logits(s: Setting, rows: int, dtype: torch.dtype, seed: int) -> Tensor:
    """`[rows, V]` with the padded stride, made in place a chunk at a time so that the largest batch fits."""
    generator = torch.Generator(s.device).manual_seed(seed)
    storage = torch.empty(rows, s.stride, dtype=dtype, device=s.device)
    for chunk in storage.split(4096):
        chunk.normal_(0.0, 3.0, generator=generator)
    return storage


def make_z(s: Setting, rows: int, share: float) -> Tensor:
    """Tokens of which the share is masked, scattered."""
    masked = uniform(5, row=torch.arange(rows, device=s.device)) < share
    return torch.where(masked, s.mask, 1)


def note(s: Setting, name: str, passed: bool | None, detail: str) -> None:
    s.checks.append({"check": name, "passed": passed, "detail": detail})
    mark = {True: "pass", False: "FAIL", None: "not judged"}[passed]
    print(f"{mark:>10}  {name}: {detail}", flush=True)


def check_tokens(s: Setting, vocab_size: int, dtype: torch.dtype) -> None:
    """Tie-aware oracle in fp64: a token is right when its words lie within 1e-5 of its interval."""
    rows = 64 if s.dry else 2048
    logits = make_logits(s, rows, dtype, vocab_size)[:, :vocab_size]
    number = torch.arange(rows, device=s.device)
    sample = sample_rows(logits, seed=7, rows_R=number, step=1, return_entropy=True, backend=s.backend)
    exact = torch.log_softmax(logits.double(), -1)
    p, token = exact.exp(), sample.tokens
    padded = torch.nn.functional.pad(p, (0, -vocab_size % 1024)).view(rows, -1, 1024)
    lanes = padded.sum(1)
    lane, place = token % 1024, token // 1024

    def miss(masses: Tensor, index: Tensor, word: int) -> Tensor:
        u = uniform(7, row=number, step=1, stream=STREAM_TOKEN, word=word)[:, None] * masses.sum(-1, keepdim=True)
        upper = masses.cumsum(-1).gather(1, index)
        return torch.maximum(u - upper, upper - masses.gather(1, index) - u).clamp(min=0) / masses.sum(-1, keepdim=True)

    inner = padded.gather(2, lane[:, :, None].expand(-1, padded.shape[1], 1))[:, :, 0]
    worst = torch.maximum(miss(lanes, lane, 0), miss(inner, place, 1)).max().item()
    entropy = (sample.entropy - -(p * exact).sum(-1)).abs().max().item() if sample.entropy is not None else 0.0
    error = max((sample.log_probs - exact.gather(1, token)).abs().max().item(), entropy)
    reference = sample_rows(logits, seed=7, rows_R=number, step=1, backend="torch").tokens
    flips = int((reference != token).sum())
    name = f"sample_rows V={vocab_size} {str(dtype)[6:]}"
    note(
        s,
        name,
        worst < 1e-5 and error < 1e-4,
        f"edge miss {worst:.1e}, error {error:.1e}, flips {flips}/{rows}",
    )


def check_losses(s: Setting, vocab_size: int, dtype: torch.dtype) -> None:
    rows = 8 if s.dry else 256
    student = make_logits(s, rows, dtype, 1)[:, :vocab_size].requires_grad_()
    teacher = make_logits(s, rows, dtype, 2)[:, :vocab_size]
    tokens = torch.arange(rows, device=s.device) % vocab_size
    upstream = make_logits(s, 4, torch.float32, 3)[:, :rows] / 3
    ours = torch.stack([part for part in token_losses(student, teacher, tokens, backend=s.backend) if part is not None])
    grad = torch.autograd.grad(ours, student, upstream)[0]
    exact_student = student.detach().double().requires_grad_()
    exact = torch.stack(gpu_baselines.eager_losses(exact_student, teacher.double(), tokens))
    exact_grad = torch.autograd.grad(exact, exact_student, upstream.double())[0]
    error = (ours - exact).abs().max().item()
    grad_error = ((grad - exact_grad).abs() / (1 + exact_grad.abs())).max().item()
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    note(s, f"token_losses V={vocab_size} {str(dtype)[6:]}", error < 5e-5 and grad_error < limit,
         f"value error {error:.1e}, gradient error {grad_error:.1e}")  # fmt: skip


def check_graph(s: Setting) -> None:
    """A captured step replays with another step number and another seed, both device tensors."""
    name = "CUDA graph"
    if s.dry:
        return note(s, name, None, "dry run")
    rows = 512
    logits, z = make_logits(s, rows, torch.bfloat16, 1)[:, : s.vocab_size], make_z(s, rows, 0.5)
    seed, step = torch.tensor(3, device=s.device), torch.tensor(0, device=s.device)
    for _ in range(2):
        fused_step(s, logits, z, seed, step)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused_step(s, logits, z, seed, step)
    same = True
    for number in (1, 2):
        step.fill_(number), seed.fill_(number + 10)
        graph.replay()
        same &= torch.equal(out, fused_step(s, logits, z, seed, step))
    note(s, name, same, "replays equal eager steps" if same else "a replay differs from the eager step")


def measure(s: Setting, function: Callable[[], Any]) -> tuple[float, float] | str:
    """Median and spread (10th to 90th percentile) in ms, or why there is none."""
    try:
        times, stop = [], time.monotonic() + MEASURE_SECONDS
        for _ in range(1 if s.dry else 3):
            function()
        while len(times) < (3 if s.dry else 7) or (time.monotonic() < stop and len(times) < 100):
            if s.device.type == "cuda":
                first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                first.record()
                function()
                last.record()
                last.synchronize()
                times.append(first.elapsed_time(last))
            else:
                begin = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - begin))
        cuts = statistics.quantiles(times, n=10)
        return statistics.median(times), cuts[8] - cuts[0]
    except torch.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # a baseline that does not run is a row of the table, not the end of the program
        return f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        if s.device.type == "cuda":
            torch.cuda.empty_cache()


def case(
    s: Setting, what: str, batch: int, dtype: torch.dtype, masked: str, size: int,
    ours: Callable[[], Any], baselines: dict[str, Callable[[], Any]],
) -> None:  # fmt: skip
    """One row of the table: our time, and the ratio of every baseline to it."""
    own = measure(s, ours)
    row: dict[str, Any] = {
        "what": what,
        "batch": batch,
        "dtype": str(dtype)[6:],
        "masked": masked,
        "bytes": size,
    }
    if isinstance(own, str):
        row["note"] = own
    else:
        row |= {"ms": own[0], "spread_ms": own[1], "GB/s": size / own[0] / 1e6}
        row["of_copy"] = row["GB/s"] / s.copy_rate
    for name, function in baselines.items():
        theirs = "out of time" if s.late() else measure(s, function)
        row[f"{name} ms"] = theirs if isinstance(theirs, str) else theirs[0]
        if not isinstance(theirs, str) and not isinstance(own, str):
            row[f"x {name}"] = theirs[0] / own[0]
    s.rows.append(row)
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def time_step(s: Setting, batch: int, dtype: torch.dtype, share: float) -> None:
    rows = batch * s.length
    full = make_logits(s, rows, dtype, 1)
    logits, z = full[:, : s.vocab_size], make_z(s, rows, share)
    seed, step = torch.tensor(3, device=s.device), torch.tensor(0, device=s.device)
    schedule = (s.mask, s.alpha_t, s.alpha_s)
    baselines: dict[str, Callable[[], Any]] = {}
    if batch == s.batches[0] or share == 1.0:
        baselines["eager fp32"] = lambda: gpu_baselines.eager_step(logits, z, *schedule, torch.float32)
    if batch == s.batches[0] and share == 1.0:
        baselines["eager fp64"] = lambda: gpu_baselines.eager_step(logits, z, *schedule, torch.float64)
        if not s.dry:
            compiled = torch.compile(gpu_baselines.eager_step)
            baselines["torch.compile"] = lambda: compiled(logits, z, *schedule, torch.float32)
            baselines["naive gumbel"] = lambda: gpu_baselines.naive_gumbel(full, s.mask)
        if importlib.util.find_spec("flashinfer") is not None:
            import flashinfer

            baselines["flashinfer"] = lambda: flashinfer.sampling.sampling_from_logits(logits.float().contiguous())
    size = int((z == s.mask).sum()) * s.mask * full.element_size()
    case(s, "step", batch, dtype, f"{share:.0%}", size, lambda: fused_step(s, logits, z, seed, step), baselines)


def time_losses(s: Setting, batch: int, dtype: torch.dtype, share: float) -> None:
    rows = batch * s.length
    item = torch.empty(0, dtype=dtype).element_size()
    if s.device.type == "cuda" and 3 * rows * s.stride * item > 0.9 * torch.cuda.mem_get_info()[0]:
        s.rows.append({"what": "losses", "batch": batch, "dtype": str(dtype)[6:], "masked": f"{share:.0%}",
                       "note": "student, teacher and gradient do not fit: call in chunks"})  # fmt: skip
        return
    student, teacher = make_logits(s, rows, dtype, 1).requires_grad_(), make_logits(s, rows, dtype, 2)
    weight = (make_z(s, rows, share) == s.mask).float()
    tokens = torch.arange(rows, device=s.device) % s.mask
    upstream = torch.ones(4, rows, device=s.device)

    def forward() -> Tensor:
        parts = token_losses(student, teacher, tokens, weight_R=weight, mask_token_id=s.mask,
                             num_classes=s.vocab_size, backend=s.backend)  # fmt: skip
        return torch.stack([part for part in parts if part is not None])

    def eager(function: Callable[..., tuple[Tensor, ...]]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(torch.stack(function(student, teacher, tokens)), student, upstream)

    live = int(weight.sum())
    case(
        s,
        "losses forward",
        batch,
        dtype,
        f"{share:.0%}",
        2 * live * s.mask * item,
        lambda: forward().detach(),
        {},
    )
    baselines: dict[str, Callable[[], Any]] = {"eager": eager(gpu_baselines.eager_losses)} if share == 1.0 else {}
    if batch == s.batches[0] and share == 1.0 and not s.dry:
        baselines["torch.compile"] = eager(torch.compile(gpu_baselines.eager_losses))
        if importlib.util.find_spec("liger_kernel") is not None:
            from liger_kernel.transformers import LigerJSD

            jsd = LigerJSD(beta=0.5)
            baselines["liger jsd"] = lambda: torch.autograd.grad(
                jsd(student.float().log_softmax(-1), teacher.float().log_softmax(-1)), student
            )
    size = 4 * live * s.mask * item + rows * s.stride * item
    case(s, "losses", batch, dtype, f"{share:.0%}", size,
         lambda: torch.autograd.grad(forward(), student, upstream), baselines)  # fmt: skip


def copy_bandwidth(s: Setting) -> None:
    source = torch.empty((2**24 if s.dry else 2**31), dtype=torch.uint8, device=s.device)
    target = torch.empty_like(source)
    result = measure(s, lambda: target.copy_(source))
    s.copy_rate = float("nan") if isinstance(result, str) else 2 * source.numel() / result[0] / 1e6
    print(f"copy: {s.copy_rate:.0f} GB/s (read + write)", flush=True)


def judge(s: Setting) -> None:
    """The goals, on the rows where they were set."""
    goals = [(what, "of_copy", COPY_GOAL) for what in ("step", "losses forward", "losses")]
    goals += [("step", "x eager fp32", STEP_GOAL), ("losses", "x eager", LOSS_GOAL)]
    for what, column, goal in goals:
        for row in s.rows:
            if row["what"] == what and row.get("masked") == "100%" and column in row:
                name = f"goal: {what} {column} >= {goal:g} (B={row['batch']}, {row['dtype']})"
                note(s, name, None if s.dry else row[column] >= goal, f"{row[column]:.2f}")


def write(s: Setting, folder: pathlib.Path) -> None:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    gpu = torch.cuda.get_device_name(s.device) if s.device.type == "cuda" else None
    about = {"date": time.strftime("%Y-%m-%d"), "measured_on_a_gpu": gpu is not None, "device": gpu or "cpu",
             "cuda": torch.version.cuda, "python": platform.python_version(), "copy_GB/s": s.copy_rate,
             "versions": versions}  # fmt: skip
    settings = {k: str(v) for k, v in asdict(s).items() if k not in ("checks", "rows")}
    folder.mkdir(parents=True, exist_ok=True)
    result = {"about": about, "setting": settings, "checks": s.checks, "rows": s.rows}
    (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    columns = list(dict.fromkeys(key for row in s.rows for key in row))
    with (folder / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(s.rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("benchmarks/results"),
        help="folder for gpu.json, gpu.csv",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seconds", type=float, default=420.0, help="nothing new is started after this long")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU: shows that the program runs")
    options = parser.parse_args(argv)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device here: run this on a GPU, or see the program run with --dry-run", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    shapes = {"length": 4, "vocab_size": 1500, "stride": 1536} if options.dry_run else {
        "length": 1024, "vocab_size": 50258, "stride": 50304}  # fmt: skip
    batches = [2, 3] if options.dry_run else options.batches
    s = Setting(
        device=device,
        dry=options.dry_run,
        deadline=time.monotonic() + options.seconds,
        batches=batches,
        **shapes,
    )
    copy_bandwidth(s)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for vocab_size in (127, 1000, 1024, 1025, s.vocab_size):
            check_tokens(s, vocab_size, dtype)
            check_losses(s, vocab_size, dtype)
    check_graph(s)
    for batch in batches:
        for dtype in (torch.bfloat16, torch.float32):
            for share in (1.0, 0.5):
                for timed in (time_step, time_losses):
                    if s.late():
                        s.rows.append(
                            {
                                "what": timed.__name__,
                                "batch": batch,
                                "dtype": str(dtype)[6:],
                                "note": "out of time",
                            }
                        )
                        continue
                    try:
                        timed(s, batch, dtype, share)
                    except torch.OutOfMemoryError:
                        s.rows.append(
                            {
                                "what": timed.__name__,
                                "batch": batch,
                                "dtype": str(dtype)[6:],
                                "note": "out of memory",
                            }
                        )
                    finally:
                        write(s, options.out)
    judge(s)
    write(s, options.out)
    failed = [check["check"] for check in s.checks if check["passed"] is False]
    unjudged = sum(check["passed"] is None for check in s.checks)
    print(
        f"\n{len(s.checks) - len(failed) - unjudged} passed, {len(failed)} failed, {unjudged} not judged: {options.out}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
