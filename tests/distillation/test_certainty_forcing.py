"""Certainty forcing: which states it makes, its loss by its definition, and the bias that it has by design."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discrete_distill import AncestralSampler, BlockwiseSampler, ConfidenceSampler, MaskedDiffusion
from discrete_distill.distillation.methods import (
    BlockHalves,
    CertaintyForcing,
    CertaintyForcingConfig,
    TrajectoryStates,
)
from discrete_distill.distillation.networks import Networks
from discrete_distill.distillation.trajectories import GIVEN, PADDING, Trajectories, draw_trajectories
from discrete_distill.samplers import Sampler

V, MASK, LENGTH = 5, 4, 11
PROCESS = MaskedDiffusion(MASK)


class Table(nn.Module):
    """Logits by token and position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, LENGTH, V, generator=torch.Generator().manual_seed(0)))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.weight[x_t, torch.arange(LENGTH)]


def make(corruption: Any = None, **options: float) -> CertaintyForcing:
    student = Table()
    config = CertaintyForcingConfig(corruption=corruption or BlockHalves(block_length=3), **options)
    return CertaintyForcing(Networks(student, student), PROCESS, config)


def references(batch: int) -> Tensor:
    return torch.randint(MASK, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


def test_one_block_is_learned_in_two_complementary_halves() -> None:
    """Ragged prompts: blocks are counted from the end of each; the blocks before are given, those behind are masked."""
    batch = 400
    x_0 = references(batch)
    lengths = torch.arange(batch) % 4
    x_init = torch.where(torch.arange(LENGTH) < lengths[:, None], x_0, MASK)
    rollout = make().rollout(x_init=x_init, reference=x_0, generator=torch.Generator().manual_seed(2))
    assert rollout.x_t.shape == (2 * batch, LENGTH)
    first, second = rollout.loss_mask.chunk(2)
    assert not bool((first & second).any())
    seen = set()
    for row in range(batch):
        prompt = int(lengths[row])
        block = (first | second)[row].nonzero().squeeze(1)
        start, stop = int(block[0]), int(block[-1]) + 1
        number, place = divmod(start - prompt, 3)
        assert place == 0
        assert stop == min(start + 3, LENGTH)
        assert len(block) == stop - start
        seen.add((prompt, number))
        for half in (row, row + batch):
            assert bool((rollout.x_t[half, stop:] == MASK).all())
            assert torch.equal(rollout.x_t[half, :start], x_0[row, :start])
            hidden = rollout.loss_mask[half]
            assert bool((rollout.x_t[half, start:stop] == MASK)[hidden[start:stop]].all())
    assert seen == {(p, n) for p in range(4) for n in range(-(-(LENGTH - p) // 3))}


def test_the_loss_is_that_of_the_paper() -> None:
    method = make(entropy_weight=2.0, entropy_temperature=0.5)
    rollout = method.rollout(reference=references(6), generator=torch.Generator().manual_seed(3))
    where = rollout.loss_mask
    logits = method.student(rollout.x_t, rollout.t)[..., :MASK][where]  # type: ignore[operator]
    labels = rollout.x_0[where]
    cross_entropy = F.cross_entropy(logits, labels)
    p = (logits / 0.5).softmax(-1)
    right = logits.argmax(-1) == labels
    entropy = -(p * p.log()).sum(-1)[right].mean()
    out = method.student_loss(rollout)
    torch.testing.assert_close(out.loss, cross_entropy + 2.0 * entropy)
    out.loss.backward()
    mine = method.student.weight.grad.clone()  # type: ignore[union-attr, operator]
    method.student.zero_grad()
    (cross_entropy + 2.0 * entropy).backward()
    torch.testing.assert_close(mine, method.student.weight.grad)
    half = method.student_loss(rollout, num_tokens=2.0 * where.sum())
    torch.testing.assert_close(half.loss, out.loss / 2)  # One of two equal parts, whose losses are added up.


def optimum(labels: Tensor, entropy_weight: float) -> Tensor:
    """Where the loss leads a free answer to two masked positions whose teacher says each of its words half the time."""
    method = make(BlockHalves(block_length=2), entropy_weight=entropy_weight)
    x_0 = labels.repeat(64, 1)
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.05)
    with torch.no_grad():
        method.student.weight.mul_(0.1)  # type: ignore[operator]
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        rollout = method.rollout(reference=x_0, generator=g)
        method.student_loss(rollout).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return PROCESS.masked_log_probs(method.student.weight.detach()[MASK, 0]).exp()


@pytest.mark.slow
def test_its_bias_is_certainty_that_the_teacher_does_not_have() -> None:
    """The teacher begins with the word 0 in 70% of its samples and with 1 in 30%: the cross-entropy alone keeps that,
    the paper's weight of the entropy takes the less frequent word away."""
    labels = torch.zeros(10, LENGTH, dtype=torch.long)
    labels[:3, 0] = 1
    plain, forced = optimum(labels, 0.0), optimum(labels, 2.0)
    assert float(plain[1]) == pytest.approx(0.3, abs=0.05)
    assert float(forced[1]) < 0.15


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ancestral": lambda: AncestralSampler(PROCESS, num_steps=6),
    "confidence": lambda: ConfidenceSampler(PROCESS, num_steps=4),
    "blockwise": lambda: BlockwiseSampler(ConfidenceSampler(PROCESS, num_steps=2), block_length=3),
}


def ragged_prompts(batch: int) -> tuple[Tensor, Tensor]:
    """Prompts of 0 to 3 tokens, and up to two padded positions at the end."""
    place, row = torch.arange(LENGTH), torch.arange(batch)[:, None]
    real = place < LENGTH - row % 3
    return torch.where((place < row % 4) | ~real, 0, MASK), real


@pytest.mark.parametrize("name", SAMPLERS)
def test_trajectories_rebuild_every_state_of_the_sampler(name: str) -> None:
    teacher, sampler = Table(), SAMPLERS[name]()
    x_init, real = ragged_prompts(12)
    teacher_of_any_padding = lambda x_t, t, attention_mask: teacher(x_t, t)  # noqa: E731
    given: dict[str, Any] = {"x_init": x_init, "attention_mask": real}
    drawn = draw_trajectories(sampler, teacher_of_any_padding, generator=torch.Generator().manual_seed(0), **given)
    out = sampler(teacher_of_any_padding, generator=torch.Generator().manual_seed(0), return_history=True, **given)
    assert torch.equal(drawn.x_0, out.sequences)
    assert torch.equal(drawn.generation_mask, x_init == MASK)
    assert torch.equal(drawn.attention_mask, real)  # type: ignore[arg-type]
    assert torch.equal(drawn.reveal_step == GIVEN, (x_init != MASK) & real)
    assert torch.equal(drawn.reveal_step == PADDING, ~real)
    assert out.history is not None
    assert len(out.history) > 3
    for step, state in enumerate(out.history):
        assert torch.equal(torch.where(drawn.reveal_step >= step, MASK, drawn.x_0), state)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_states_are_those_of_the_recorded_trajectory_within_a_block(ratio: float) -> None:
    """Of 4 rows of each prompt the masks of a block are what the teacher had masked before one of its steps, the fewest
    that are the stated share or more."""
    x_init, real = ragged_prompts(240)
    g = torch.Generator().manual_seed(0)
    reveal_step = torch.randint(4, x_init.shape, generator=g)
    reveal_step = reveal_step.masked_fill(x_init != MASK, GIVEN).masked_fill(~real, PADDING)
    trajectories = Trajectories(references(240), reveal_step)
    method = make(TrajectoryStates(block_length=(4, 4), mask_ratio=(ratio, ratio)))
    rollout = method.rollout(reference=trajectories, generator=g)
    assert torch.equal(rollout.x_0, trajectories.x_0)
    assert torch.equal(rollout.attention_mask, real)  # type: ignore[arg-type]
    blocks = set()
    for row in range(240):
        prompt, end = row % 4, LENGTH - row % 3
        masked = rollout.loss_mask[row].nonzero().squeeze(1)
        number = (int(masked[0]) - prompt) // 4
        start, stop = prompt + 4 * number, min(prompt + 4 * number + 4, end)
        blocks.add((prompt, number))
        steps = reveal_step[row, start:stop]
        wanted = max(1, round(ratio * (stop - start)))
        shown = [k for k in range(5) if int((steps >= k).sum()) >= wanted]  # states before a step, with masks enough
        expected = steps >= max(shown)
        assert torch.equal(rollout.loss_mask[row, start:stop], expected)
        assert int(rollout.loss_mask[row].sum()) == int(expected.sum())
        hidden = rollout.x_t[row] == MASK
        assert torch.equal(hidden[start:stop], expected)
        assert bool(hidden[stop:end].all())
        assert not bool(hidden[:start].any())
        assert not bool(hidden[end:].any())
    assert blocks >= {(p, n) for p in range(4) for n in range(2)}


def test_blocks_and_masks_grow_with_the_training() -> None:
    order = torch.arange(LENGTH)[:, None].repeat(1, LENGTH).T.repeat(60, 1)[:60]
    method = make(TrajectoryStates(block_length=(2, 10), mask_ratio=(0.0, 1.0)))
    most = []
    for step in (0, 5, 10):
        method.begin_step(step, 11)
        rollout = method.rollout(reference=Trajectories(references(60), order), generator=torch.Generator())
        most.append(int(rollout.num_masked.max()))
    assert most == [1, 3, 10]


def test_a_pseudo_trajectory_has_tokens_of_data_in_the_order_of_the_teacher() -> None:
    data = references(8)
    order = torch.arange(LENGTH).expand(8, -1).flip(1)
    method = make(TrajectoryStates(block_length=(LENGTH, LENGTH), mask_ratio=(0.5, 0.5)))
    rollout = method.rollout(reference=Trajectories(data, order))
    assert torch.equal(rollout.loss_mask, order >= LENGTH - round(0.5 * LENGTH))
    assert torch.equal(rollout.x_t.masked_fill(rollout.loss_mask, 0), data.masked_fill(rollout.loss_mask, 0))


def test_tokens_without_an_order_are_refused_where_it_is_followed() -> None:
    with pytest.raises(ValueError, match="TrajectoryStates"):
        make(TrajectoryStates()).rollout(reference=references(2))
    with pytest.raises(TypeError, match="corruption"):
        CertaintyForcingConfig(corruption="trajectory")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        Trajectories(references(2), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="reveal_step"):
        Trajectories(references(2), torch.zeros(2, LENGTH))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (BlockHalves, {"block_length": 0}),
        (BlockHalves, {"mask_ratio": 0.0}),
        (BlockHalves, {"mask_ratio": 1.0}),
        (TrajectoryStates, {"block_length": (0, 2)}),
        (TrajectoryStates, {"mask_ratio": (0.0, 1.1)}),
        (CertaintyForcingConfig, {"entropy_weight": -1.0}),
        (CertaintyForcingConfig, {"entropy_temperature": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
