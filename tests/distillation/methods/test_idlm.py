"""IDLM: a sequence has one reward from two likelihood bounds, and the auxiliary follows the student."""

from typing import Any

import pytest
import torch
from chain_networks import LENGTH, PROCESS, seeded, small_dit
from torch import Tensor

from discrete_distill import DiDiInstruct, DiDiInstructConfig
from discrete_distill.distillation.methods import (
    IDLM,
    CorruptionByCount,
    DistillationMethod,
    IDLMConfig,
    PathRatio,
    Regularization,
    SequenceCredit,
)
from discrete_distill.distillation.networks import Networks

SMALL: dict[str, Any] = {
    "paths": {"num_steps": (2,)},
    "advantages": {"group_size": 4},
    "log_ratio": {"warmup": 1, "updates": 2},
}
CONFIG = IDLMConfig.recommended(**SMALL)


def method() -> IDLM:
    networks = [small_dit(seed, step_conditioning=told) for seed, told in ((0, True), (1, False), (2, True))]
    return IDLM(Networks(networks[0], networks[1], auxiliary=networks[2]), PROCESS, CONFIG)


def gradient(network: torch.nn.Module, loss: Tensor) -> Tensor:
    network.zero_grad()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in network.parameters() if each.grad is not None])


def test_it_is_credit_to_sequences_by_an_auxiliary_denoiser() -> None:
    """The same gradients as DiDi-Instruct's parts give, told so field by field."""
    made = method()
    config = DiDiInstructConfig.recommended(
        credit=SequenceCredit(corruption=CorruptionByCount(num_draws=2)), regularization=Regularization(), **SMALL
    )
    other = DiDiInstruct(Networks(made.student, made.teacher, auxiliary=made.auxiliary), PROCESS, config)
    found = []
    for each in (made, other):
        rollout = each.rollout(8, LENGTH, generator=seeded(0))
        student = gradient(each.student, each.loss("student", rollout, generator=seeded(1)).loss)
        found.append((student, gradient(each.auxiliary, each.loss("auxiliary", rollout, generator=seeded(1)).loss)))
    for first, second in zip(*found, strict=True):
        assert first.abs().max() > 0
        assert torch.equal(first, second)


def test_the_plan_and_the_networks_by_name() -> None:
    made = method()
    assert isinstance(made, DistillationMethod)
    assert made.update_plan.networks(0) == ("auxiliary", "auxiliary")
    assert made.update_plan.networks(1) == ("student", "auxiliary", "auxiliary")
    assert CONFIG.method_class is IDLM
    with pytest.raises(ValueError, match="auxiliary"):
        IDLM(Networks(made.student, made.teacher), PROCESS, CONFIG)
    with pytest.raises(ValueError, match="'discriminator'"):
        made.loss("discriminator", made.rollout(4, LENGTH, generator=seeded(0)))


def test_a_network_that_would_never_be_told_its_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log_ratio\.step_conditioning=True, but the auxiliary"):
        IDLM(Networks(small_dit(0, step_conditioning=True), small_dit(1), auxiliary=small_dit(2)), PROCESS, CONFIG)
    with pytest.raises(ValueError, match="step_conditioning=True, but the student"):
        IDLM(Networks(small_dit(0), small_dit(1), auxiliary=small_dit(2, step_conditioning=True)), PROCESS, CONFIG)
    assert IDLM.make_auxiliary(small_dit(1), CONFIG).accepts_step
    assert IDLM.make_student(small_dit(1), CONFIG).accepts_step


@pytest.mark.parametrize(
    ("choices", "error", "named"),
    [
        ({"corruption": {"num_draws": 0}}, ValueError, "num_draws.*0"),
        ({"log_ratio": {"updates": 1.5}}, TypeError, "updates.*1.5"),
        ({"log_ratio": {"warmup": -1}}, ValueError, "warmup.*-1"),
        ({"advantages": {"group_size": 0}}, ValueError, "group_size.*0"),
        ({"advantages": {"baseline": "median"}}, ValueError, "median"),
        ({"log_ratio": PathRatio()}, TypeError, "PathRatio"),
    ],
)
def test_settings_out_of_range_are_refused(choices, error, named) -> None:
    with pytest.raises(error, match=named):
        IDLMConfig.recommended(**choices)
