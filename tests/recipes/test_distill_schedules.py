"""Learning-rate schedules of a distillation: each is spread over exactly the updates that its network makes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from discrete_distill import MaskedDiffusion
from discrete_distill.distillation.methods import (
    AuxiliaryRatio,
    DiDiInstructConfig,
    DiscriminatorRatio,
    RolloutMMDConfig,
    SDTTConfig,
    with_changes,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.training import LoopConfig, OptimizerConfig, ParallelConfig, step_generator

SHAPE = DiTConfig(vocab_size=6, max_length=4, hidden_size=8, num_layers=1, num_heads=1, cond_size=4)
RATE, WARMUP = 1e-3, 1


def distillation(num_steps: int, log_ratio: AuxiliaryRatio | DiscriminatorRatio, **settings: Any) -> Distillation:
    rate = OptimizerConfig(learning_rate=RATE, warmup_steps=WARMUP, schedule="linear")
    config = DistillConfig(
        method=DiDiInstructConfig.paper(
            advantages={"group_size": 2},
            log_ratio=log_ratio,
        ),
        loop=LoopConfig(num_steps=num_steps),
        batch_size=4,
        student=rate,
        ratio=rate,
        **settings,
    )
    torch.manual_seed(0)
    stream = TokenStream(np.arange(100, dtype=np.uint16) % 5, 4)
    return Distillation(config, DiT(SHAPE), stream, MaskedDiffusion(5), Accelerator(cpu=True))


def recorded_rates(made: Distillation, num_steps: int) -> dict[str, list[float]]:
    """The rate of every update that an optimiser makes."""
    rates: dict[str, list[float]] = {name: [] for name in made.parts()}
    for name, module_optimizer in made.parts().items():
        module_optimizer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, name=name: rates[name].append(optimizer.param_groups[0]["lr"])
        )
    for index in range(num_steps):
        made.step(index, step_generator(0, index))
    return rates


def line(updates: int) -> list[float]:
    """Linear warm-up from zero, then a line that reaches zero where the updates end."""
    return [RATE * (k / WARMUP if k < WARMUP else (updates - k) / (updates - WARMUP)) for k in range(updates)]


@pytest.mark.parametrize(
    ("log_ratio", "settings", "updates"),
    [
        (AuxiliaryRatio(warmup=0, updates=1), {}, (7, 7, 7)),
        (AuxiliaryRatio(warmup=3, updates=2), {}, (4, 14, 7)),
        (AuxiliaryRatio(warmup=2, updates=1), {"discriminator_every": 3}, (5, 7, 3)),
        (AuxiliaryRatio(warmup=0, updates=3), {"discriminator_every": 7, "accumulate": 2}, (7, 21, 1)),
        (DiscriminatorRatio(warmup=6), {"discriminator_every": 2}, (1, None, 4)),
    ],
)
def test_every_schedule_ends_where_the_updates_of_its_network_end(
    log_ratio: AuxiliaryRatio | DiscriminatorRatio, settings: dict[str, Any], updates: tuple[int, int | None, int]
) -> None:
    made = distillation(7, log_ratio, **settings)
    rates = recorded_rates(made, 7)
    expected = dict(zip(("student", "auxiliary", "discriminator"), updates, strict=True))
    for name, module_optimizer in made.parts().items():
        count = expected[name]
        assert count is not None
        assert rates[name] == pytest.approx(line(count))
        assert module_optimizer.scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12) or count <= WARMUP


def test_the_student_does_not_move_in_the_warm_up_of_the_ratio() -> None:
    made = distillation(4, AuxiliaryRatio(warmup=3))
    before = [parameter.detach().clone() for parameter in made.student.module.parameters()]
    for index in range(3):
        made.step(index, step_generator(0, index))
    assert all(torch.equal(*pair) for pair in zip(before, made.student.module.parameters(), strict=True))
    assert made.student.scheduler.last_epoch == 0


@pytest.mark.parametrize("warmup", [5, 6])
def test_a_warm_up_that_leaves_the_student_no_update_is_refused(warmup: int) -> None:
    config = DistillConfig(loop=LoopConfig(num_steps=11))
    with pytest.raises(ValueError, match=str(warmup)):
        replace(
            config,
            loop=LoopConfig(num_steps=5),
            method=with_changes(config.method, log_ratio={"warmup": warmup}),
        )


def test_a_discriminator_that_the_method_does_not_train_is_refused() -> None:
    with pytest.raises(ValueError, match="RolloutMMD trains no discriminator"):
        DistillConfig(method=RolloutMMDConfig())


def test_a_sharded_student_that_would_become_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="7 rounds"):
        DistillConfig(method=SDTTConfig(), discriminator=False, parallel=ParallelConfig(strategy="fsdp"))
    DistillConfig(method=SDTTConfig(rounds=1), discriminator=False, parallel=ParallelConfig(strategy="fsdp"))
