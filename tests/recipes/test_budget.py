"""Budgets: evaluations are counted as they are made, and a plan pays for so many steps."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Generator, nn

from discrete_distill import SDTT, Discriminator, MaskedDiffusion, SDTTConfig
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.budget import (
    EvaluationCounter,
    counted_step,
    list_of_blocks,
    plan_steps,
    total_evaluations,
)
from discrete_distill.training import ModuleOptimizer, OptimizerConfig

SHAPE = DiTConfig(vocab_size=6, max_length=8, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)


def test_a_pass_counts_one_a_sequence_and_a_backward_pass_two_more() -> None:
    network, counter = DiT(SHAPE), EvaluationCounter(8)
    counter.watch([network])
    counter.watch([network])
    x, t = torch.zeros(5, 8, dtype=torch.long), torch.ones(5)
    with torch.no_grad():
        network(x, t)
    assert counter.take() == 5
    network.features(x[:2], t[:2])
    assert counter.take() == 6
    assert counter.take() == 0
    frozen = DiT(SHAPE).requires_grad_(False)
    counter.watch([frozen])
    frozen(x, t)
    assert counter.take() == 5
    assert list_of_blocks(Discriminator(SHAPE, 1)) is not None
    with pytest.raises(TypeError, match="Linear has no list of blocks"):
        list_of_blocks(nn.Linear(1, 1))


def test_a_pass_over_noisy_and_clean_tokens_counts_two_a_sequence() -> None:
    """It reads twice the tokens; a pass over one block of the cache counts as one."""
    network, counter = DiT(replace(SHAPE, block_length=4)), EvaluationCounter(8)
    counter.watch([network])
    x = torch.zeros(5, 8, dtype=torch.long)
    with torch.no_grad():
        network.paired_features(x, x)
        assert counter.take() == 10
        cache = network.prefill(x[:, :4])
        assert counter.take() == 5
        network.denoise(x[:, 4:], torch.ones(5), cache)
        assert counter.take() == 5
    network.paired_features(x, x)
    assert counter.take() == 30


class SDTTTrainee:
    """A pass of the teacher, and one of the student with its backward pass: four evaluations a sequence."""

    def __init__(self, num_steps: int) -> None:
        self.student = ModuleOptimizer(DiT(SHAPE), OptimizerConfig(), num_steps, Accelerator(cpu=True))
        self.discriminator = None
        self.method = SDTT(
            Networks(self.student.module, DiT(SHAPE)),
            MaskedDiffusion(5),
            SDTTConfig(teacher_steps=2, factor=1, rounds=1),
        )

    def saved(self):
        return {"student": self.student}

    def networks(self):
        return [self.student.module, self.method.teacher]

    def step(self, index: int, generator: Generator) -> dict[str, float]:
        x = torch.zeros(4, 8, dtype=torch.long)
        x_t, t, s = torch.full_like(x, 5), torch.ones(4), torch.full((4,), 0.5)
        out = self.method.loss("student", self.method.targets(x_t, t, s, generator=generator))
        return self.student.step(out.loss)


def test_a_budget_of_evaluations_pays_for_as_many_steps_and_is_kept(tmp_path) -> None:
    file = tmp_path / "run" / "plan.json"
    plan = plan_steps(SDTTTrainee, "network_evaluations", 165.0, file, length=8, seed=0)
    assert plan.evaluations_per_step == 16.0
    assert plan.num_steps == 10
    assert plan_steps(SDTTTrainee, "network_evaluations", 165.0, file, length=8, seed=0) == plan
    # Another budget is another plan, and a file that is no plan is none.
    assert plan_steps(SDTTTrainee, "network_evaluations", 330.0, file, length=8, seed=0).num_steps == 20
    file.write_text("[]")
    assert plan_steps(SDTTTrainee, "network_evaluations", 165.0, file, length=8, seed=0).num_steps == 10
    timed = plan_steps(SDTTTrainee, "seconds", 5.0, tmp_path / "other.json", length=8, seed=0)
    assert timed.num_steps == int(5.0 / timed.seconds_per_step)
    with pytest.raises(ValueError, match="a budget of 3 network_evaluations is less than one training step"):
        plan_steps(SDTTTrainee, "network_evaluations", 3.0, tmp_path / "none.json", length=8, seed=0)


def test_evaluations_are_in_the_metrics_and_add_up(seeded) -> None:
    step = counted_step(SDTTTrainee(2), EvaluationCounter(8))
    assert [step(index, seeded(index))["network_evaluations"] for index in (0, 1)] == [16.0, 16.0]
    history = [{"step": 5.0, "network_evaluations": 20.0}, {"step": 7.0, "network_evaluations": 30.0}]
    assert total_evaluations(history) == 160.0
