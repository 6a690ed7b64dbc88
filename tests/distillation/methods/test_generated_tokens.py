"""Losses are averages over generated tokens: prompts, padding and parts of a batch change no gradient."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from chain_networks import seeded
from torch import Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig
from discrete_distill.distillation.methods import (
    CorruptionByCount,
    CorruptionByParts,
    PathKL,
    Regularization,
    SequenceCredit,
    VocabularyCredit,
    with_changes,
)
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.rollout import Rollout, TrajectoryStep
from discrete_distill.process import BetaTime, MaskedDiffusion, StratifiedTime

GENERATED, MASK, BATCH, GROUP = 16, 5, 8, 4
PROCESS = MaskedDiffusion(MASK)
CONFIG = DiDiInstructConfig.recommended(
    paths={"num_steps": (3,), "step_conditioning": False},
    advantages={"group_size": GROUP, "scale": "none"},
    credit={"corruption": {"num_draws": 2}},
    log_ratio={"step_conditioning": False},
    regularization=Regularization(path_kl=PathKL(coefficient=0.1), entropy_coefficient=0.05),
)
PAPER = DiDiInstructConfig.paper(credit={"corruption": {"time_weight": None}}, advantages={"scale": "group"})
SETTINGS = {
    "token": CONFIG,
    "own token": with_changes(CONFIG, credit={"window": 0}),
    "batch scale": with_changes(CONFIG, advantages={"scale": "batch", "baseline": "batch"}),
    "sequence": with_changes(
        CONFIG, credit=SequenceCredit(corruption=CorruptionByCount(num_draws=2)), advantages={"scale": "group"}
    ),
    "parts": with_changes(CONFIG, credit={"corruption": CorruptionByParts()}),
    "branching": with_changes(CONFIG, paths={"branching": True}),
    "vocabulary": with_changes(CONFIG, credit=VocabularyCredit()),
    "discriminator": PAPER,
}


class OwnToken(nn.Module):
    """Logits ``[B, L, V]`` (or ``[B, L]``) of every position from its own token and the time alone: no other position
    matters, given ones least of all."""

    def __init__(self, seed: int, width: int | None = None) -> None:
        super().__init__()
        shape = (6, 6 if width is None else width)
        self.table = nn.Parameter(torch.randn(shape, generator=seeded(seed), dtype=torch.float64))
        self.slope = nn.Parameter(torch.randn(shape[1], generator=seeded(seed + 1), dtype=torch.float64))
        self.flat = width == 1

    def forward(self, x_t: Tensor, t: Tensor, **_: Tensor) -> Tensor:
        logits = self.table[x_t] + t.double()[:, None, None] * self.slope
        return logits[..., 0] if self.flat else logits


class DictatedDraws:
    """While it is on, every random number belongs to a generated token, wherever that stands, and to its sequence in
    the whole batch."""

    def __init__(self, generation_mask: Tensor, sequences: slice) -> None:
        numbers = torch.rand(BATCH, GENERATED, generator=seeded(7))[sequences]

        def rand(*size, **_):
            shape = size[0] if isinstance(size[0], tuple) else size
            if len(shape) == 1:
                return torch.full(shape, 0.3)
            copies = len(generation_mask) // shape[0]  # a group may share them
            return torch.zeros(shape).masked_scatter(generation_mask[::copies], numbers[::copies])

        levels = ((torch.arange(BATCH) + 0.5) / BATCH)[sequences]
        levels = torch.cat((levels, torch.full((len(generation_mask) - len(levels),), 0.5)))
        self.patches = [
            patch.object(torch, "rand", rand),
            patch.object(torch, "randint", lambda _, shape, **__: torch.ones(shape, dtype=torch.long)),
            patch.object(StratifiedTime, "_unit_sample", lambda *_: levels),
            patch.object(BetaTime, "_unit_sample", lambda _, n, *__: torch.full((n,), 0.4)),
        ]

    def __enter__(self) -> None:
        for each in self.patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self.patches:
            each.stop()


def placed(rollout: Rollout, before: int, after: int, sequences: slice = slice(None), full: int = 0) -> Rollout:
    """Some sequences of a rollout behind a prompt and before padding, and ``full`` more that are all prompt."""
    length = before + GENERATED + after
    chosen = torch.arange(BATCH)[sequences]

    def wide(x: Tensor) -> Tensor:
        made = torch.ones(len(chosen) + full, length, dtype=torch.long)
        made[: len(chosen), before : before + GENERATED] = x[chosen]
        return made

    def long(t: Tensor) -> Tensor:
        return torch.cat((t[chosen], t[:1].expand(full)))

    steps = []
    for step in rollout.steps:
        sequence, position = step.rows // GENERATED, step.rows % GENERATED
        kept = torch.isin(sequence, chosen)
        rows = (sequence[kept] - chosen[0]) * length + before + position[kept]
        steps.append(
            TrajectoryStep(
                wide(step.x_t),
                wide(step.x_s),
                long(step.t),
                long(step.s),
                rows,
                step.revealed[kept],
                step.logits_NV[kept],
                MASK,
            )
        )
    generation_mask = torch.zeros(len(chosen) + full, length, dtype=torch.bool)
    generation_mask[: len(chosen), before : before + GENERATED] = True
    drawn_time = None if rollout.drawn_time is None else long(rollout.drawn_time)
    real = torch.ones_like(generation_mask)
    real[:, before + GENERATED :] = False
    return replace(rollout, steps=steps, generation_mask=generation_mask, drawn_time=drawn_time, attention_mask=real)


class Subject:
    """A method, one rollout of its student, and the gradients of its losses."""

    def __init__(self, name: str) -> None:
        self.config = SETTINGS[name]
        self.networks = {
            name: OwnToken(seed, width)
            for name, seed, width in (("student", 0, None), ("auxiliary", 4, None), ("discriminator", 6, 1))
        }
        self.method = DiDiInstruct(
            Networks(
                self.networks["student"],
                OwnToken(2),
                auxiliary=self.networks["auxiliary"],
                discriminator=self.networks["discriminator"],
            ),
            PROCESS,
            self.config,
        )
        self.rollout = self.method.rollout(BATCH, GENERATED, generator=seeded(1))
        self.reference = torch.randint(MASK, (BATCH, GENERATED), generator=seeded(2))

    def gradients(self, rollout: Rollout, sequences: slice = slice(None), **more: float) -> dict[str, Tensor]:
        reference = rollout.sequences.masked_scatter(rollout.generation_mask, self.reference[sequences])
        with DictatedDraws(rollout.generation_mask, sequences):
            losses = {
                "student": self.method.student_loss(rollout, **more),
                "discriminator": self.method.discriminator_loss(rollout, reference, **more),
                "auxiliary": self.method.auxiliary_loss(rollout, **more),
            }
        return {
            name: torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(out.loss, list(self.networks[name].parameters()), retain_graph=True)
                ]
            )
            for name, out in losses.items()
        }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) > 1e-4, name
        torch.testing.assert_close(
            actual[name], gradient, rtol=2e-4, atol=1e-7, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize(("before", "after"), [(16, 0), (48, 0), (0, 7), (16, 7)])
@pytest.mark.parametrize("name", SETTINGS)
def test_prompts_and_padding_change_no_gradient(name, before, after) -> None:
    subject = Subject(name)
    expected = subject.gradients(placed(subject.rollout, 0, 0))
    assert_same(subject.gradients(placed(subject.rollout, before, after)), expected)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "batch scale"])
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(name) -> None:
    """One group behind a prompt, the other before padding, losses added up."""
    subject = Subject(name)
    expected = subject.gradients(placed(subject.rollout, 0, 0))
    tokens = float(BATCH * GENERATED)
    first, second = slice(0, GROUP), slice(GROUP, BATCH)
    parts = [
        subject.gradients(placed(subject.rollout, 5, 0, first), first, num_tokens=tokens),
        subject.gradients(placed(subject.rollout, 0, 3, second), second, num_tokens=tokens),
    ]
    assert_same({key: parts[0][key] + parts[1][key] for key in expected}, expected)


@pytest.mark.parametrize("name", ["token", "sequence", "batch scale", "vocabulary"])
def test_sequences_that_are_all_prompt_change_no_gradient(name) -> None:
    """A group of them beside the others: in no baseline, no scale and no mean."""
    subject = Subject(name)
    expected = subject.gradients(placed(subject.rollout, 3, 0))
    assert_same(subject.gradients(placed(subject.rollout, 3, 0, full=GROUP)), expected)


def test_the_discriminator_is_trained_at_all_generated_tokens_of_a_state_without_a_mask() -> None:
    """Close to the data nothing is masked, in student and reference alike."""
    subject = Subject("discriminator")
    rollout = placed(subject.rollout, 3, 2)
    rollout = replace(rollout, drawn_time=torch.zeros(BATCH))
    reference = rollout.sequences.masked_scatter(rollout.generation_mask, subject.reference)
    out = subject.method.discriminator_loss(rollout, reference, generator=seeded(0))
    network = subject.networks["discriminator"]
    logits = [network(x, torch.zeros(BATCH))[rollout.generation_mask] for x in (rollout.sequences, reference)]
    smooth = 0.5 * subject.config.log_ratio.label_smoothing
    labels = [torch.full_like(logits[0], label) for label in (1.0 - smooth, smooth)]
    expected = sum(
        0.5 * nn.functional.binary_cross_entropy_with_logits(*pair) for pair in zip(logits, labels, strict=True)
    )
    torch.testing.assert_close(out.loss, expected)
    assert float(torch.autograd.grad(out.loss, network.table)[0].abs().max()) > 1e-3


@pytest.mark.parametrize("given", ["all", "a group"])
@pytest.mark.parametrize("name", SETTINGS)
def test_prompts_that_leave_nothing_to_generate_have_finite_losses(name, given) -> None:
    subject = Subject(name)
    x_init = torch.full((BATCH, GENERATED), MASK)
    x_init[: BATCH if given == "all" else GROUP] = 1
    rollout = subject.method.rollout(x_init=x_init, generator=seeded(0))
    reference = torch.where(rollout.generation_mask, subject.reference, x_init)
    outs = {
        "student": subject.method.student_loss(rollout, generator=seeded(1)),
        "discriminator": subject.method.discriminator_loss(rollout, reference, generator=seeded(1)),
        "auxiliary": subject.method.auxiliary_loss(rollout, generator=seeded(1)),
    }
    for network, out in outs.items():
        gradients = torch.autograd.grad(out.loss, list(subject.networks[network].parameters()), allow_unused=True)
        assert all(bool(value.isfinite()) for value in (out.loss, *out.metrics.values()))
        assert all(each is None or bool(each.isfinite().all()) for each in gradients)
        if given == "all":
            assert float(out.loss.detach()) == 0.0
            assert all(each is None or not bool(each.any()) for each in gradients)


@pytest.mark.parametrize(
    ("name", "value", "clip", "refused"),
    [
        ("vocabulary", "-inf", "inf", True),
        ("vocabulary", "-inf", "8", False),
        ("vocabulary", "nan", "8", True),
        ("token", "nan", "inf", True),
        ("token", "nan", "8", True),
        ("sequence", "nan", "inf", True),
    ],
)
def test_a_teacher_that_gives_no_finite_reward_is_refused_by_sequence(name, value, clip, refused) -> None:
    """It rules out a word that the student draws, which a clip of rewards allows, or answers with NaN."""
    subject, teacher = Subject(name), OwnToken(2)
    with torch.no_grad():
        teacher.table[MASK, 3] = float(value)
    config = with_changes(subject.config, reward_clip=float(clip), regularization={"path_kl": {"coefficient": 0.0}})
    method = DiDiInstruct(
        Networks(subject.networks["student"], teacher, auxiliary=subject.networks["auxiliary"]), PROCESS, config
    )
    call = partial(method.student_loss, subject.rollout, generator=seeded(1))
    if not refused:
        assert bool(call().loss.isfinite())
        return
    with pytest.raises(ValueError, match=r"(sequence|sample) 0"):
        call()
