"""Every kernel against a reference in higher precision, on the GPU it will run on."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import gpu_baselines
from benchmarks.gpu_run import Run
from discrete_distill.kernels import STREAM_TOKEN, STREAM_UNMASK, philox_4x32, sample_rows, token_losses, uniform
from discrete_distill.kernels.philox import torch_philox_4x32

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def sizes(run: Run) -> tuple[int, ...]:
    """Vocabulary sizes around a tile of 1024, and that of the run."""
    return (127, 1000, 1024, 1025, run.vocab_size)


def check_philox(run: Run) -> None:
    """Bit for bit against its definition, on the CPU. The other checks draw with it, so it comes first."""
    rows = torch.arange(1000)
    ours = philox_4x32(2**40 + 7, 3, rows.to(run.device), 5, 9)
    exact = torch_philox_4x32(2**40 + 7, 3, rows, 5, 9)
    wrong = sum(int((mine.cpu() != word).sum()) for mine, word in zip(ours, exact, strict=True))
    run.note("philox", wrong == 0, f"{wrong} of 4000 words differ")


def check_tokens(run: Run, vocab_size: int, dtype: torch.dtype) -> None:
    """Tie-aware oracle in fp64: a token is right when its words lie within 1e-5 of its interval."""
    rows = 64 if run.dry else 2048
    logits = run.make_logits(rows, dtype, vocab_size)[:, :vocab_size]
    number = torch.arange(rows, device=run.device)
    sample = sample_rows(logits, seed=7, positions_R=number, step=1, return_entropy=True, backend=run.backend)
    exact = torch.log_softmax(logits.double(), -1)
    # A kernel that draws nothing returns -1: an index of -1 would end the whole process on a GPU.
    drawn_nothing = int((sample.tokens < 0).sum())
    p, token = exact.exp(), sample.tokens.clamp(0, vocab_size - 1)
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
    reference = sample_rows(logits, seed=7, positions_R=number, step=1, backend="torch").tokens
    flips = int((reference != token).sum())
    run.note(
        f"sample_rows V={vocab_size} {str(dtype)[6:]}",
        worst < 1e-5 and error < 1e-4 and not drawn_nothing,
        f"edge miss {worst:.1e}, error {error:.1e}, flips {flips}/{rows}, nothing drawn in {drawn_nothing}",
    )


def check_losses(run: Run, vocab_size: int, dtype: torch.dtype) -> None:
    """Values and gradients of the token losses against fp64 autograd."""
    rows = 8 if run.dry else 256
    student = run.make_logits(rows, dtype, 1)[:, :vocab_size].requires_grad_()
    teacher = run.make_logits(rows, dtype, 2)[:, :vocab_size]
    tokens = torch.arange(rows, device=run.device) % vocab_size
    upstream = run.make_logits(4, torch.float32, 3)[:, :rows] / 3
    losses = token_losses(student, teacher, tokens, backend=run.backend)
    ours = torch.stack([part for part in losses if part is not None])
    grad = torch.autograd.grad(ours, student, upstream)[0]
    exact_student = student.detach().double().requires_grad_()
    exact = torch.stack(gpu_baselines.eager_losses(exact_student, teacher.double(), tokens))
    exact_grad = torch.autograd.grad(exact, exact_student, upstream.double())[0]
    error = (ours - exact).abs().max().item()
    grad_error = ((grad - exact_grad).abs() / (1 + exact_grad.abs())).max().item()
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    run.note(
        f"token_losses V={vocab_size} {str(dtype)[6:]}",
        error < 5e-5 and grad_error < limit,
        f"value error {error:.1e}, gradient error {grad_error:.1e}",
    )


def fused_step(run: Run, logits: Tensor, x_t: Tensor, seed: Tensor, step: Tensor) -> Tensor:
    """One reverse step: tokens by `sample_rows`, written where a position is unmasked."""
    rows = torch.arange(len(x_t), device=x_t.device)
    drawn = sample_rows(
        logits,
        seed=seed,
        positions_R=rows,
        step=step,
        mask_token_id=run.mask,
        active_R=x_t == run.mask,
        backend=run.backend,
    )
    draw = uniform(seed, row=rows, step=step, stream=STREAM_UNMASK) * (1 - run.alpha_t)
    return torch.where((x_t == run.mask) & (draw < run.alpha_s - run.alpha_t), drawn.tokens[:, 0], x_t)


def check_graph(run: Run) -> None:
    """A captured step replays with another step number and another seed, both device tensors."""
    name = "CUDA graph"
    if run.dry:
        return run.note(name, None, "dry run")
    rows = 512
    logits, x_t = run.make_logits(rows, torch.bfloat16, 1)[:, : run.vocab_size], run.make_tokens(rows, 0.5)
    seed, step = torch.tensor(3, device=run.device), torch.tensor(0, device=run.device)
    for _ in range(2):
        fused_step(run, logits, x_t, seed, step)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused_step(run, logits, x_t, seed, step)
    same = True
    for number in (1, 2):
        step.fill_(number), seed.fill_(number + 10)
        graph.replay()
        same &= torch.equal(out, fused_step(run, logits, x_t, seed, step))
    return run.note(name, same, "replays equal eager steps" if same else "a replay differs from the eager step")
