"""Distillation on a language of which everything is known: networks, one training loop, and exact scores in nats.

The teacher is the perfect denoiser, so that whatever a student gets wrong is the method's doing. Student, auxiliary and
discriminator are small networks; the first two add to the teacher's log-probabilities and start as the teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from discrete_distill import exact
from discrete_distill.distillation.methods import (
    AuxiliaryRatio,
    DiDiInstruct,
    DiDiInstructConfig,
    with_changes,
)
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import Discriminator, DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion

LEAST_LOG_PROBABILITY = -30.0  # of words that the chain forbids: a student may move them.
Language = exact.MarkovChain | exact.MarkovMixture


@dataclass(frozen=True)
class Laboratory:
    """A language, its length, and the width of its networks.

    Args:
        chain: the language: a chain, or a mixture of chains.
        length: L.
        hidden_size: width of the networks, which have two blocks.
    """

    chain: Language
    length: int
    hidden_size: int = 48

    @property
    def process(self) -> MaskedDiffusion:
        """Mask after the words, log-linear schedule."""
        return MaskedDiffusion(self.chain.vocab_size)

    def shape(self, *, step_conditioning: bool) -> DiTConfig:
        """Of a small network."""
        return DiTConfig(
            vocab_size=self.chain.vocab_size + 1,
            max_length=self.length,
            hidden_size=self.hidden_size,
            num_layers=2,
            num_heads=2,
            cond_size=16,
            dropout=0.0,
            step_conditioning=step_conditioning,
        )


class LookUpDenoiser(nn.Module):
    """The perfect denoiser with the answers to all ``(K + 1)^L`` states kept."""

    table: Tensor

    def __init__(self, laboratory: Laboratory) -> None:
        super().__init__()
        size, length = laboratory.chain.vocab_size + 1, laboratory.length
        states = exact.enumerate_sequences(size, length)
        denoiser = laboratory.chain.denoiser(size - 1, impossible="uniform")
        answers = [denoiser(chunk, torch.ones(len(chunk))).float() for chunk in states.split(4096)]
        answers_NLV = torch.cat(answers).clamp_min(LEAST_LOG_PROBABILITY)
        self.register_buffer("table", answers_NLV.view([size] * length + [length, size]))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.table[tuple(x_t.unbind(1))]


class PerfectDenoiser(nn.Module):
    """The chain's own denoiser, for languages too large for `LookUpDenoiser`."""

    def __init__(self, laboratory: Laboratory) -> None:
        super().__init__()
        self.denoiser = laboratory.chain.denoiser(laboratory.chain.vocab_size, impossible="uniform")

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(x_t, t).float().clamp_min(LEAST_LOG_PROBABILITY)


def make_dit(laboratory: Laboratory, *, step_conditioning: bool) -> nn.Module:
    """A small `DiT` whose first logits are zero."""
    return DiT(laboratory.shape(step_conditioning=step_conditioning))


class Correction(nn.Module):
    """The teacher's log-probabilities and a small network that starts at zero."""

    def __init__(
        self,
        laboratory: Laboratory,
        teacher: nn.Module,
        *,
        seed: int,
        step_conditioning: bool,
        network: Callable[..., nn.Module] = make_dit,
    ) -> None:
        super().__init__()
        self.base = teacher
        torch.manual_seed(seed)
        self.more = network(laboratory, step_conditioning=step_conditioning)

    @property
    def accepts_step(self) -> bool:
        return bool(getattr(self.more, "accepts_step", False))

    def forward(self, x_t: Tensor, t: Tensor, *, s: Tensor | None = None) -> Tensor:
        step = {"s": s} if self.accepts_step else {}
        return self.base(x_t, t) + self.more(x_t, t, **step)


@dataclass(kw_only=True, frozen=True)
class Training:
    """How long and how fast.

    Args:
        updates: of the student.
        batch: paths in an update, shared out equally over the numbers of steps.
        rate: maximum learning rate of the student; it falls to zero along a cosine.
        ratio_rate: of auxiliary or discriminator.
        average: decay of the moving average that is the result.
        warmup: updates before the student moves.
        discriminator_updates: of a discriminator for each one of the student; an auxiliary has its own number.
    """

    updates: int = 200
    batch: int = 768
    rate: float = 1e-3
    ratio_rate: float = 2e-3
    average: float = 0.98
    warmup: int = 20
    discriminator_updates: int = 1


class LaboratoryNetworks:
    """Everything that is trained, from one seed."""

    def __init__(
        self,
        laboratory: Laboratory,
        teacher: nn.Module,
        config: DiDiInstructConfig,
        seed: int,
        network: Callable[..., nn.Module] = make_dit,
        auxiliary: Callable[..., nn.Module] = make_dit,
    ) -> None:
        self.teacher = teacher
        conditioned = config.paths.step_conditioning
        self.student = Correction(laboratory, teacher, seed=seed, step_conditioning=conditioned, network=network)
        self.ratio: nn.Module
        if isinstance(config.log_ratio, AuxiliaryRatio):
            self.ratio = Correction(
                laboratory,
                teacher,
                seed=1000 + seed,
                step_conditioning=config.log_ratio.step_conditioning,
                network=auxiliary,
            )
        else:
            torch.manual_seed(1000 + seed)
            self.ratio = Discriminator(laboratory.shape(step_conditioning=False), trainable_blocks=2)

    def method(self, process: MaskedDiffusion, config: DiDiInstructConfig) -> DiDiInstruct:
        """The networks under one configuration."""
        auxiliary, discriminator = (
            (self.ratio, None) if isinstance(config.log_ratio, AuxiliaryRatio) else (None, self.ratio)
        )
        return DiDiInstruct(
            Networks(self.student, self.teacher, auxiliary=auxiliary, discriminator=discriminator), process, config
        )


