"""One step of a method: what it updates, how often and in which order, whole and in parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from discrete_distill import SDTT, DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, SDTTConfig
from discrete_distill.distillation.methods import DataKL, Regularization, UpdatePlan, with_changes
from discrete_distill.distillation.networks import Networks
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
        self.method = DiDiInstruct(Networks(student, teacher, auxiliary=auxiliary), PROCESS, config)
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
        return DistillationStep(
            self.method, self.module_optimizers, self.accelerator, made, index, num_steps=10, **given
        )

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


def test_references_are_drawn_only_where_their_weight_is_not_zero() -> None:
    """An undistilled student agrees no more than itself: the weight is 0 until it collapses."""
    scene = Scene(with_changes(CONFIG, regularization={"data_kl": {"diversity_tolerance": 0.05}}))
    for index in range(2):
        metrics = scene.step(index).run()
    weight = scene.method.diversity.weight
    assert scene.references == (weight > 0.0)
    assert ("data_divergence" in metrics) == (weight > 0.0)
    for weight in (0.0, 1.0):
        before = scene.references
        scene.method.diversity.add = lambda *_, weight=weight, **__: setattr(scene.method.diversity, "_weight", weight)
        metrics = scene.step(5).run()
        assert scene.references - before == weight
        assert float(metrics["data_kl_weight"]) == 0.5 * weight


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


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_of_sdtt_has_the_gradient_of_the_whole_batch_and_starts_rounds(parts: int) -> None:
    """Against losses of the same rollouts, added up by hand; the teacher of the second round is the average."""
    torch.manual_seed(0)
    shape = DiTConfig(vocab_size=9, max_length=LENGTH, hidden_size=16, num_layers=1, num_heads=2)
    student, teacher = DiT(shape).eval(), DiT(shape).eval()
    for network in (student, teacher):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    accelerator = Accelerator(cpu=True)
    settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, ema_decay=0.5, gradient_clip=0.0)
    optimizer = ModuleOptimizer(student, settings, 10, accelerator)
    method = SDTT(Networks(student, teacher), PROCESS, SDTTConfig(teacher_steps=4, rounds=2))

    def data(number: int) -> Tensor:
        return torch.randint(8, (4, LENGTH), generator=Generator().manual_seed(number))

    def made(index: int) -> list[BatchPart]:
        return [
            BatchPart(
                draw=lambda g, tokens, number=number: method.rollout(
                    reference=data(number), generator=g, tokens=tokens
                ),
                reference=lambda: pytest.fail("the loss reads no reference"),
                generator=Generator().manual_seed(10 * index + number),
            )
            for number in range(parts)
        ]

    rollouts = [method.rollout(reference=data(n), generator=Generator().manual_seed(n)) for n in range(parts)]
    total = sum(float(rollout.loss_mask.sum()) for rollout in rollouts)
    loss = sum(method.loss("student", rollout, num_tokens=total).loss for rollout in rollouts)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(student.parameters()))]).norm()
    metrics = DistillationStep(method, {"student": optimizer}, accelerator, made(0), 0, num_steps=2).run()
    assert metrics["student_gradient_norm"] == pytest.approx(float(expected), rel=1e-4)
    assert method.teacher is teacher
    average = {name: value.clone() for name, value in optimizer.averaged.state_dict().items()}
    metrics = DistillationStep(method, {"student": optimizer}, accelerator, made(1), 1, num_steps=2).run()
    assert float(metrics["round"]) == 1.0
    assert all(torch.equal(value, average[name]) for name, value in method.teacher.state_dict().items())


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

    def begin_step(self, step: int, num_steps: int, *, average: nn.Module | None = None) -> None:
        pass

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
