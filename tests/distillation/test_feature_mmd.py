"""The feature-space MMD, paired with data: rewards by their definition, the gradient by enumeration."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from discrete_distill import MaskedDiffusion, as_denoiser, make_networks
from discrete_distill.distillation.methods import FeatureMMD, FeatureMMDConfig
from discrete_distill.distillation.methods.corrupted_data import CorruptedData, log_probs_of
from discrete_distill.distillation.methods.parts import tokens_per_part
from discrete_distill.distillation.networks import Networks

K, MASK, WIDTH = 2, 2, 3
PROCESS = MaskedDiffusion(MASK)
BANDWIDTH = 0.7


class Table(nn.Module):
    """Logits that depend on the position alone."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.logits_LV = nn.Parameter(torch.randn(length, K + 1, generator=torch.Generator().manual_seed(0)).double())

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.logits_LV.expand(len(x_t), -1, -1)


def features(x_0: Tensor, t: Tensor) -> Tensor:
    """Of a token, its place and its left neighbour."""
    near = x_0.roll(1, 1)
    place = torch.arange(x_0.shape[1])
    return torch.stack([torch.sin(1.0 + x_0 + 2.0 * near), torch.cos(x_0 * (1.0 + place)), near * 0.3], -1).double()


def kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * BANDWIDTH**2))


def make(length: int, **options: int) -> tuple[FeatureMMD, Table]:
    student = Table(length)
    config = FeatureMMDConfig(bandwidth=BANDWIDTH, **options)
    return FeatureMMD(Networks(student, student), PROCESS, config, features=features), student


def corrupted(x_0: Tensor, loss_mask: Tensor) -> CorruptedData:
    return CorruptedData(x_0.masked_fill(loss_mask, MASK), torch.ones(len(x_0)), loss_mask, None, {}, x_0)


