"""The plan of updates, and that every method obeys the one interface."""

import pytest
import torch
from chain_networks import LENGTH, seeded, small_method
from torch import Tensor

from discrete_distill import DiDiInstructConfig
from discrete_distill.distillation.methods import (
    DistillationMethod,
    PathRatio,
    Regularization,
    UpdatePlan,
    VocabularyCredit,
    with_changes,
)

SMALL = DiDiInstructConfig.recommended(
    paths={"num_steps": (2,)},
    advantages={"group_size": 4},
    log_ratio={"warmup": 2, "updates": 3},
    regularization=Regularization(),
)
PAPER = DiDiInstructConfig.paper()


def reference() -> Tensor:
    return torch.randint(5, (8, LENGTH), generator=seeded(9))


def test_networks_of_a_step_obey_order_number_and_warm_up() -> None:
    plan = UpdatePlan(order=("discriminator", "student", "auxiliary"), updates={"auxiliary": 2}, warmup=1)
    assert plan.networks(0) == ("discriminator", "auxiliary", "auxiliary")
    assert plan.networks(1) == plan.networks(7) == ("discriminator", "student", "auxiliary", "auxiliary")
    assert [plan.updates_student(step) for step in range(3)] == [False, True, True]


def test_planned_updates_are_those_that_networks_names() -> None:
    plan = UpdatePlan(order=("student", "auxiliary", "discriminator"), updates={"auxiliary": 4}, warmup=3)
    named = [name for step in range(10) for name in plan.networks(step)]
    assert plan.planned_updates(10) == {name: named.count(name) for name in plan.order}
    assert plan.planned_updates(10, every={"discriminator": 4})["discriminator"] == 3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"order": ("auxiliary",)}, "must name the student"),
        ({"order": ("student", "student")}, "no network twice"),
        ({"order": ("student",), "updates": {"auxiliary": 2}}, "auxiliary"),
        ({"order": ("student",), "reads_reference": ("discriminator",)}, "discriminator"),
        ({"order": ("student",), "updates": {"student": 0}}, "updates of student"),
        ({"order": ("student",), "warmup": -1}, "warmup"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        UpdatePlan(**choices)


@pytest.mark.parametrize(
    ("config", "discriminator", "order", "reads"),
    [
        (PAPER, True, ("discriminator", "student"), ("discriminator",)),
        (SMALL, False, ("student", "auxiliary"), ()),
        (SMALL, True, ("student", "auxiliary", "discriminator"), ("discriminator",)),
        (
            with_changes(SMALL, regularization={"data_kl": {"coefficient": 1.0}}),
            False,
            ("student", "auxiliary"),
            ("student",),
        ),
        (with_changes(SMALL, log_ratio=PathRatio(), credit=VocabularyCredit()), False, ("student",), ()),
    ],
)
def test_the_plan_of_a_configuration(config, discriminator, order, reads) -> None:
    plan = config.update_plan(discriminator=discriminator)
    assert (plan.order, plan.reads_reference, plan.warmup) == (order, reads, config.log_ratio.warmup)
    assert plan.updates == ({"auxiliary": 3} if "auxiliary" in order else {})
    assert plan.keeps_logits == isinstance(config.credit, VocabularyCredit)


@pytest.mark.parametrize(
    "config", [PAPER, SMALL, with_changes(SMALL, regularization={"data_kl": {"coefficient": 1.0}})]
)
def test_a_plain_loop_moves_every_network_as_planned(config) -> None:
    """Each loss has gradients for its network alone, and the student stays in the warm-up."""
    method = small_method(config)
    assert isinstance(method, DistillationMethod)
    networks = {name: getattr(method, name) for name in method.update_plan.order}
    moved: dict[str, int] = dict.fromkeys(networks, 0)
    for step in range(3):
        rollout = method.rollout(8, LENGTH, generator=seeded(step))
        for name in method.update_plan.networks(step):
            method.loss(name, rollout, reference=reference(), generator=seeded(step)).loss.backward()
            with_gradient = {
                each
                for each, network in networks.items()
                if any(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())
            }
            assert with_gradient == {name}
            networks[name].zero_grad()
            moved[name] += 1
    assert moved == method.update_plan.planned_updates(3)


def test_losses_by_name_are_those_of_the_methods() -> None:
    method = small_method(with_changes(SMALL, regularization={"data_kl": {"coefficient": 1.0}}))
    method.discriminator.eval()  # in training, each call moves the power iteration of its spectral norm
    rollout, data = method.rollout(8, LENGTH, generator=seeded(0)), reference()
    pairs = {
        "student": method.student_loss(rollout, reference=data, generator=seeded(1)),
        "auxiliary": method.auxiliary_loss(rollout, generator=seeded(1)),
        "discriminator": method.discriminator_loss(rollout, data, generator=seeded(1)),
    }
    for name, out in pairs.items():
        assert torch.equal(method.loss(name, rollout, reference=data, generator=seeded(1)).loss, out.loss)


def test_a_network_that_is_not_trained_and_a_missing_reference_are_named() -> None:
    method = small_method(PAPER)
    rollout = method.rollout(8, LENGTH, generator=seeded(0))
    with pytest.raises(ValueError, match="'auxiliary'"):
        method.loss("auxiliary", rollout)
    with pytest.raises(ValueError, match="pass reference="):
        method.loss("discriminator", rollout)