def distil(
    laboratory: Laboratory,
    teacher: nn.Module,
    config: DiDiInstructConfig,
    training: Training,
    *,
    seed: int,
    network: Callable[..., nn.Module] = make_dit,
    auxiliary: Callable[..., nn.Module] = make_dit,
) -> nn.Module:
    """Train a student for all of ``config.paths.num_steps`` at once; each update has paths of every number of steps.
    Student and auxiliary each add a network to the teacher's log-probabilities, whose first logits are zero.

    Returns:
        The moving average of the student.
    """
    networks = LaboratoryNetworks(laboratory, teacher, config, seed, network, auxiliary)
    share = training.batch // len(config.paths.num_steps)
    group = config.advantages.group_size if share % config.advantages.group_size == 0 else share
    methods = [
        networks.method(
            laboratory.process, with_changes(config, paths={"num_steps": (steps,)}, advantages={"group_size": group})
        )
        for steps in config.paths.num_steps
    ]
    g = Generator().manual_seed(seed)
    plan = config.update_plan()
    updates = {"auxiliary": 1, "discriminator": training.discriminator_updates, **plan.updates}
    ratio_updates = {name: updates[name] for name in plan.order if name != "student"}
    plan = replace(plan, warmup=training.warmup, updates=ratio_updates)
    ratio_optimizer = torch.optim.AdamW(trained(networks.ratio), lr=training.ratio_rate, betas=(0.9, 0.99))
    student = StudentOptimizer(networks.student, training)
    for index in range(training.updates + training.warmup):
        rollouts = [method.rollout(share, laboratory.length, generator=g) for method in methods]
        for name in plan.networks(index):
            for method, rollout in zip(methods, rollouts, strict=True):
                reads = name in plan.reads_reference
                reference = laboratory.chain.sample(share, laboratory.length, generator=g) if reads else None
                loss = method.loss(name, rollout, reference=reference, generator=g).loss
                (loss / len(methods)).backward()
            if name == "student":
                student.step(index - training.warmup)
            else:
                ratio_optimizer.step()
                ratio_optimizer.zero_grad()
    return student.averaged


class StudentOptimizer:
    """AdamW along a cosine, and a moving average."""

    def __init__(self, student: nn.Module, training: Training) -> None:
        self.training = training
        self.student = student
        self.averaged = copy.deepcopy(student)
        self.optimizer = torch.optim.AdamW(trained(student), lr=training.rate)

    def step(self, index: int) -> None:
        """One update; the first ten rise to the full rate."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * index / self.training.updates))
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate * cosine * min(1.0, (index + 1) / 10)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.training.average, (index + 1) / (index + 10))
        with torch.no_grad():
            for mean, value in zip(trained(self.averaged), trained(self.student), strict=True):
                mean.lerp_(value, 1.0 - decay)


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Its parameters that may move."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class Score(NamedTuple):
    """Of a sampler's distribution: distances from the chain's and entropy, nats; probabilities that two of its samples
    have the same word at a position, and that they are one sequence."""

    steps: int
    reverse_kl: float
    forward_kl: float
    total_variation: float
    entropy: float
    agreement: float
    collision: float


def score_distribution(distribution: Tensor, target: Tensor, steps: int) -> Score:
    """Exact."""
    measures: Sequence[Callable[[], Tensor]] = (
        lambda: exact.kl(distribution, target),
        lambda: exact.kl(target, distribution),
        lambda: exact.total_variation(distribution, target),
        lambda: exact.entropy(distribution),
        lambda: exact.agreement(distribution),
        lambda: exact.collision(distribution),
    )
    return Score(steps, *(float(measure()) for measure in measures))


@torch.no_grad()
def score(laboratory: Laboratory, denoiser: nn.Module, steps: Sequence[int]) -> list[Score]:
    """Scores of ancestral sampling on even grids."""
    target = laboratory.chain.distribution(laboratory.length)
    return [
        score_distribution(distribution_of(laboratory, denoiser, num_steps), target, num_steps) for num_steps in steps
    ]


def distribution_of(laboratory: Laboratory, denoiser: nn.Module, num_steps: int) -> Tensor:
    """Differentiable in the denoiser's parameters."""
    return exact.sampler_distribution(
        denoiser,
        laboratory.process,
        exact.uniform_times(num_steps),
        laboratory.length,
        laboratory.chain.vocab_size,
        time_dependent=getattr(denoiser, "accepts_step", False),
    )
