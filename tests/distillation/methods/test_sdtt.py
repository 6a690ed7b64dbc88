"""SDTT: targets by enumeration, fixed points, the two published slips, rounds, and the protocol of all methods."""

import copy
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from chain_networks import LENGTH, PROCESS, count_calls, seeded, small_dit
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from discrete_distill import SDTT, SDTTConfig, as_denoiser, exact
from discrete_distill.distillation.methods import DistillationMethod
from discrete_distill.distillation.networks import Networks
from discrete_distill.process import MaskedDiffusion

CONFIG = SDTTConfig(teacher_steps=8, factor=2, rounds=2)
TARGETS = ("forward", "reverse", "tv", "mse")
TINY = MaskedDiffusion(2)


class Student(torch.nn.Module):
    """A function as a network."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        return self.answer(x_t, t)


def loss_of(method: SDTT, x: Tensor, **given: Any) -> Tensor:
    """Loss on corrupted data."""
    return method.loss("student", method.rollout(reference=x, **given)).loss


def loss_at(method: SDTT, x_t: Tensor, t: Tensor, s: Tensor, num_tokens: float | None = None, **given: Any) -> Tensor:
    """Loss at given states and times."""
    return method.loss("student", method.targets(x_t, t, s, **given), num_tokens=num_tokens).loss


def tabular_teacher() -> exact.TabularDenoiser:
    """Two words, length 3, random conditionals that belong to no joint distribution."""
    table = exact.TabularDenoiser(3, 2, 2)
    torch.nn.init.normal_(table.logits, generator=seeded(4))
    return table


@pytest.mark.parametrize("target", TARGETS)
def test_a_teacher_that_does_not_look_at_its_words_is_a_fixed_point_at_any_number_of_steps(target) -> None:
    """Independent words: what four steps say, one step says."""
    distribution = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    teacher = Student(exact.MarkovChain(distribution, distribution.repeat(5, 1)).denoiser(5))
    config = SDTTConfig(teacher_steps=8, factor=4, rounds=1, target=target)
    x = torch.randint(5, (16, LENGTH), generator=seeded(0))
    loss = loss_of(SDTT(Networks(teacher, teacher), PROCESS, config), x, generator=seeded(1))
    assert float(loss) == pytest.approx(0.0, abs=1e-10)
    other = loss_of(SDTT(Networks(small_dit(0), teacher), PROCESS, config), x, generator=seeded(1))
    assert float(other.detach()) > 0.01


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_student_that_says_what_the_teacher_said_in_several_steps_has_no_loss(target, factor) -> None:
    teacher = small_dit(1)
    config = SDTTConfig(teacher_steps=4, factor=factor, rounds=1, target=target)
    method = SDTT(Networks(teacher, teacher), PROCESS, config)
    x_t, t, s = torch.full((4, LENGTH), 5), torch.ones(4), torch.zeros(4)
    x_t[:, 0] = 1
    said = method.targets(x_t, t, s, generator=seeded(2))
    answers = torch.zeros(4 * LENGTH, 6).index_copy(0, said.positions, said.log_probs_NV)
    perfect = SDTT(Networks(Student(lambda *_: answers.view(4, LENGTH, 6)), teacher), PROCESS, config)
    assert float(loss_at(perfect, x_t, t, s, generator=seeded(2))) == pytest.approx(0.0, abs=1e-6)
    own = float(loss_at(method, x_t, t, s, generator=seeded(2)))
    assert (own < 1e-6) == (factor == 1)


def mean_targets(method: SDTT, x_t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean target at the masked positions of one state, and its standard errors: ``[N, words]``."""
    t, s = torch.full((count,), 0.8), torch.full((count,), 0.3)
    said = method.targets(x_t.expand(count, -1), t, s, generator=seeded(3))
    words = torch.arange(said.log_probs_NV.shape[1]) != method.process.mask_token_id
    probs = said.log_probs_NV[:, words].exp().double().view(count, -1, int(words.sum()))
    return probs.mean(0), probs.std(0) / count**0.5


def test_mean_targets_are_those_of_all_paths_of_the_teacher() -> None:
    """Every outcome of the first of two steps, enumerated."""
    teacher = tabular_teacher()
    method = SDTT(Networks(teacher, teacher), TINY, replace(CONFIG, rounds=1))
    state = torch.full((1, 3), 2)
    t, half = torch.tensor([0.8]), torch.tensor([0.55])
    reveal = float(TINY.unmask_probability(t, half))
    with torch.no_grad():
        first = TINY.log_probs(teacher(state, t), state).exp()[0, :, :2]
        expected = reveal * first
        for shown in product((False, True), repeat=3):
            for words in product((0, 1), repeat=3):
                weight = 1.0
                x_t = state.clone()
                for i in range(3):
                    weight *= reveal * float(first[i, words[i]]) if shown[i] else (1.0 - reveal) / 2.0
                    x_t[0, i] = words[i] if shown[i] else 2
                second = TINY.log_probs(teacher(x_t, half), x_t).exp()[0, :, :2]
                expected += weight * torch.tensor([not each for each in shown])[:, None] * second
    actual, error = mean_targets(method, state, 20_000)
    assert bool(((actual - expected).abs() < 5.0 * error + 1e-7).all())
    assert float((actual - first).abs().max()) > 20.0 * float(error.max())


