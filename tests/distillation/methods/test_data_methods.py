"""What all methods on corrupted data take as their reference, and what they refuse."""

from typing import Any

import pytest
import torch
from chain_networks import LENGTH, PROCESS, seeded, small_dit
from torch import Tensor

from discrete_distill.distillation.methods import (
    AlphaLossConfig,
    CertaintyForcingConfig,
    FeatureMMDConfig,
    MethodConfig,
    SDTTConfig,
)
from discrete_distill.distillation.methods.data_method import DataMethod
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.trajectories import GIVEN, PADDING, Trajectories

MASK = PROCESS.mask_token_id
CONFIGS: list[MethodConfig] = [
    SDTTConfig(teacher_steps=4, rounds=1),
    FeatureMMDConfig(),
    AlphaLossConfig(),
    CertaintyForcingConfig(),
]


def make(config: MethodConfig) -> DataMethod[Any]:
    return config.method_class(Networks(small_dit(0), small_dit(1)), PROCESS, config)


def references() -> Tensor:
    return torch.randint(MASK, (8, LENGTH), generator=seeded(0))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_trajectories_say_what_was_given_and_what_is_padding(config: MethodConfig) -> None:
    method, x_0 = make(config), references()
    x_0[:, -1] = MASK  # under padding
    order = torch.arange(LENGTH).repeat(8, 1)
    order[:, 0], order[:, -1] = GIVEN, PADDING
    rollout = method.rollout(reference=Trajectories(x_0, order), generator=seeded(1))
    assert bool(rollout.loss_mask.any())
    assert not bool(rollout.loss_mask[:, [0, -1]].any())
    assert torch.equal(rollout.attention_mask, (order != PADDING)[:1].expand(len(rollout.x_t), -1))
    assert bool(method.loss("student", rollout, generator=seeded(2)).loss.isfinite())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_what_is_no_clean_sequence_is_refused_by_name(config: MethodConfig) -> None:
    method, x_0 = make(config), references()
    for kind in (torch.int32, torch.float32):
        with pytest.raises(TypeError, match=r"reference must .* int64"):
            method.rollout(reference=x_0.to(kind), generator=seeded(1))
    with pytest.raises(ValueError, match="attention_mask"):
        method.rollout(reference=x_0, attention_mask=torch.ones(LENGTH, dtype=torch.bool), generator=seeded(1))
    masked = x_0.clone()
    masked[3, 2] = MASK
    with pytest.raises(ValueError, match=r"reference must .* masks"):
        method.rollout(reference=masked, generator=seeded(1))
    given = torch.full_like(x_0, MASK)
    given[:, 2] = 1  # In the place of the mask.
    method.rollout(reference=masked, x_init=given, generator=seeded(1))
