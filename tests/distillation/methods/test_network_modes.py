"""Networks stay as their owner left them; what is read for a reward or as teacher is read in evaluation mode."""

import copy
from typing import Any

import pytest
import torch
from chain_networks import LENGTH, PROCESS, SHAPE, seeded, small_dit
from torch import Tensor, nn

from discrete_distill import SDTT, DiDiInstruct, DiDiInstructConfig, Discriminator, SDTTConfig
from discrete_distill.distillation.methods import (
    CorruptionByParts,
    PathConfig,
    PathKL,
    PathRatio,
    Regularization,
    RolloutMMDConfig,
    VocabularyCredit,
    with_changes,
)
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import evaluation_mode

DROPPING = {**SHAPE, "dropout": 0.5}
TOKENS = DiDiInstructConfig.recommended(
    paths={"num_steps": (2,)},
    advantages={"group_size": 4},
    regularization=Regularization(path_kl=PathKL(coefficient=0.1)),
    credit={"corruption": {"num_draws": 2}},
)
SETTINGS = {
    "token": TOKENS,
    "parts": with_changes(TOKENS, credit={"corruption": CorruptionByParts()}),
    "vocabulary": with_changes(TOKENS, credit=VocabularyCredit()),
    "path": with_changes(TOKENS, credit=VocabularyCredit(), log_ratio=PathRatio()),
    "mmd": RolloutMMDConfig.recommended(paths={"num_steps": (2,)}),
    "paper": DiDiInstructConfig.paper(),
    "log_ratio_output": DiDiInstructConfig.paper(log_ratio={"reuse_logits": True}),
}


def dropping_dit(seed: int, *, step: bool = False) -> DiT:
    """In training mode but for its first block; one parameter is frozen."""
    network = small_dit(seed, dropout=0.5, step_conditioning=step).train()
    network.blocks[0].eval()
    network.sigma_map.requires_grad_(False)
    return network


def dropping_discriminator() -> Discriminator:
    network = Discriminator(DiTConfig(**DROPPING), trainable_blocks=2).train()
    with torch.no_grad():
        for block in network.backbone.blocks:
            block.adaLN_modulation.weight.normal_(std=0.3, generator=seeded(3))
    return network


def state_of(network: nn.Module) -> tuple:
    """Everything of a network that may not change: modes, flags, buffers, parameters."""
    return (
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in network.parameters()],
        {name: value.clone() for name, value in network.state_dict().items()},
    )


def assert_as_it_was(network: nn.Module, before: tuple) -> None:
    modes, flags, tensors = state_of(network)
    assert (modes, flags) == before[:2]
    for name, value in tensors.items():
        assert torch.equal(value, before[2][name]), name


def method_of(config: PathConfig) -> Any:
    kind: Any = config.method_class
    networks = Networks(
        student=dropping_dit(0, step=True),
        teacher=dropping_dit(1),
        discriminator=dropping_discriminator(),
        auxiliary=dropping_dit(2, step=True),
    )
    return kind(networks, PROCESS, config)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_students_loss_is_the_same_number_whenever_it_is_read(name) -> None:
    """With dropout of 0.5 in every network, spectral norms, and all of them in training mode."""
    method = method_of(SETTINGS[name])
    names = ("student", "teacher", "discriminator", "auxiliary")
    networks = [getattr(method, name) for name in names if hasattr(method, name)]
    before = [state_of(network) for network in networks]
    rollout = method.rollout(8, LENGTH, generator=seeded(0))
    reference = torch.randint(5, (8, LENGTH), generator=seeded(9))
    losses = []
    for _ in range(2):
        losses.append(method.loss("student", rollout, reference=reference, generator=seeded(1)).loss.detach())
    assert torch.equal(*losses)
    for network, state in zip(networks, before, strict=True):
        assert_as_it_was(network, state)


def test_a_verdict_that_is_the_reward_is_taken_without_dropout_while_the_norm_follows_its_weights() -> None:
    method = method_of(SETTINGS["log_ratio_output"])
    rollout = method.rollout(8, LENGTH, generator=seeded(0))
    reference = torch.randint(5, (8, LENGTH), generator=seeded(9))
    for _ in range(20):  # Until the power iteration stands still.
        method.discriminator_loss(rollout, reference, generator=seeded(1))
    outs = [method.discriminator_loss(rollout, reference, generator=seeded(1)) for _ in range(2)]
    torch.testing.assert_close(
        outs[0].log_ratio_output.log_ratio.per_sequence, outs[1].log_ratio_output.log_ratio.per_sequence
    )
    before = state_of(method.discriminator)
    with torch.no_grad():
        method.discriminator.head[0].parametrizations.weight.original.add_(torch.randn(16, 16, generator=seeded(4)))
    method.discriminator_loss(rollout, reference, generator=seeded(1))
    after = state_of(method.discriminator)
    assert after[:2] == before[:2]
    name = "head.0.parametrizations.weight.0._u"
    assert not torch.equal(after[2][name], before[2][name])