def test_a_perfect_teacher_is_a_fixed_point_in_the_mean() -> None:
    """Conditionals of a joint distribution are a martingale along the teacher's path: forward KL teaches nothing
    new."""
    chain, _ = exact.small_chain()
    teacher = Student(chain.denoiser(5))
    method = SDTT(Networks(teacher, teacher), PROCESS, SDTTConfig(teacher_steps=4, factor=4, rounds=1))
    state = torch.tensor([[5, 1, 5, 5, 5, 5]])
    actual, error = mean_targets(method, state, 5_000)
    expected = chain.denoiser(5)(state).exp()[0, [0, 2, 3, 4, 5], :5]
    assert bool(((actual - expected).abs() < 5.0 * error + 1e-6).all())
    assert float(error.max()) > 1e-3


def test_times_are_interpolated_or_as_published() -> None:
    student = small_dit(0)
    t, s = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.75])
    right, published = (
        SDTT(Networks(student, small_dit(1)), PROCESS, replace(CONFIG, published=flag)).teacher_times(t, s)
        for flag in (False, True)
    )
    torch.testing.assert_close(right, torch.tensor([[0.5, 1.0], [0.375, 0.875], [0.25, 0.75]]))
    torch.testing.assert_close(published, torch.tensor([[0.625, 1.0], [0.375, 0.5], [0.125, 0.0]]))


def test_published_total_variation_is_of_log_probabilities() -> None:
    config = SDTTConfig(teacher_steps=1, factor=1, rounds=1, target="tv")
    x_t, t, s = torch.full((2, LENGTH), 5), torch.ones(2), torch.zeros(2)
    logs = [PROCESS.masked_log_probs(network(x_t, t))[..., :5] for network in (small_dit(0), small_dit(1))]
    for published, values in ((False, [each.exp() for each in logs]), (True, logs)):
        method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, replace(config, published=published))
        expected = 0.5 * (values[0] - values[1]).abs().sum(-1).mean()
        torch.testing.assert_close(loss_at(method, x_t, t, s, generator=seeded(0)), expected)


def test_times_of_a_batch_are_steps_of_the_students_grid() -> None:
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG)
    t, s = method.times(8, torch.device("cpu"), seeded(0))
    assert sorted(t.tolist()) == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    torch.testing.assert_close(t - s, torch.full((8,), 0.25))
    method.start_round(1, small_dit(0))
    t, s = method.times(8, torch.device("cpu"), seeded(0))
    assert set(t.tolist()) == {0.5, 1.0}


def test_only_the_student_has_gradients_and_the_teacher_walks_each_state_once() -> None:
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG)
    asked = count_calls(method.teacher)
    loss_of(method, torch.randint(5, (8, LENGTH), generator=seeded(0)), generator=seeded(1)).backward()
    assert len(asked) == 2
    assert all(p.grad is None for p in method.teacher.parameters())
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in method.student.parameters())


def test_given_tokens_and_padding_stay() -> None:
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG)
    x = torch.randint(5, (8, LENGTH), generator=seeded(0))
    real = (torch.arange(LENGTH) < 4).expand(8, -1)
    x_t, t, s = torch.where(torch.arange(LENGTH) == 0, x, 5), torch.ones(8), torch.zeros(8)
    said = method.targets(x_t, t, s, attention_mask=real, generator=seeded(1))
    assert bool((said.x_s[:, 0] == x[:, 0]).all())
    assert bool((said.x_s[:, 4:] == 5).all())
    assert set((said.positions % LENGTH).tolist()) == {1, 2, 3}
    assert bool(loss_of(method, x, attention_mask=real, generator=seeded(1)).isfinite())
    assert float(loss_at(method, x, t, s, generator=seeded(1)).detach()) == 0.0


