"""The parts of the library that a configuration of DiDi-Instruct describes."""

from __future__ import annotations

from ...process import BetaTime, ConstantWeight, ElboWeight, MaskedDiffusion
from ..divergence import LogRatioEstimator, ScoreFunctionIntegralKL
from ..paths import IntermediateStateMatcher
from ..rewards import LogRatioReward
from .config import DiDiInstructConfig
from .diversity_control import DiversityControl


def make_matcher(process: MaskedDiffusion, config: DiDiInstructConfig) -> IntermediateStateMatcher:
    """Draws the student paths of a configuration.

    Args:
        process: mask and schedule.
        config: of the method.
    """
    return IntermediateStateMatcher(
        process,
        num_steps=config.path_steps if config.score_decomposition else (1,),
        tau_distribution=time_distribution(config) if config.path_times == "random" else None,
        rows="masked" if config.credit == "vocabulary" else "revealed",
        gradient_steps=config.gradient_steps,
        branching=config.branching,
    )


def check_matcher(matcher: IntermediateStateMatcher, config: DiDiInstructConfig) -> None:
    """Refuse a matcher of other paths than the losses of a configuration read.

    Args:
        matcher: of the user's own.
        config: of the method.

    Raises:
        ValueError: names the field that differs.
    """
    if matcher.branching != config.branching:
        raise ValueError(f"branching is {matcher.branching} in the matcher and {config.branching} in the configuration")
    if config.credit == "vocabulary" and (matcher.rows != "masked" or matcher.order != "random"):
        raise ValueError(
            'credit="vocabulary" reads logits of all masked positions of paths of random order; the matcher has '
            f"rows={matcher.rows!r} and order={matcher.order!r}"
        )


def make_diversity_control(config: DiDiInstructConfig) -> DiversityControl | None:
    """What weights the KL in reference states, where a configuration asks for it.

    Args:
        config: of the method.
    """
    if config.diversity_tolerance is None:
        return None
    return DiversityControl(tolerance=config.diversity_tolerance, first=max(1, config.log_ratio_warmup))


def time_distribution(config: DiDiInstructConfig) -> BetaTime:
    """The distribution of random intermediate times, and of the times that samples are corrupted to."""
    return BetaTime(config.tau_low, config.tau_high, a=config.tau_shape, b=config.tau_shape)


def make_estimator(
    process: MaskedDiffusion, config: DiDiInstructConfig, log_ratio: LogRatioEstimator
) -> ScoreFunctionIntegralKL:
    """The estimator that a configuration describes.

    Args:
        process: corrupts the samples.
        config: of the method.
        log_ratio: the reward is its negative.
    """
    omega = ElboWeight(process.schedule, config.omega_low, config.omega_high)
    return ScoreFunctionIntegralKL(
        process,
        log_ratio,
        time_distribution=time_distribution(config),
        weight=omega if config.omega == "elbo" else ConstantWeight(),
        importance_weight=config.importance_weight,
        credit="token" if config.credit == "token" else "sequence",
        window=config.window,
        corruptions=config.corruptions,
        by=config.corruption_by,
        shared_masks=config.branching,
        reward=LogRatioReward(config.reward_clip),
        baseline=config.baseline,
        scale=config.scale,
        advantage_clip=config.advantage_clip,
    )