def less_the_others(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the other candidates'."""
    count = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (count - 1)


def test_the_reward_is_that_of_the_paper() -> None:
    method, _ = make(5, candidates=3, fills=3)
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.randint(K, (2, 5), generator=generator)
    loss_mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    fills_NM = torch.randint(K, (int(loss_mask.sum()), 9), generator=generator)
    found = method.rewards(corrupted(x_0, loss_mask), fills_NM)
    start = 0
    for row in range(2):
        where = loss_mask[row].nonzero().squeeze(1)
        n = len(where)
        filled = x_0[row].repeat(9, 1)
        filled[:, where] = fills_NM[start : start + n].T
        start += n
        data, fill = features(x_0[row : row + 1], torch.zeros(1))[0, where], features(filled, torch.zeros(9))[:, where]
        for g in range(3):
            first = sum(float(kernel(data, fill[3 * g + b]).sum()) for b in range(3)) * 2 / (3 * n**2)
            second = 0.0
            for b, other in itertools.permutations(range(3), 2):
                matrix = kernel(fill[3 * g + b], fill[3 * g + other])
                second += sum(float(matrix[i, j]) for i, j in itertools.permutations(range(n), 2))
            assert float(found[row, g]) == pytest.approx(first - second / (3 * 2 * n * (n - 1)), abs=1e-6)


def test_the_expected_gradient_is_that_of_the_exact_objective() -> None:
    """Over all fills of two candidates, by enumeration: ``-E[grad L]`` is ``grad E[R]`` divided by ``n B``; ``E[R]`` is
    ``-MMD^2`` but for the term of the data."""
    length, fills, candidates = 3, 2, 2
    method, student = make(length, candidates=candidates, fills=fills)
    x_0 = torch.tensor([[0, 1, 1]])
    loss_mask = torch.tensor([[True, False, True]])
    rollout, positions = corrupted(x_0, loss_mask), torch.tensor([0, 2])
    answers = list(itertools.product(range(K), repeat=2))

    def log_probs(tokens_NM: Tensor) -> Tensor:
        return log_probs_of(PROCESS, lambda part: student.logits_LV[positions[part]], tokens_NM)

    def probability(tokens_NM: Tensor) -> Tensor:
        return log_probs(tokens_NM).sum(0).exp()

    # The exact objective of one candidate, differentiable.
    objective = torch.zeros(())
    for pair in itertools.product(answers, repeat=fills):
        tokens = torch.tensor(pair).T
        reward = method.rewards(rollout, tokens.repeat(1, candidates))[0, 0]
        objective = objective + probability(tokens).prod() * reward
    exact = torch.autograd.grad(objective, student.logits_LV)[0]
    # The expected loss's gradient: every outcome of all fills with its probability.
    expected = torch.zeros_like(exact)
    for outcome in itertools.product(answers, repeat=fills * candidates):
        tokens = torch.tensor(outcome).T
        log_prob = log_probs(tokens)
        advantages = less_the_others(method.rewards(rollout, tokens))[0].repeat_interleave(fills)
        loss = -(advantages * log_prob).sum() / (2 * fills * candidates)
        weight = float(probability(tokens).prod().detach())
        expected += weight * torch.autograd.grad(loss, student.logits_LV)[0]
    torch.testing.assert_close(-expected * 2 * fills, exact, atol=1e-8, rtol=1e-6, check_dtype=False)


def test_the_loss_is_the_weighted_log_probability_of_its_own_fills() -> None:
    method, student = make(6)
    x_0 = torch.randint(K, (4, 6), generator=torch.Generator().manual_seed(2))
    loss_mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.6
    loss_mask[0] = False
    loss_mask[0, 2] = True  # one mask: nothing to compare, so that the mean is over the three others
    rollout = corrupted(x_0, loss_mask)
    out = method.student_loss(rollout, generator=torch.Generator().manual_seed(5))
    positions = rollout.positions

    def logits_of(part: slice) -> Tensor:
        return student.logits_LV[positions[part] % 6]

    fills_NM = method.draw_fills(logits_of, positions, torch.Generator().manual_seed(5))
    advantages = less_the_others(method.rewards(rollout, fills_NM))
    log_prob_NM, expected, start = log_probs_of(PROCESS, logits_of, fills_NM), 0.0, 0
    for row, n in enumerate(rollout.num_masked.tolist()):
        for g in range(4):
            own = log_prob_NM[start : start + n, 2 * g : 2 * g + 2]
            expected -= float(advantages[row, g]) * float(own.sum().detach()) / (n * 4 * 2 * 3)
        start += n
    assert bool((advantages[0] == 0).all())
    assert float(out.loss) == pytest.approx(expected, abs=1e-7)


def test_parts_of_a_batch_with_unequal_numbers_of_sequences_have_its_gradient(monkeypatch) -> None:
    method, student = make(6)
    reference = torch.randint(K, (5, 6), generator=torch.Generator().manual_seed(2))
    whole = method.rollout(reference=reference, generator=torch.Generator().manual_seed(3))
    fills_NM = torch.randint(K, (len(whole.positions), 8), generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(FeatureMMD, "draw_fills", lambda *_: drawn.pop(0))
    ends = [0, int(whole.loss_mask[:2].sum()), len(fills_NM)]
    drawn = [fills_NM[ends[0] : ends[1]], fills_NM[ends[1] :], fills_NM]
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        cut = {
            name: value[rows] for name, value in vars(whole).items() if isinstance(value, torch.Tensor) and value.dim()
        }
        parts.append(replace(whole, **cut, num_parts=torch.tensor(rows.stop - rows.start)))
    divisor = tokens_per_part(parts)
    losses = [method.loss("student", each, num_tokens=divisor).loss for each in parts]
    expected = method.loss("student", whole).loss
    gradients = [torch.autograd.grad(loss, [student.logits_LV])[0] for loss in (sum(losses) / 2, expected)]
    torch.testing.assert_close(*gradients)
    assert bool(gradients[0].any())


def test_fills_follow_the_answer_and_never_hold_the_mask() -> None:
    method, student = make(2, candidates=8, fills=8)
    positions = torch.arange(2).repeat(500)
    fills_NM = method.draw_fills(
        lambda part: student.logits_LV[positions[part]], torch.arange(1000), torch.Generator().manual_seed(0)
    )
    p = PROCESS.masked_log_probs(student.logits_LV)[:, :K].exp()
    for place in range(2):
        share = (fills_NM[positions == place] == 1).double().mean()
        assert abs(float(share - p[place, 1])) < 4 * (0.25 / (500 * 64)) ** 0.5
    assert not bool((fills_NM == MASK).any())


@pytest.mark.parametrize("options", [{"candidates": 1}, {"fills": 1}, {"fills": 0}, {"bandwidth": 0.0}])
def test_choices_that_compare_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FeatureMMDConfig(**options)  # type: ignore[arg-type]


def test_a_teacher_without_blocks_needs_features() -> None:
    student = Table(2)
    with pytest.raises(TypeError, match="blocks"):
        FeatureMMD(Networks(student, student), PROCESS)


def test_padding_changes_nothing() -> None:
    """Its content is read by no network: the features are given the same attention mask."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**size, intermediate_size=16)).eval()
    for parameter in bert.parameters():
        nn.init.normal_(parameter, std=0.3)
    networks = make_networks(as_denoiser(bert), log_ratio=None, step_conditioning=False)
    method = FeatureMMD(networks, MaskedDiffusion(7), FeatureMMDConfig(bandwidth=5.0))
    x_0 = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(0))
    real = torch.arange(6) < torch.tensor([[6], [4], [5]])
    rewards = []
    for padding in (0, 5):
        rollout = method.rollout(
            reference=torch.where(real, x_0, padding), attention_mask=real, generator=torch.Generator().manual_seed(1)
        )
        fills = torch.randint(7, (int(rollout.loss_mask.sum()), 8), generator=torch.Generator().manual_seed(2))
        rewards.append(method.rewards(rollout, fills))
    torch.testing.assert_close(rewards[0], rewards[1])