def test_in_each_round_the_student_becomes_the_teacher_and_a_state_goes_on() -> None:
    assert [CONFIG.student_steps(index) for index in (0, 1)] == [4, 2]
    assert [CONFIG.update_plan().round_of(step, 10) for step in range(10)] == [0] * 5 + [1] * 5
    student = SDTT.make_student(small_dit(1), replace(CONFIG, step_conditioning=True))
    assert student.accepts_step
    method = SDTT(Networks(student, small_dit(1)), PROCESS, CONFIG)
    x = torch.randint(5, (8, LENGTH), generator=seeded(0))
    method.start_round(1, student)
    assert method.teacher is not student
    assert not any(p.requires_grad for p in method.teacher.parameters())
    again = SDTT(Networks(student, small_dit(1)), PROCESS, CONFIG)
    again.load_state_dict(method.state_dict())
    assert again.round == 1
    losses = [float(loss_of(each, x, generator=seeded(1)).detach()) for each in (method, again)]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="there are 2 rounds"):
        method.start_round(2, student)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"teacher_steps": 0}, "teacher_steps|factor|rounds"),
        ({"teacher_steps": 12, "rounds": 3}, "need teacher_steps that 8 divides, got 12"),
        ({"target": "js"}, "target is one of"),
    ],
)
def test_settings_out_of_range_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        SDTTConfig(**choices)


def masked_parts(sizes: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """States with as many sequences as asked, and ever fewer masks; times of their steps."""
    parts = []
    for index, size in enumerate(sizes):
        x_t = torch.randint(5, (size, LENGTH), generator=seeded(index))
        x_t[:, index:] = 5
        parts.append((x_t, torch.ones(size), torch.zeros(size)))
    return parts


def test_the_parts_of_a_batch_add_up_to_the_loss_of_the_whole() -> None:
    """Of one deterministic teacher: a step that reveals all, so that targets do not depend on draws."""
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, SDTTConfig(teacher_steps=1, factor=1, rounds=1))
    parts = masked_parts([4, 2, 3])
    whole = loss_at(method, *(torch.cat(each) for each in zip(*parts, strict=True)), generator=seeded(0))
    masks = float(sum((x_t == 5).sum() for x_t, _, _ in parts))
    added = sum(loss_at(method, *part, generator=seeded(0), num_tokens=masks) for part in parts)
    torch.testing.assert_close(added, whole)


def test_processes_share_one_count_of_masked_positions() -> None:
    """Each of three ranks divides by the mean count, so that the mean of their losses is that of the whole batch."""
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, SDTTConfig(teacher_steps=1, factor=1, rounds=1))
    parts = masked_parts([4, 2, 3])
    whole = loss_at(method, *(torch.cat(each) for each in zip(*parts, strict=True)), generator=seeded(0))
    mean_count = torch.tensor([float((x_t == 5).sum()) for x_t, _, _ in parts]).mean()
    with patch("discrete_distill.distillation.methods.corrupted_data.mean_over_processes", lambda _: mean_count):
        ranks = torch.stack([loss_at(method, *part, generator=seeded(0)) for part in parts])
    torch.testing.assert_close(ranks.mean(), whole)


