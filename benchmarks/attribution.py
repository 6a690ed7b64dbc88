"""Where distance is lost: one student network driven by ever less exact knowledge, on a distribution small enough that
the student's own distribution is computed at every update.

    exact gradient       of KL(student || chain), through the enumerated distribution
    exact ratio          the score-function estimate from samples, with the true log q(x) / p(x)
    auxiliary            the same with a denoiser fitted to the student's samples
    discriminator        the same with a classifier of samples against the chain's
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, nn

from benchmarks.laboratory import (
    Laboratory,
    LaboratoryNetworks,
    LookUpDenoiser,
    Score,
    StudentOptimizer,
    Training,
    distil,
    distribution_of,
    score,
)
from discrete_distill import exact
from discrete_distill.distillation.divergence import ExactLogRatio, ScoreFunctionIntegralKL
from discrete_distill.distillation.methods import (
    AuxiliaryRatio,
    CorruptionByCount,
    CorruptionByTime,
    DiDiInstructConfig,
    DiscriminatorRatio,
    Regularization,
    SequenceCredit,
)
from discrete_distill.process import BetaTime

LENGTH = 5
STEPS = (2, 4)
SOURCES = ("exact gradient", "exact ratio", "auxiliary", "discriminator")


def small_laboratory() -> Laboratory:
    """Three words, length 5: 243 sequences, 1024 states."""
    return Laboratory(exact.random_chain(3, Generator().manual_seed(1), 0.4), LENGTH)


def configuration(source: str, steps: int, batch: int) -> DiDiInstructConfig:
    """Raw advantages over the whole batch for all; unbiased but for the ratio."""
    by_time = CorruptionByTime(num_draws=4, time_distribution=BetaTime(0.02, 0.98, a=1.0, b=1.0), time_weight=None)
    by_discriminator = source == "discriminator"
    return DiDiInstructConfig.recommended(
        paths={"num_steps": (steps,)},
        advantages={"group_size": batch, "scale": "none", "clip": None},
        log_ratio=DiscriminatorRatio(label_smoothing=0.0) if by_discriminator else AuxiliaryRatio(),
        credit=SequenceCredit(corruption=by_time if by_discriminator else CorruptionByCount()),
        regularization=Regularization(),
    )


def distil_from(source: str, steps: int, training: Training, seed: int) -> Score:
    """Train one student of ``steps`` steps from one source and score its distribution."""
    laboratory = small_laboratory()
    teacher = LookUpDenoiser(laboratory)
    config = configuration(source, steps, training.batch)
    if source in ("auxiliary", "discriminator"):
        student = distil(laboratory, teacher, config, replace(training, discriminator_updates=4), seed=seed)
    else:
        student = _distil_exactly(laboratory, teacher, config, training, seed, sampled=source == "exact ratio")
    return score(laboratory, student, (steps,))[0]


def _distil_exactly(
    laboratory: Laboratory,
    teacher: nn.Module,
    config: DiDiInstructConfig,
    training: Training,
    seed: int,
    *,
    sampled: bool,
) -> nn.Module:
    target = laboratory.chain.distribution(LENGTH)
    networks = LaboratoryNetworks(laboratory, teacher, config, seed)
    method = networks.method(laboratory.process, config)
    optimizer = StudentOptimizer(networks.student, training)
    at_data = torch.zeros(training.batch)
    g = Generator().manual_seed(seed)
    for index in range(training.updates):
        if sampled:
            with torch.no_grad():
                distribution = distribution_of(laboratory, networks.student, config.paths.num_steps[0])
                ratio = exact.log_ratio(distribution, target, laboratory.process).float()
            log_ratio = ExactLogRatio(laboratory.process, lambda x_t, t, ratio=ratio: exact.look_up(ratio, x_t))
            estimator = ScoreFunctionIntegralKL(laboratory.process, log_ratio)
            rollout = method.rollout(training.batch, LENGTH, generator=g)
            estimator(
                rollout.sequences, rollout.token_log_probs(), group_size=training.batch, t=at_data, generator=g
            ).loss.backward()
        else:
            exact.kl(distribution_of(laboratory, networks.student, config.paths.num_steps[0]), target).backward()
        optimizer.step(index)
    return optimizer.averaged
