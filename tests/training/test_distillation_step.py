"""One step of a method: what it updates, how often and in which order, whole and in parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, MaskedDiffusion
from discrete_distill.distillation.methods import DataKL, Regularization, UpdatePlan, with_changes
from discrete_distill.distillation.rollout import Rollout
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.training import BatchPart, DistillationStep, ModuleOptimizer, OptimizerConfig

PROCESS, LENGTH = MaskedDiffusion(8), 6
CONFIG = DiDiInstructConfig.recommended(
    advantages={"group_size": 2},
    paths={"num_steps": (2,)},
    log_ratio={"warmup": 1, "updates": 3},
    regularization=Regularization(data_kl=DataKL(coefficient=0.5)),
)


class Scene:
    """A small method with its module_optimizers, and a record of what its losses were asked for."""

    def __init__(self, config: DiDiInstructConfig = CONFIG) -> None:
        torch.manual_seed(0)
        teacher = DiT(DiTConfig(vocab_size=9, max_length=LENGTH, hidden_size=16, num_layers=1, num_heads=2))
        for parameter in teacher.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.accelerator = Accelerator(cpu=True)
        networks = {"student": DiDiInstruct.make_student, "auxiliary": DiDiInstruct.make_auxiliary}
        settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
        self.module_optimizers = {
            name: ModuleOptimizer(make(teacher, config), settings, 10, self.accelerator)
            for name, make in networks.items()
        }
        student, auxiliary = (self.module_optimizers[name].network for name in networks)
        self.method = DiDiInstruct(student, teacher, None, PROCESS, config, auxiliary=auxiliary)
        self.asked: list[str] = []
        self.references = 0
        loss = self.method.loss

        def watched(name: str, *args: Any, **given: Any) -> Any:
            self.asked.append(name)
            return loss(name, *args, **given)

        self.method.loss = watched  # type: ignore[method-assign]

    def draw(self, g: Generator, tokens: Tensor | None) -> Rollout:
        return self.method.rollout(4, LENGTH, generator=g, tokens=tokens)

    def reference(self) -> Tensor:
        self.references += 1
        return torch.randint(8, (4, LENGTH), generator=Generator().manual_seed(5))

    def step(self, index: int, parts: int = 1, **given: Any) -> DistillationStep:
        made = [
            BatchPart(draw=self.draw, reference=self.reference, generator=Generator().manual_seed(10 * index + number))
            for number in range(parts)
        ]
        return DistillationStep(self.method, self.module_optimizers, self.accelerator, made, index, **given)

    def updates(self) -> dict[str, int]:
        return {
            name: module_optimizer.scheduler.last_epoch for name, module_optimizer in self.module_optimizers.items()
        }


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_obeys_the_plan(parts: int) -> None:
    scene = Scene()
    student = [p.detach().clone() for p in scene.module_optimizers["student"].parameters]
    metrics = scene.step(0, parts).run()
    assert scene.asked == ["auxiliary"] * 3 * parts
    assert scene.references == 0
    assert all(torch.equal(*pair) for pair in zip(student, scene.module_optimizers["student"].parameters, strict=True))
    assert {"sample_agreement", "auxiliary_loss", "auxiliary_learning_rate"} <= metrics.keys()
    scene.asked.clear()
    metrics = scene.step(1, parts).run()
    assert scene.asked == ["student"] * parts + ["auxiliary"] * 3 * parts
    assert scene.references == parts
    assert scene.updates() == {"student": 1, "auxiliary": 6}
    assert {"log_ratio", "student_gradient_norm", "auxiliary_loss", "data_divergence"} <= metrics.keys()


def test_a_network_whose_turn_it_is_not_is_left_alone() -> None:
    scene = Scene()
    scene.step(1, skipped=("auxiliary",)).run()
    assert scene.updates() == {"student": 1, "auxiliary": 0}


def test_a_caller_with_its_own_optimiser_of_the_student_has_the_same_step() -> None:
    """`begin`, `student_loss` of every part, and `finish`, as a Trainer calls them."""
    whole, pieces = Scene(), Scene()
    whole.step(1, 2).run()
    step, module_optimizer = pieces.step(1, 2), pieces.module_optimizers["student"]
    step.begin()
    while not step.is_taught:
        module_optimizer.backward(step.student_loss()[1] / 2)
    module_optimizer.update()
    step.finish()
    for name in whole.module_optimizers:
        weights = zip(whole.module_optimizers[name].parameters, pieces.module_optimizers[name].parameters, strict=True)
        assert all(torch.equal(*pair) for pair in weights)


class Rival:
    """Another method, by the protocol alone: two networks, no credits, no library part but the paths."""

    def __init__(self, scene: Scene) -> None:
        self.student = scene.method.student
        self.critic = scene.method.auxiliary
        self.rollout: Callable[..., Rollout] = scene.method.rollout
        self.update_plan = UpdatePlan(order=("auxiliary", "student"), reads_reference=("auxiliary",))

    def loss(self, name: str, rollout: Rollout, *, reference: Tensor | None = None, **given: Any) -> Any:
        from discrete_distill.distillation.methods import StepOutput

        assert (reference is None) == (name == "student")
        if name == "student":
            loss = -rollout.log_prob().sum() / given["num_tokens"]
        else:
            loss = PROCESS.nelbo(self.critic, reference, by="count", generator=given["generator"]).loss
        return StepOutput(loss, {f"{name}_own": loss.detach()})

    def credits(self, *_: Any, **__: Any) -> None:
        return None

    def rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_method_of_ones_own_needs_the_protocol_alone(parts: int) -> None:
    scene = Scene(with_changes(CONFIG, log_ratio={"step_conditioning": False}))
    scene.method = Rival(scene)  # type: ignore[assignment]
    metrics = scene.step(0, parts).run()
    assert scene.updates() == {"student": 1, "auxiliary": 1}
    assert {"student_own", "auxiliary_own"} <= metrics.keys()