class Conditioned(torch.nn.Module):
    """Cannot be called without its class label and mask, one for each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_dit(1)

    def forward(self, x_t: Tensor, t: Tensor, *, label: Tensor, attention_mask: Tensor) -> Tensor:
        assert label.shape == x_t.shape[:1]
        assert attention_mask.shape == x_t.shape
        return self.network(x_t, t) + label[:, None, None]


def test_conditions_reach_the_teacher_where_nothing_is_masked_too() -> None:
    method = SDTT(Networks(Conditioned(), Conditioned()), PROCESS, CONFIG)
    x, real = torch.randint(5, (4, LENGTH), generator=seeded(0)), torch.ones(4, LENGTH, dtype=torch.bool)
    given = {"model_kwargs": {"label": torch.arange(4.0)}, "attention_mask": real}
    loss = loss_at(method, x, torch.ones(4), torch.zeros(4), generator=seeded(1), **given)
    assert float(loss.detach()) == 0.0
    assert float(loss_of(method, x, generator=seeded(1), **given).detach()) > 0.0


def test_a_teacher_with_nothing_to_draw_from_is_refused_by_sequence_and_position() -> None:
    def broken(x_t: Tensor, t: Tensor) -> Tensor:
        logits = torch.zeros(*x_t.shape, 6)
        logits[1, 3] = float("nan")
        return logits

    method = SDTT(Networks(small_dit(0), Student(broken)), PROCESS, SDTTConfig(teacher_steps=1, factor=1, rounds=1))
    with pytest.raises(ValueError, match="sequence 1, position 3"):
        method.targets(torch.full((2, LENGTH), 5), torch.ones(2), torch.zeros(2), generator=seeded(0))


def test_masks_that_are_not_movable_are_no_part_of_the_loss() -> None:
    """Padding with the mask's own id, known by ``generation_mask`` alone, to a teacher and a student that read one
    token."""

    class OwnToken(torch.nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(6, 6, generator=seeded(seed)))

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.table[x_t]

    method = SDTT(Networks(OwnToken(0), OwnToken(1)), PROCESS, SDTTConfig(teacher_steps=2, factor=2, rounds=1))
    x_t, t, s = torch.full((4, LENGTH), 5), torch.ones(4), torch.zeros(4)
    expected = loss_at(method, x_t, t, s, generator=seeded(0))
    wide = torch.full((4, 2 * LENGTH), 5)
    generation_mask = (torch.arange(2 * LENGTH) < LENGTH).expand(4, -1)
    said = method.targets(wide, t, s, generation_mask=generation_mask, generator=seeded(0))
    assert bool((said.x_s[:, LENGTH:] == 5).all())
    assert bool((said.positions % (2 * LENGTH) < LENGTH).all())
    torch.testing.assert_close(method.loss("student", said).loss, expected)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_data_are_refused(shape) -> None:
    with pytest.raises(ValueError, match="0"):
        SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG).rollout(
            reference=torch.zeros(shape, dtype=torch.long)
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "pass reference="),
        ({"batch_size": 5, "reference": torch.zeros(4, LENGTH, dtype=torch.long)}, "5"),
        ({"x_init": torch.zeros(4, 2, dtype=torch.long), "reference": torch.zeros(4, 3, dtype=torch.long)}, "4, 2"),
        ({"reference": torch.zeros(4, dtype=torch.long)}, r"\[4\]"),
    ],
)
def test_a_rollout_without_fitting_data_is_refused(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG).rollout(**given)


def test_a_rollout_is_the_corruption_of_data_and_a_prompt_stays() -> None:
    """Positions that ``x_init`` gives keep its token, and have no target."""
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG)
    assert isinstance(method, DistillationMethod)
    x = torch.randint(5, (32, LENGTH), generator=seeded(0))
    x_init = torch.where(torch.arange(LENGTH) < 2, 3, 5).expand(32, -1)
    rollout = method.rollout(32, LENGTH, x_init=x_init, reference=x, generator=seeded(1))
    assert bool((rollout.x_t[:, :2] == 3).all())
    assert torch.equal(rollout.loss_mask, rollout.x_t == 5)
    assert bool(((rollout.x_t == x) | (rollout.x_t == 5))[:, 2:].all())
    assert float(rollout.num_tokens()) == float(rollout.loss_mask.sum())
    assert torch.equal(rollout.positions, rollout.loss_mask.flatten().nonzero()[:, 0])
    assert len(rollout.without_logits().log_probs_NV) == 0
    with pytest.raises(ValueError, match="'auxiliary'"):
        method.loss("auxiliary", rollout)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_plain_loop_makes_the_student_of_a_round_the_teacher_of_the_next(averaged: bool) -> None:
    method = SDTT(Networks(small_dit(0), small_dit(1)), PROCESS, CONFIG)
    average = small_dit(2) if averaged else None
    first, optimizer = method.teacher, torch.optim.SGD(method.student.parameters(), lr=0.1)
    x = torch.randint(5, (8, LENGTH), generator=seeded(0))
    teachers = []
    for step in range(4):
        before = copy.deepcopy(method.student if average is None else average).state_dict()
        method.begin_step(step, 4, average=average)
        teachers.append(method.teacher)
        rollout = method.rollout(reference=x, generator=seeded(step))
        for name in method.update_plan.networks(step):
            method.loss(name, rollout, reference=x).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if step == 2:
            weights = zip(before.values(), method.teacher.state_dict().values(), strict=True)
            assert all(torch.equal(*pair) for pair in weights)
    assert teachers[0] is teachers[1] is first
    assert teachers[2] is teachers[3] is not method.student
    assert method.round == 1


class Shifted(torch.nn.Module):
    """A causal language model, whose logits at a position are of the next token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = torch.nn.Embedding(6, 16), torch.nn.Linear(16, 6)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids).cumsum(1))


def bert(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return as_denoiser(BertForMaskedLM(BertConfig(vocab_size=6, max_position_embeddings=LENGTH, **size)))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (bert(0), bert(1)),
        (
            as_denoiser(Shifted(0), ids="positional", shifted=True),
            as_denoiser(Shifted(1), ids="positional", shifted=True),
        ),
        (bert(2), lambda x_t, t: torch.zeros(*x_t.shape, 6)),
    ],
    ids=["masked language model", "shifted causal model", "function"],
)
def test_any_student_learns_from_any_teacher_in_rounds(student, teacher) -> None:
    method = SDTT(Networks(student, teacher), PROCESS, CONFIG)
    x = torch.randint(5, (16, LENGTH), generator=seeded(0))
    optimizer, history = torch.optim.Adam(student.parameters(), lr=3e-2), []
    for step in range(15):
        method.begin_step(step, 30)
        loss = loss_of(method, x, generator=seeded(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(loss.detach()))
    assert sum(history[-3:]) < 0.5 * sum(history[:3])
    method.begin_step(15, 30)
    assert method.round == 1
    assert float(loss_of(method, x, generator=seeded(0)).detach()) < sum(history[:3])