def test_targets_of_a_teacher_in_training_mode_are_its_answers_in_evaluation_mode() -> None:
    teacher, config = dropping_dit(1), SDTTConfig(teacher_steps=4, factor=2, rounds=1)
    before = state_of(teacher)
    x_t, t, s = torch.full((4, LENGTH), 5), torch.ones(4), torch.full((4,), 0.5)
    given = [SDTT(Networks(small_dit(0), each), PROCESS, config).targets(x_t, t, s, generator=seeded(2)) for each in
             (teacher, copy.deepcopy(teacher).eval())]  # fmt: skip
    assert torch.equal(given[0].log_probs_NV, given[1].log_probs_NV)
    assert torch.equal(given[0].x_s, given[1].x_s)
    assert_as_it_was(teacher, before)


@pytest.mark.parametrize("step", [False, True])
def test_copies_are_trainable_and_in_evaluation_mode_whatever_the_teacher_is_in(step) -> None:
    config = with_changes(TOKENS, paths={"step_conditioning": step}, log_ratio={"step_conditioning": step})
    for teacher in (dropping_dit(1), dropping_dit(1).eval().requires_grad_(False)):
        before = state_of(teacher)
        made = [
            DiDiInstruct.make_student(teacher, config),
            DiDiInstruct.make_auxiliary(teacher, config),
            SDTT.make_student(teacher, SDTTConfig(step_conditioning=step)),
        ]
        for network in made:
            assert not any(module.training for module in network.modules())
            assert all(parameter.requires_grad for parameter in network.parameters())
        assert_as_it_was(teacher, before)


def test_a_teacher_may_share_its_weights_with_the_student() -> None:
    """Tied by the caller: freezing one would freeze the other."""
    student = dropping_dit(0, step=True)
    method = DiDiInstruct(Networks(student, student, auxiliary=dropping_dit(2, step=True)), PROCESS, TOKENS)
    method.student_loss(method.rollout(8, LENGTH, generator=seeded(0)), generator=seeded(1)).loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    SDTT(Networks(student, student), PROCESS)
    assert all(p.requires_grad for p in student.blocks.parameters())


def test_a_plain_function_may_be_the_teacher() -> None:
    def teacher(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x_t.shape, 6) + torch.arange(6.0)

    student, auxiliary = (small_dit(seed, step_conditioning=True) for seed in (0, 2))
    method = DiDiInstruct(Networks(student, teacher, auxiliary=auxiliary), PROCESS, TOKENS)
    assert bool(method.student_loss(method.rollout(8, LENGTH, generator=seeded(0))).loss.isfinite())
    sdtt = SDTT(Networks(small_dit(0), teacher), PROCESS, SDTTConfig(teacher_steps=4, factor=2, rounds=2))
    x = torch.randint(5, (4, LENGTH), generator=seeded(0))
    assert bool(sdtt.loss("student", sdtt.rollout(reference=x, generator=seeded(1))).loss.isfinite())
    again = SDTT(Networks(small_dit(0), teacher), PROCESS, sdtt.config)
    again.load_state_dict(sdtt.state_dict())
    assert again.teacher is teacher


def test_loading_the_first_round_leaves_the_callers_teacher_alone() -> None:
    saved = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS).state_dict()
    teacher = small_dit(2)
    before = state_of(teacher)
    SDTT(Networks(small_dit(0), teacher), PROCESS).load_state_dict(saved)
    assert_as_it_was(teacher, before)


class Wrapped(nn.Module):
    """Hides what it wraps, as a bare DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Tensor) -> Tensor:
        return self.module(x_t, t, **model_kwargs)


@pytest.mark.parametrize(
    ("student", "auxiliary", "role"),
    [
        (small_dit(0), small_dit(2, step_conditioning=True), "student"),
        (small_dit(0, step_conditioning=True), small_dit(2), "auxiliary"),
        (Wrapped(small_dit(0, step_conditioning=True)), small_dit(2, step_conditioning=True), "student"),
        (small_dit(0, step_conditioning=True), Wrapped(small_dit(2, step_conditioning=True)), "auxiliary"),
    ],
)
def test_a_network_that_would_never_be_told_its_step_is_refused(student, auxiliary, role) -> None:
    with pytest.raises(ValueError, match=role):
        DiDiInstruct(Networks(student, small_dit(1), auxiliary=auxiliary), PROCESS, TOKENS)
    told = with_changes(
        TOKENS, paths={"step_conditioning": role != "student"}, log_ratio={"step_conditioning": role != "auxiliary"}
    )
    DiDiInstruct(Networks(student, small_dit(1), auxiliary=auxiliary), PROCESS, told)
    if role == "student":
        with pytest.raises(ValueError, match=role):
            SDTT(Networks(student, small_dit(1)), PROCESS, SDTTConfig(step_conditioning=True))


def test_evaluation_mode_goes_back_after_an_error_and_passes_functions_over() -> None:
    network = dropping_dit(0)
    before = state_of(network)
    inside = []

    def broken() -> None:
        with evaluation_mode(network, None, torch.relu):
            inside.extend(module.training for module in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert inside
    assert not any(inside)
    assert_as_it_was(network, before)
