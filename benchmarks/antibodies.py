"""Mode collapse on a published model: `python -m benchmarks.antibodies --teacher FOLDER --judge FOLDER`.

The teacher is AntiBERTy (arXiv 2112.07782; 26M parameters, a masked language model of antibodies), the judge IgLM
(13M, causal; Shuai et al. 2023). Their wheels hold the weights, under licences of their own:

    pip download --no-deps antiberty==0.1.3 iglm==0.1.0 && unzip '*.whl'
    # --teacher antiberty/trained_models/AntiBERTy_md_smooth --judge iglm/trained_models/IgLM

A student of 118 residues is trained with few paths an update, and measured between updates: perplexity under the judge,
entropy of a sample, agreement of two samples. With `--updates 0` only the teacher is measured. With `--data-kl` the
student pays the forward KL in states of 96 samples that the teacher drew in 64 steps, and with `--tolerance` as much of
it as the diversity of its paths needs. Appends JSON lines to `antibodies.jsonl` in `--output`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Generator, Tensor, nn

from discrete_distill import AncestralSampler, MaskedDiffusion
from discrete_distill.distillation.methods import DataKL, DiDiInstruct, DiDiInstructConfig, PathKL, Regularization
from discrete_distill.distillation.networks import Networks
from discrete_distill.evaluation import CausalLMJudge, sample_agreement, sample_entropy

START, END, MASK, FIRST_RESIDUE = 2, 3, 4, 5
HEAVY_CHAIN, HUMAN = 31, 26
RESIDUES, CHUNK = 118, 32
REFERENCE_STEPS, REFERENCE_CHUNKS = 64, 3
PROCESS = MaskedDiffusion(MASK)
NUM_STEPS = (4, 8)


class ResidueDenoiser(nn.Module):
    """A masked language model that answers with residues alone."""

    forbidden: Tensor

    def __init__(self, model: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("forbidden", torch.arange(vocab_size) < FIRST_RESIDUE)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.model(input_ids=x_t).logits.float().masked_fill(self.forbidden, -1e4)


def load(kind: Any, folder: Path) -> nn.Module:
    """A network of transformers from a folder of an old version; heads for other tasks are left out."""
    config = kind.config_class.from_pretrained(folder)
    model = kind(config)
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    own = model.state_dict()
    model.load_state_dict({**own, **{name: value for name, value in weights.items() if name in own}})
    missing = [name for name in own if name not in weights and "lm_head" not in name]
    if missing:
        raise ValueError(f"{folder} lacks weights of {missing[:3]}; give the folder of the model that is named above")
    return model.eval()


def blank(count: int) -> Tensor:
    """Start, masks, end."""
    sequences = torch.full((count, RESIDUES + 2), MASK)
    sequences[:, 0], sequences[:, -1] = START, END
    return sequences


def sample(denoiser: nn.Module, count: int, steps: int, temperature: float, seed: int) -> Tensor:
    """Residues, int64 ``[count, RESIDUES]``."""
    sampler = AncestralSampler(PROCESS, num_steps=steps, temperature=temperature)
    generator = Generator().manual_seed(seed)
    drawn = [sampler(denoiser, x_init=blank(CHUNK), generator=generator).sequences for _ in range(count // CHUNK)]
    return torch.cat(drawn)[:, 1:-1]


def measure(
    denoiser: nn.Module, judge: CausalLMJudge, count: int, *, steps: int, temperature: float = 1.0
) -> dict[str, Any]:
    """Perplexity of residues with the error over samples, entropy of a sample, agreement of two samples."""
    residues = sample(denoiser, count, steps, temperature, seed=0)
    prefix = torch.tensor([[HEAVY_CHAIN, HUMAN]]).expand(len(residues), 2)
    nats, _ = judge.token_nats(torch.cat([prefix, residues], 1))
    nats_B = nats[:, 2:].mean(1)
    agreement = sample_agreement(residues)
    return {
        "steps": steps,
        "temperature": temperature,
        "perplexity": round(float(nats_B.mean().exp()), 3),
        "relative_error": round(float(nats_B.std()) / math.sqrt(len(nats_B)), 4),
        "entropy": round(float(sample_entropy(residues).mean()), 3),
        "agreement": round(agreement.value, 4),
        "agreement_error": round(agreement.standard_error or 0.0, 4),
    }


def fit_auxiliary(auxiliary: nn.Module, teacher: nn.Module, options: argparse.Namespace, generator: Generator) -> None:
    """To samples of the teacher at the numbers of steps of the paths, before the student moves."""
    if not options.auxiliary_updates:
        return
    samplers = [AncestralSampler(PROCESS, num_steps=steps) for steps in NUM_STEPS]
    pool = torch.cat([each(teacher, x_init=blank(CHUNK), generator=generator).sequences for each in samplers * 2])
    generated = blank(options.paths) == MASK
    optimizer = torch.optim.AdamW(auxiliary.parameters(), lr=options.auxiliary_rate, weight_decay=0.0)
    for update in range(options.auxiliary_updates):
        for group in optimizer.param_groups:
            group["lr"] = options.auxiliary_rate * min(1.0, (update + 1) / 10)
        chosen = pool[torch.randperm(len(pool), generator=generator)[: options.paths]]
        bound = PROCESS.nelbo(auxiliary, chosen, by="count", generation_mask=generated, generator=generator)
        step(optimizer, auxiliary, bound.nats.sum() / generated.sum())


def step(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    """One update with clipped gradients."""
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def reference_pool(teacher: nn.Module) -> Tensor:
    """Samples of the teacher at many steps, in the place of data."""
    sampler = AncestralSampler(PROCESS, num_steps=REFERENCE_STEPS)
    seeds = range(100, 100 + REFERENCE_CHUNKS)
    drawn = [sampler(teacher, x_init=blank(CHUNK), generator=Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat([each.sequences for each in drawn])


def train(teacher: nn.Module, judge: CausalLMJudge, options: argparse.Namespace, write: Any) -> None:
    """Distil, measuring the moving average of the student every so often."""
    config = DiDiInstructConfig.recommended(
        paths={"num_steps": NUM_STEPS, "gradient_steps": 2, "step_conditioning": False},
        advantages={"group_size": options.paths},
        credit={"window": 0, "corruption": {"num_draws": 2}},
        regularization=Regularization(
            path_kl=PathKL(coefficient=options.anchor, kind="forward"),
            data_kl=DataKL(coefficient=options.data_kl, diversity_tolerance=options.tolerance),
        ),
        log_ratio={"updates": options.log_ratio_updates, "warmup": options.warmup, "step_conditioning": False},
    )
    student, auxiliary, average = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(3))
    method = DiDiInstruct(Networks(student, teacher, auxiliary=auxiliary), PROCESS, config)
    generator = Generator().manual_seed(options.seed)
    fit_auxiliary(auxiliary, teacher, options, generator)
    student_optimizer = torch.optim.AdamW(student.parameters(), lr=options.rate, weight_decay=0.0)
    auxiliary_optimizer = torch.optim.AdamW(auxiliary.parameters(), lr=options.auxiliary_rate, weight_decay=0.0)
    pool = reference_pool(teacher) if options.data_kl else None
    for _ in range(config.log_ratio.warmup if options.tolerance else 0):
        method.rollout(x_init=blank(options.paths), generator=generator)
    for update in range(options.updates):
        rollout = method.rollout(x_init=blank(options.paths), generator=generator)
        reference = None
        if pool is not None:
            reference = pool[torch.randperm(len(pool), generator=generator)[: options.paths]]
        cosine = 0.5 * (1.0 + math.cos(math.pi * update / options.updates)) * min(1.0, (update + 1) / 5)
        for group in student_optimizer.param_groups:
            group["lr"] = options.rate * cosine
        out = method.student_loss(rollout, reference=reference, generator=generator)
        step(student_optimizer, student, out.loss)
        decay = min(0.9, (update + 1) / (update + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), student.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        for _ in range(config.log_ratio.updates):
            step(auxiliary_optimizer, auxiliary, method.auxiliary_loss(rollout, generator=generator).loss)
        metrics = {name: round(float(value), 4) for name, value in out.metrics.items()}
        write(
            {
                "update": update + 1,
                "path": {"agreement": round(sample_agreement(rollout.sequences[:, 1:-1]).value, 4)} | metrics,
            }
        )
        if (update + 1) % options.every == 0:
            write({"update": update + 1, **measure(average, judge, options.samples, steps=8)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the teacher, train, measure the student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--auxiliary-rate", type=float, default=2e-4)
    parser.add_argument("--auxiliary-updates", type=int, default=60, help="before the student moves")
    parser.add_argument("--log-ratio-updates", type=int, default=3)
    parser.add_argument("--anchor", type=float, default=0.0, help="coefficient of the forward KL along the path")
    parser.add_argument("--data-kl", type=float, default=0.0, help="coefficient of the forward KL in states of data")
    parser.add_argument("--tolerance", type=float, help="diversity_tolerance")
    parser.add_argument("--warmup", type=int, default=24, help="rollouts of the undistilled student, with --tolerance")
    parser.add_argument("--samples", type=int, default=64, help="of each measurement; a multiple of 32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    teacher_model = load(transformers.BertForMaskedLM, options.teacher)
    teacher = ResidueDenoiser(teacher_model, teacher_model.config.vocab_size)
    judge_model = load(transformers.GPT2LMHeadModel, options.judge)
    judge = CausalLMJudge(judge_model, name="IgLM", eos_token_id=None, context=RESIDUES + 2)
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    def write(line: dict[str, Any]) -> None:
        line = {"seconds": round(time.perf_counter() - started), **line}
        print(json.dumps(line), flush=True)
        with (options.output / "antibodies.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    settings = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, fp32"
    write({"settings": settings, "versions": versions, "machine": machine})
    if not options.updates:
        for steps, temperature in ((4, 1.0), (8, 1.0), (8, 0.9), (8, 0.8), (32, 1.0)):
            write({"teacher": True, **measure(teacher, judge, options.samples, steps=steps, temperature=temperature)})
        return
    train(teacher, judge, options, write)


if __name__ == "__main__":
    main()
