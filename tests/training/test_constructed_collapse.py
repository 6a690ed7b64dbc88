"""A student on a language of four modes: at a great rate and few paths it collapses and is stopped; at a small rate and
more paths the same run has no sign."""

import pytest
import torch
from torch import Generator

from benchmarks.laboratory import Laboratory, LaboratoryNetworks, LookUpDenoiser, trained
from discrete_distill import DiDiInstructConfig, exact
from discrete_distill.distillation.methods import Regularization
from discrete_distill.training import CollapseWatch, TrainingCollapsed, mode_collapse

LABORATORY = Laboratory(exact.modal_mixture(4, 3, concentration=0.3), length=4, hidden_size=16)


def distil(updates: int, paths: int, rate: float) -> CollapseWatch:
    """Own-token credit and an auxiliary that is updated once, as a hurried run has it."""
    config = DiDiInstructConfig.recommended(
        credit={"window": 0},
        paths={"num_steps": (2,)},
        advantages={"group_size": paths},
        log_ratio={"updates": 1},
        regularization=Regularization(),
    )
    networks = LaboratoryNetworks(LABORATORY, LookUpDenoiser(LABORATORY), config, seed=0)
    method, g = networks.method(LABORATORY.process, config), Generator().manual_seed(0)
    optimizers = [
        torch.optim.AdamW(trained(network), lr=lr) for network, lr in ((networks.student, rate), (networks.ratio, 2e-3))
    ]
    watch = CollapseWatch(every=2, stop_after=20)
    for step in range(updates):
        rollout = method.rollout(paths, LABORATORY.length, generator=g)
        out = method.student_loss(rollout, generator=g)
        for optimizer, loss in zip(
            optimizers, (out.loss, method.auxiliary_loss(rollout, generator=g).loss), strict=True
        ):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        watch.add(step + 1, out.metrics)
    return watch


def test_a_collapse_stops_the_run() -> None:
    with pytest.raises(TrainingCollapsed, match="one text with variations"):
        distil(200, 24, 2e-2)


def test_the_same_run_at_a_smaller_rate_is_healthy_and_its_metrics_are_exact() -> None:
    watch = distil(60, 192, 5e-4)
    assert not any(mode_collapse(watch.history[:end]) for end in range(len(watch.history) + 1))
    # The first lines are the teacher's, of two steps.
    teacher = LookUpDenoiser(LABORATORY)
    distribution = exact.sampler_distribution(
        teacher, LABORATORY.process, exact.uniform_times(2), 4, 3, time_dependent=False
    )
    first = [line["sample_agreement"] for line in watch.history[:3]]
    assert sum(first) / 3 == pytest.approx(float(exact.agreement(distribution)), abs=0.03)
