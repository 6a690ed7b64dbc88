"""Losses and gradients of two processes against those of one with the whole batch; called by ``two_ranks.py``."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion
from discrete_distill.distillation.methods import AuxiliaryRatio, CorruptionByParts, TokenCredit
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.rollout import Rollout, TrajectoryStep
from discrete_distill.distributed.collectives import mean_over_processes
from discrete_distill.distributed.parallel import gathered
from discrete_distill.models import Discriminator, DiT, DiTConfig
from discrete_distill.process.masking import Corruption
from discrete_distill.training import ModuleOptimizer, OptimizerConfig, ParallelConfig, step_generator

VOCAB, LENGTH, BATCH, GROUP = 9, 8, 4, 2
ACCELERATOR = Accelerator(cpu=True)
RANK = ACCELERATOR.process_index


class JoinedDraws(MaskedDiffusion):
    """Takes two generators and corrupts either half of a batch with one, as two processes would have."""

    def corrupt(self, x: Tensor, t: Tensor, *, generation_mask: Tensor | None = None, generator: Any = None) -> Tensor:
        masks = (None, None) if generation_mask is None else generation_mask.chunk(2)
        parts = zip(x.chunk(2), t.chunk(2), masks, generator, strict=True)
        return torch.cat(
            [super(JoinedDraws, self).corrupt(a, b, generation_mask=m, generator=g) for a, b, m, g in parts]
        )

    def draw_corruption(
        self, x: Tensor, *, generator: Any = None, generation_mask: Tensor | None = None, **kw: Any
    ) -> Corruption:
        masks = (None, None) if generation_mask is None else generation_mask.chunk(2)
        parts = zip(x.chunk(2), masks, generator, strict=True)
        drawn = [super(JoinedDraws, self).draw_corruption(a, generation_mask=m, generator=g, **kw) for a, m, g in parts]
        return Corruption(*(torch.cat(each) for each in zip(*drawn, strict=True)))

    def draw_parts(
        self,
        x: Tensor,
        count: int,
        *,
        generation_mask: Tensor | None = None,
        generator: Any = None,
        group_size: int = 1,
    ) -> Tensor:
        assert group_size == 1
        masks = (None, None) if generation_mask is None else generation_mask.chunk(2)
        parts = zip(x.chunk(2), masks, generator, strict=True)
        return torch.cat(
            [super(JoinedDraws, self).draw_parts(a, count, generation_mask=m, generator=g) for a, m, g in parts]
        )


def network(step_conditioning: bool = False, dropout: float = 0.0) -> DiT:
    torch.manual_seed(1)
    config = DiTConfig(
        vocab_size=VOCAB,
        max_length=LENGTH,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        cond_size=8,
        dropout=dropout,
        step_conditioning=step_conditioning,
    )
    made = DiT(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double()


def joined(rollouts: list[Rollout]) -> Rollout:
    """One rollout of twice the batch."""
    steps = []
    for index, pair in enumerate(zip(*(rollout.steps for rollout in rollouts), strict=True)):
        first, second = pair
        fields = {name: torch.cat([getattr(s, name) for s in pair]) for name in ("x_t", "x_s", "t", "s")}
        rows = torch.cat([first.rows, second.rows + first.x_t.numel()])
        revealed = torch.cat([first.revealed, second.revealed])
        logits = torch.cat([first.logits_NV, second.logits_NV])
        steps.append(TrajectoryStep(**fields, rows=rows, revealed=revealed, logits_NV=logits, mask_token_id=VOCAB - 1))
        assert index < 2
    times = [rollout.drawn_time for rollout in rollouts]
    drawn_time = (
        None if any(time is None for time in times) else torch.cat([time for time in times if time is not None])
    )
    generation_mask = torch.cat([rollout.generation_mask for rollout in rollouts])
    return replace(rollouts[0], steps=steps, generation_mask=generation_mask, drawn_time=drawn_time)


def losses_of(method: DiDiInstruct, rollout: Rollout, reference: Tensor, generator: Any) -> dict[str, Tensor]:
    if method.auxiliary is not None:
        return {
            "auxiliary": method.auxiliary_loss(rollout, generator=generator).loss,
            "student": method.student_loss(rollout, generator=generator).loss,
        }
    judged = method.discriminator_loss(rollout, reference, generator=generator)
    student = method.student_loss(rollout, log_ratio_output=judged.log_ratio_output, generator=generator)
    return {"discriminator": judged.loss, "student": student.loss}


def prompt(rank: int) -> Tensor:
    """The first process gives three tokens of each sequence, the second none."""
    x = torch.full((BATCH, LENGTH), VOCAB - 1)
    x[:, : 3 - 3 * rank] = 1
    return x


def same_as_one_process(strategy: str, ratio: str) -> dict[str, float]:
    """Greatest differences of losses and gradients from those of one process with the whole batch."""
    changes: dict[str, Any] = {"log_ratio": {"reuse_logits": True}}
    if ratio == "auxiliary":
        told = AuxiliaryRatio(updates=1, warmup=0, step_conditioning=False)
        changes = {"log_ratio": told, "credit": TokenCredit(corruption=CorruptionByParts(num_parts=2))}
    config = DiDiInstructConfig.paper(
        paths={"step_conditioning": True}, advantages={"group_size": GROUP, "scale": "batch"}, **changes
    )
    teacher = network()
    torch.manual_seed(2)
    plain = {"student": network(step_conditioning=True)}
    if ratio == "auxiliary":
        plain["auxiliary"] = network()
    else:
        plain["discriminator"] = Discriminator.from_denoiser(teacher, 1).double()
        plain["discriminator"].logits_of_features = lambda h: plain["discriminator"].head(h).squeeze(-1)
    parallel = ParallelConfig(strategy=strategy)
    module_optimizers = {}
    for name, each in plain.items():
        twin = copy.deepcopy(each)
        if name == "discriminator":
            twin.logits_of_features = lambda h, twin=twin: twin.head(h).squeeze(-1)
        module_optimizers[name] = ModuleOptimizer(twin, OptimizerConfig(), 1, ACCELERATOR, parallel)
    process = MaskedDiffusion(VOCAB - 1)
    data = torch.randint(VOCAB - 1, (2 * BATCH, LENGTH), generator=Generator().manual_seed(3))

    def method_of(networks: dict[str, nn.Module], distribution: MaskedDiffusion) -> DiDiInstruct:
        return DiDiInstruct(
            Networks(
                networks["student"],
                teacher,
                auxiliary=networks.get("auxiliary"),
                discriminator=networks.get("discriminator"),
            ),
            distribution,
            config,
        )

    sharded = method_of(
        {name: module_optimizer.network for name, module_optimizer in module_optimizers.items()}, process
    )
    generator = step_generator(7, 0, rank=RANK)
    rollout = sharded.rollout(x_init=prompt(RANK), generator=generator)
    mine = losses_of(sharded, rollout, data.chunk(2)[RANK], generator)
    for name, loss in mine.items():
        module_optimizers[name].backward(loss)

    whole = method_of(plain, JoinedDraws(VOCAB - 1))
    generators = [step_generator(7, 0, rank=rank) for rank in range(2)]
    rollouts = [whole.rollout(x_init=prompt(rank), generator=g) for rank, g in enumerate(generators)]
    theirs = losses_of(whole, joined(rollouts), data, generators)
    found = {"samples_differ": float(not torch.equal(*(r.sequences for r in rollouts)))}
    for name, loss in theirs.items():
        loss.backward()
        found[f"{name}_loss"] = float((mean_over_processes(mine[name].detach()) - loss.detach()).abs())
        pairs = zip(module_optimizers[name].module.named_parameters(), plain[name].named_parameters(), strict=True)
        gaps, sizes = [0.0], [0.0]
        for (_, ours), (_, one) in pairs:
            if one.grad is not None:
                gaps.append(float((gathered(ours.grad) - one.grad).abs().max()))
                sizes.append(float(one.grad.abs().max()))
        found[f"{name}_gradient"], found[f"{name}_size"] = max(gaps), max(sizes)
    return found
