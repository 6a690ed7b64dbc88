"""A method on paths of its user's own: an end of sequence in every loss, forbidden ids in every distribution; and
what is not computed twice."""

import copy
from dataclasses import replace

import pytest
import torch

import discrete_distill.distillation.rollout as rollout_module
from discrete_distill import DiDiInstruct, DiDiInstructConfig, IntermediateStateMatcher
from discrete_distill.distillation.methods import (
    CorruptionByCount,
    PathKL,
    Regularization,
    SequenceCredit,
    VocabularyCredit,
    with_changes,
)
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.rollout import Rollout
from tests.distillation.methods.chain_networks import LENGTH, PROCESS, seeded, small_method

END = 0
CONFIG = DiDiInstructConfig.recommended(
    advantages={"group_size": 4}, paths={"num_steps": (2,)}, log_ratio={"warmup": 1}
)


def with_matcher(matcher: IntermediateStateMatcher, config: DiDiInstructConfig = CONFIG) -> DiDiInstruct:
    made = small_method(config)
    networks = Networks(made.student, made.teacher, auxiliary=made.auxiliary, discriminator=made.discriminator)
    return DiDiInstruct(networks, PROCESS, config, matcher=matcher)


def with_other_tail(rollout: Rollout) -> Rollout:
    """The same samples with other tokens behind their ends."""
    behind = rollout.generation_mask & ~rollout.loss_mask
    assert bool(behind.any())
    last = copy.copy(rollout.steps[-1])
    last.x_s = torch.where(behind, (last.x_s + 1) % 5, last.x_s)
    return replace(rollout, steps=[*rollout.steps[:-1], last])


@pytest.mark.parametrize("name", ["discriminator", "auxiliary"])
def test_tokens_behind_an_end_reach_no_loss_of_a_ratio_network_and_no_agreement(name: str) -> None:
    made = with_matcher(IntermediateStateMatcher(PROCESS, num_steps=(2,), end_token_id=END))
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    other = with_other_tail(rollout)
    reference = torch.randint(5, (8, LENGTH), generator=seeded(2))
    reference_behind = rollout.judged(reference)[1].logical_not()
    other_reference = torch.where(reference_behind, (reference + 1) % 5, reference)
    losses = []
    for path, x in ((rollout, reference), (other, other_reference)):
        given = {"reference": x} if name == "discriminator" else {}
        loss = getattr(made, f"{name}_loss")
        arguments = (path, x) if given else (path,)
        losses.append(loss(*arguments, generator=seeded(4)).loss)
    torch.testing.assert_close(*losses)
    assert rollout.agreement == other.agreement
    assert float(rollout.num_tokens()) == float(other.num_tokens()) < rollout.generation_mask.sum()


def test_the_students_loss_has_no_gradient_from_behind_an_end() -> None:
    made = with_matcher(IntermediateStateMatcher(PROCESS, num_steps=(2,), end_token_id=END))
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    reference = torch.randint(5, (8, LENGTH), generator=seeded(2))
    loss = made.student_loss(rollout, reference=reference, generator=seeded(4)).loss
    counted = rollout.loss_mask.flatten()
    for step in rollout.steps:
        (gradient,) = torch.autograd.grad(loss, step.logits_NV, retain_graph=True)
        behind = ~counted[step.rows]
        assert float(gradient[behind].abs().sum()) == 0.0
        assert float(gradient[~behind].abs().sum()) > 0.0


@pytest.mark.parametrize("kl_kind", ["jeffreys", "js"])
def test_student_and_teacher_are_compared_without_forbidden_ids_at_one_temperature(kl_kind: str) -> None:
    """With equal weights the divergence is 0, however much the teacher would give to forbidden ids."""
    process = replace(PROCESS, forbidden_token_ids=[1])
    config = DiDiInstructConfig.recommended(
        advantages={"group_size": 4},
        paths={"num_steps": (2,), "step_conditioning": False},
        regularization=Regularization(path_kl=PathKL(coefficient=0.1, kind=kl_kind)),
    )
    made = with_matcher(IntermediateStateMatcher(process, num_steps=(2,), temperature=0.7), config)
    made.student.load_state_dict(made.teacher.state_dict())
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    assert not bool((rollout.sequences == 1).any())
    metrics = made.student_loss(rollout, generator=seeded(4)).metrics
    assert float(metrics["teacher_divergence"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("credit", [SequenceCredit(corruption=CorruptionByCount()), VocabularyCredit()])
def test_every_credit_trains_without_forbidden_ids(credit: SequenceCredit | VocabularyCredit) -> None:
    process = replace(PROCESS, forbidden_token_ids=[1, 2])
    config = with_changes(CONFIG, credit=credit)
    rows = "masked" if isinstance(credit, VocabularyCredit) else "revealed"
    made = with_matcher(IntermediateStateMatcher(process, num_steps=(2,), rows=rows), config)
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    reference = torch.randint(3, (8, LENGTH), generator=seeded(2)).where(torch.rand(8, LENGTH) < 0, 3)
    made.auxiliary_loss(rollout, generator=seeded(5)).loss.backward()
    made.student_loss(rollout, reference=reference, generator=seeded(4)).loss.backward()
    head = made.student.output_layer.linear.weight.grad
    assert bool(head.isfinite().all())
    assert float(head[[1, 2]].abs().max()) == 0.0 < float(head[[0, 3, 4]].abs().max())


def test_the_agreement_of_a_rollout_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    inner = rollout_module.sample_agreement
    monkeypatch.setattr(
        rollout_module, "sample_agreement", lambda *args, **given: calls.append(1) or inner(*args, **given)
    )
    made = small_method(CONFIG)
    rollout = made.rollout(8, LENGTH, generator=seeded(3))
    reference = torch.randint(5, (8, LENGTH), generator=seeded(2))
    metrics = made.student_loss(rollout, reference=reference, generator=seeded(4)).metrics
    assert metrics["sample_agreement"] == made.rollout_metrics(rollout)["sample_agreement"]
    assert len(calls) == 1


def test_a_matcher_of_other_paths_than_the_credit_reads_is_refused() -> None:
    for matcher, config, value in (
        (IntermediateStateMatcher(PROCESS, branching=True), CONFIG, "branching"),
        (IntermediateStateMatcher(PROCESS), with_changes(CONFIG, credit=VocabularyCredit()), "revealed"),
    ):
        with pytest.raises(ValueError, match=value):
            with_matcher(matcher, config)
