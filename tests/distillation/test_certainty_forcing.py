"""Certainty forcing: which states it makes, its loss by its definition, and the bias that it has by design."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discrete_distill import MaskedDiffusion
from discrete_distill.distillation.methods import CertaintyForcing, CertaintyForcingConfig
from discrete_distill.distillation.networks import Networks

V, MASK, LENGTH = 5, 4, 11
PROCESS = MaskedDiffusion(MASK)


class Table(nn.Module):
    """Logits by token and position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, LENGTH, V, generator=torch.Generator().manual_seed(0)))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.weight[x_t, torch.arange(LENGTH)]


def make(**options: float) -> CertaintyForcing:
    student = Table()
    config = CertaintyForcingConfig(**{"block_length": 3, **options})  # type: ignore[arg-type]
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


def optimum(labels: Tensor, entropy_weight: float) -> Tensor:
    """Where the loss leads a free answer to two masked positions whose teacher says each of its words half the time."""
    method = make(entropy_weight=entropy_weight, block_length=2)
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


@pytest.mark.parametrize(
    "options",
    [
        {"block_length": 0},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.0},
        {"entropy_weight": -1.0},
        {"entropy_temperature": 0},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CertaintyForcingConfig(**options)  # type: ignore[arg-type]
